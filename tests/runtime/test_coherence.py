"""Structural rules: what is learned from who fires together, and what each rule changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_runtime.sparsity.coherence import IMPLIED, bounds, core, implications, learn
from stem_runtime.sparsity.neurons import bits_of

from .rules import apply_bounds, apply_core, apply_implications

TOKENS = 400
ONES = np.ones(64, np.float32)


def firing(seed: int = 0, ffn: int = 64, chance: float = 0.1, tokens: int = TOKENS) -> np.ndarray:
    """Neurons that fire independently of each other, bool [tokens, ffn]."""
    return np.random.default_rng(seed).random((tokens, ffn)) < chance


def test_the_core_is_nearly_always_on_and_carries_much() -> None:
    fires = firing()
    fires[:, 3] = True
    fires[8:, 7] = True  # 98%
    fires[40:, 9] = True  # 90%
    fires[:, 11] = True
    contribution = ONES.copy()
    contribution[[3, 7, 9]] = 5
    contribution[11] = 0.1
    assert np.flatnonzero(bits_of(core(fires, contribution), 64)).tolist() == [3, 7]


def test_the_core_is_a_sixteenth_at_most() -> None:
    contribution = np.linspace(0, 1, 64, dtype=np.float32)
    on = bits_of(core(np.ones((50, 64), np.bool_), contribution), 64)
    assert np.flatnonzero(on).tolist() == [60, 61, 62, 63]


def test_nobody_is_always_on_where_nobody_fires() -> None:
    assert not core(np.zeros((50, 64), np.bool_), np.zeros(64, np.float32)).any()


def test_the_core_stays_on_where_the_gate_test_drops_it() -> None:
    fires = firing()
    fires[:, 3] = True
    contribution = ONES.copy()
    contribution[3] = 5
    always = bits_of(core(fires, contribution), 64)
    passed = np.zeros(64, np.bool_)
    assert np.flatnonzero(apply_core(passed, always)).tolist() == [3]


@settings(max_examples=40)
@given(st.integers(0, 1000), st.floats(0, 1), st.sampled_from([1, 5, 200]))
def test_bounds_hold_what_calibration_saw(seed: int, chance: float, tokens: int) -> None:
    fires = firing(seed, 70, chance, tokens)
    floor, cap = bounds(fires)
    counts = fires.sum(axis=1)
    assert 0 <= floor <= np.median(counts) <= cap <= 70
    assert ((counts >= floor) & (counts <= cap)).mean() >= 0.97


def test_floor_and_cap_move_the_cut_off() -> None:
    floor, cap = bounds(firing(chance=0.3))
    assert 0 < floor < cap < 64
    potentials = np.random.default_rng(5).random(64, np.float32)
    for cutoff, count in ((0.99, floor), (0.01, cap)):
        passed = potentials > cutoff
        kept = apply_bounds(potentials, cutoff, floor, cap)
        assert kept.sum() == count != passed.sum()
        assert potentials[kept].min() > potentials[~kept].max()
    assert not apply_bounds(np.zeros(64, np.float32), 0.5, floor, cap).any()


def test_implied_is_who_follows_and_does_not_fire_anyway() -> None:
    fires, following = firing(1), firing(2)
    following[:, 5] = fires[:, 2]  # always together
    following[:, 6] = fires[:, 2] & firing(3)[:, 0]  # one time in ten
    following[:, 7] = True  # fires anyway
    found = implications(fires, following)
    assert found.shape == (64, IMPLIED) and found.dtype == np.int32
    assert found[2].tolist() == [5, -1, -1, -1]
    assert (np.delete(found, 2, axis=0) == -1).all()


def test_a_few_times_are_not_enough_to_be_sure() -> None:
    fires = np.zeros((TOKENS, 4), np.bool_)
    fires[:3, 0] = True
    fires[:12, 1] = True
    found = implications(fires, fires)
    assert found[:, 0].tolist() == [-1, 1, -1, -1]


def test_the_four_that_fire_least_otherwise_are_implied() -> None:
    fires = firing(1)[:, :1]
    otherwise = np.random.default_rng(2).random((TOKENS, 6)) < [0.01, 0.15, 0.05, 0.2, 0, 0.1]
    found = implications(fires, fires | otherwise)
    assert found.tolist() == [[4, 0, 2, 5]]


@settings(max_examples=25)
@given(st.integers(0, 1000))
def test_every_implication_holds_in_the_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    causes = rng.random((TOKENS, 6)) < 0.2
    pick = rng.integers(0, 6, (2, 40))
    noise = rng.random((2, TOKENS, 40))
    fires, following = (
        (causes[:, p] & (n < 0.9)) | (n > 0.97) for p, n in zip(pick, noise, strict=True)
    )
    found = implications(fires, following)
    assert (found >= 0).any()
    often = following.mean(axis=0)
    for neuron, implied in enumerate(found):
        named = implied[implied >= 0]
        assert len(set(named.tolist())) == len(named)
        chance = following[fires[:, neuron]].mean(axis=0)
        assert (chance[named] >= 0.2).all()
        assert (chance[named] >= 3 * often[named]).all()


def test_implications_find_who_the_candidates_miss() -> None:
    fires = firing(1)
    following = firing(2)
    following[:, 5] = fires[:, 2]
    implied = implications(fires, following)
    token = int(np.flatnonzero(fires[:, 2])[0])
    candidates = np.zeros(64, np.bool_)
    joined = apply_implications(candidates, fires[token], implied)
    assert np.flatnonzero(joined).tolist() == [5]
    assert following[token, 5]
    assert not apply_implications(candidates, ~fires[token], implied).any()


def test_rules_of_all_layers_are_learned_in_one_pass() -> None:
    layers = [firing(seed, ffn) for seed, ffn in enumerate((64, 40, 64))]
    layers[1][:, 9] = layers[0][:, 4]
    rules = learn((fires, np.ones(fires.shape[1], np.float32)) for fires in layers)
    assert [rule.core.shape for rule in rules] == [(2,), (2,), (2,)]
    assert [(rule.floor, rule.cap) for rule in rules] == [bounds(fires) for fires in layers]
    first, second, last = (rule.implied for rule in rules)
    assert first is not None and first.shape == (64, IMPLIED) and first[4, 0] == 9
    assert second is not None and second.shape == (40, IMPLIED)
    assert last is None


def test_layers_must_have_seen_the_same_tokens() -> None:
    with pytest.raises(ValueError, match="400 and 399"):
        learn([(firing(), ONES), (firing()[:-1], ONES)])
