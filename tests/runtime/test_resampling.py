"""Resampling: which sets are drawn, when a token looks, and when it is given up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_runtime.engine import Engine
from stem_runtime.formats.packed import open_packed
from stem_runtime.quant import unpack
from stem_runtime.sparsity.neurons import LayerNeurons, Neurons, bits_of, layer_weights, mask_of
from stem_runtime.sparsity.plan import FfnPlan
from stem_runtime.sparsity.resampling import Resampler, smallest_set

from .tiny import random_packed, tiny_config

FFN = 70  # three words, the last one with padding
USED = np.where(np.arange(FFN) < 20, 1.0, 0.0).astype(np.float32)
OTHER = np.roll(USED, 30)


@dataclass
class Cache:
    candidates: np.ndarray | None = None
    heat: np.ndarray | None = None
    captured: np.ndarray | None = None


class Conversation:
    """Plays the engine: `token` adds to the heat and captures what the sets let it see."""

    def __init__(self, layers: int = 1, prompt: np.ndarray = USED, **settings: float) -> None:
        self.cache = Cache()
        self.layers, self.ffn = layers, len(prompt)
        self.resampler = Resampler(("gate",) * layers, self.ffn, **settings)
        self.read(prompt)

    def read(self, prompt: np.ndarray) -> None:
        """Read a prompt, and the token after it, with which no layer looks that has candidates."""
        self.resampler.start(self.cache)
        self.add(np.float32(10) * prompt)
        self.resampler.seed()
        if prompt.any() and self.resampler.active:
            assert self.token(prompt / 2) == []

    def add(self, contribution: np.ndarray) -> None:
        if self.cache.heat is not None:
            self.cache.heat[:, : self.ffn] += contribution

    def token(self, contribution: np.ndarray = USED) -> list[int]:
        """Which layers looked."""
        looking = self.resampler.before_token()
        seen = np.broadcast_to(contribution, (self.layers, self.ffn)).copy()
        if self.cache.candidates is not None:
            seen *= np.array([bits_of(mask, self.ffn) for mask in self.cache.candidates])
        self.add(seen)
        self.cache.captured = seen.sum(axis=1)
        self.resampler.after_token()
        return looking

    def members(self, layer: int = 0) -> list[int]:
        """Who is a candidate for the next token, with which the layer does not look."""
        assert layer not in self.resampler.before_token()
        assert self.cache.candidates is not None
        return np.flatnonzero(bits_of(self.cache.candidates[layer], 96)).tolist()


@settings(max_examples=60)
@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40), st.floats(0.01, 1))
def test_a_set_is_the_smallest_that_covers(heat: list[float], coverage: float) -> None:
    values = np.array(heat, np.float32)
    found = smallest_set(values, coverage)
    total = values.sum(dtype=np.float64)
    assert values[found].sum(dtype=np.float64) >= coverage * total * (1 - 1e-9)
    assert (values[found] > 0).all()
    if found.any():
        assert values[found].min() > values[~found].max(initial=-1)
        smaller = values[found & (values > values[found].min())]
        assert smaller.sum(dtype=np.float64) < coverage * total


def test_the_prompt_makes_the_first_sets() -> None:
    conversation = Conversation()
    assert conversation.token() == [0]  # the first one looks
    assert conversation.members() == list(range(20))
    assert conversation.resampler.share == 20 / FFN
    assert conversation.resampler.active


def test_coverage_sets_the_size() -> None:
    falling = np.linspace(1, 0, FFN, dtype=np.float32) ** 4
    sizes = []
    for coverage in (0.3, 0.6, 0.8):
        conversation = Conversation(prompt=falling, coverage=coverage)
        conversation.token(falling)
        members = conversation.members()
        assert members == list(range(len(members)))
        assert falling[members].sum() >= coverage * falling.sum()
        sizes.append(len(members))
    assert sizes == sorted(set(sizes))


def test_every_period_one_token_looks() -> None:
    conversation = Conversation(period=4)
    looks = [conversation.token() for _ in range(13)]
    assert looks == [[0] if i % 4 == 0 else [] for i in range(13)]
    assert conversation.resampler.refreshes == 4
    assert conversation.resampler.drifts == 0


@settings(max_examples=40)
@given(st.integers(2, 9), st.integers(2, 12))
def test_layers_take_turns(layers: int, period: int) -> None:
    """After a first round each looks every `period` tokens, and no token has more than its part."""
    conversation = Conversation(layers, period=period)
    looks = [conversation.token() for _ in range(4 * period)]
    most = -(-layers // period)
    if layers > 1:
        assert max(map(len, looks)) == most
    for layer in range(layers):
        at = [token for token, looking in enumerate(looks) if layer in looking]
        assert at == list(range(layer // most, 4 * period, period))
    assert conversation.resampler.refreshes == 4
    assert conversation.resampler.drifts == 0


@pytest.mark.parametrize(
    ("factors", "unseen", "margin"),
    [
        ((1,), 0.0, 0.1),  # one part says nothing
        ((1, 1), 0.0, 1.0),  # all that it uses was seen before
        ((1, 1), 0.04, 0.8),  # 4% was not; as the past is twice as long now, 2%
        ((1, 0.25), 0.04, 0.68),  # 4%, which 1.25 times the length makes 3.2%
        ((1, 1 / 32), 0.04, 0.1),  # too small a part
        ((1, 1), 0.5, 0.505),  # more than sets could hold
    ],
)
def test_parts_of_a_prompt_say_what_sets_may_miss(
    factors: tuple[float, ...], unseen: float, margin: float
) -> None:
    seen = np.zeros(1000, np.float32)
    seen[:900] = 1
    last = (1 - np.float32(unseen)) * seen
    last[900:] = 9 * unseen
    cache, resampler = Cache(), Resampler(("gate",), 1000, coverage=0.9)
    resampler.start(cache)
    for number, factor in enumerate(factors):
        assert cache.heat is not None
        cache.heat[0, :1000] += np.float32(factor) * (last if number else seen)
        resampler.part()
    assert resampler._margin == pytest.approx(margin, abs=0.06)


def test_sets_of_a_prompt_in_parts_hold_what_they_should() -> None:
    rng = np.random.default_rng(0)
    typical = np.linspace(1, 0, 400, dtype=np.float32) ** 3

    def use(tokens: int) -> np.ndarray:
        found = rng.exponential(size=(tokens, 400)) * (rng.random((tokens, 400)) < 0.3 * typical)
        return found.astype(np.float32)

    held = []
    for _ in range(20):
        cache, resampler = Cache(), Resampler(("gate",), 400, coverage=0.9)
        resampler.start(cache)
        for tokens in (40, 20):
            assert cache.heat is not None
            cache.heat[0, :400] += use(tokens).sum(axis=0)
            resampler.part()
        resampler.seed()
        resampler.before_token()
        mask = bits_of(resampler._masks[0], 400)  # type: ignore[index]
        answer = use(200)
        held.append(answer[:, mask].sum() / answer.sum())
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_a_layer_that_looks_leaves_the_others_their_sets() -> None:
    conversation = Conversation(3, period=8)
    before = conversation.cache.candidates
    for layer in range(3):
        assert conversation.resampler.before_token() == [layer]
        masks = conversation.cache.candidates
        assert masks is not None and masks is not before  # a card copies what it has not seen
        sizes = [int(bits_of(mask, 96).sum()) for mask in masks]
        assert sizes == [FFN if other == layer else 20 for other in range(3)]
        conversation.token()


def test_one_layer_of_many_is_no_drift_but_all_together_are() -> None:
    conversation = Conversation(8, period=1000)
    for _ in range(8):
        conversation.token()
    changed = np.broadcast_to(USED, (8, FFN)).copy()
    changed[3] = OTHER + np.float32(0.3) * USED
    assert not any(conversation.token(changed) for _ in range(30))
    changed[:] = changed[3]
    looked = [conversation.token(changed) for _ in range(10)]
    assert [0, 1, 2, 3, 4, 5, 6, 7] in looked
    assert conversation.resampler.drifts == 1


def test_a_look_of_one_layer_draws_its_set_alone() -> None:
    conversation = Conversation(2, period=8)
    both = np.stack([OTHER, OTHER])
    assert conversation.token(both + USED) == [0]
    assert conversation.resampler.refreshes == 0
    assert set(conversation.members(0)) > set(range(20))


def test_a_look_finds_newcomers() -> None:
    conversation = Conversation(period=4)
    newcomer = USED.copy()
    newcomer[50] = 20
    conversation.token()
    assert 50 not in conversation.members()
    for _ in range(4):
        conversation.token(newcomer)
    assert 50 in conversation.members()


def test_a_look_stands_for_the_tokens_that_could_not_see() -> None:
    """A neuron outside the sets weighs as much as one inside that fires as often."""
    one, both = np.eye(1, FFN, dtype=np.float32)[0], np.zeros(FFN, np.float32)
    both[:2] = 1
    conversation = Conversation(prompt=4 * one, coverage=0.5, period=8)
    conversation.token(both)
    assert conversation.members() == [0]
    for _ in range(8):
        conversation.token(both)
    assert conversation.members() == [0, 1]


def test_old_use_is_forgotten() -> None:
    conversation = Conversation(period=8, coverage=0.9)
    for _ in range(81):
        conversation.token(OTHER)
    assert conversation.members() == np.flatnonzero(OTHER).tolist()


def test_drift_makes_the_next_token_look() -> None:
    conversation = Conversation(period=1000)
    assert conversation.token() == [0]
    assert not any(conversation.token() for _ in range(20))
    changed = OTHER + np.float32(0.3) * USED
    looked = [conversation.token(changed) for _ in range(10)]
    assert looked.index([0]) < 6
    assert conversation.resampler.drifts == 1
    assert set(np.flatnonzero(OTHER)) <= set(conversation.members())
    assert not any(conversation.token(changed) for _ in range(20))


def test_a_look_that_finds_the_sets_wanting_is_drift_too() -> None:
    conversation = Conversation(period=4)
    for token in [USED] * 4 + [OTHER]:
        conversation.token(token)
    assert conversation.resampler.drifts == 1


def test_sets_grow_until_they_hold_what_they_should() -> None:
    """Tokens that use what the ones before did not: sets as large as the past asks miss them."""
    rng = np.random.default_rng(0)
    typical = np.linspace(1, 0, 400, dtype=np.float32) ** 3
    conversation = Conversation(1, typical, coverage=0.9, period=4)
    shares = []
    for _ in range(400):
        token = typical * rng.exponential(size=400).astype(np.float32) ** 2
        if conversation.token(token):
            shares.append(conversation.resampler.share)
    assert conversation.resampler.recall == pytest.approx(0.9, abs=0.02)
    assert np.std(shares[20:]) < 0.1


def test_a_prompt_that_was_not_read_makes_no_sets() -> None:
    conversation = Conversation(prompt=np.zeros(FFN, np.float32))
    assert conversation.token(USED)
    assert conversation.resampler.drifts == 0
    assert conversation.members() == np.flatnonzero(USED).tolist()


def test_layers_where_nothing_fires_are_no_drift() -> None:
    conversation = Conversation(2, period=1000)
    silent = np.stack([USED, np.zeros(FFN, np.float32)])
    assert [len(conversation.token(silent)) for _ in range(30)] == [1, 1] + [0] * 28
    assert conversation.resampler.drifts == 0
    assert conversation.resampler.recall == 1


def test_sets_of_nearly_all_neurons_are_given_up() -> None:
    conversation = Conversation(prompt=np.ones(FFN, np.float32))
    assert not conversation.resampler.active
    assert "100% of the neurons" in conversation.resampler.reason
    assert not conversation.token()
    assert conversation.cache.candidates is None
    assert conversation.cache.heat is None
    assert conversation.resampler.refreshes == 0


def test_a_conversation_that_keeps_changing_is_given_up() -> None:
    ffn = 1000
    always = np.eye(1, ffn, dtype=np.float32)[0]
    conversation = Conversation(1, always, period=4)
    for place in range(1, 40):
        conversation.token(always + 9 * np.eye(1, ffn, 10 * place, dtype=np.float32)[0])
    assert not conversation.resampler.active
    assert "changes" in conversation.resampler.reason
    assert conversation.resampler.drifts == 5


def test_sets_that_keep_missing_a_little_are_given_up() -> None:
    ffn = 1000
    always = np.where(np.arange(ffn) < 20, 1.0, 0.0).astype(np.float32)
    conversation = Conversation(1, always, period=4, coverage=0.98)
    for place in range(1, 29):
        conversation.token(always + 2 * np.eye(1, ffn, 30 * place, dtype=np.float32)[0])
    assert conversation.resampler.active
    conversation.token(always + 2 * np.eye(1, ffn, 999, dtype=np.float32)[0])
    assert not conversation.resampler.active
    assert "only 91%" in conversation.resampler.reason
    assert conversation.resampler.drifts == 0


def test_a_plan_without_gate_tests_has_no_sets() -> None:
    resampler, cache = Resampler(("dense", "contribution"), FFN), Cache()
    resampler.start(cache)
    resampler.seed()
    assert not resampler.active
    assert not resampler.before_token()
    assert cache.heat is None


def test_only_layers_with_a_gate_test_count() -> None:
    resampler, cache = Resampler(("dense", "gate"), FFN), Cache()
    resampler.start(cache)
    assert cache.heat is not None
    cache.heat[0] = 1
    cache.heat[1, 5] = 1
    resampler.seed()
    assert resampler.share == 1 / FFN
    assert resampler.active


def test_tokens_that_ran_dense_say_nothing() -> None:
    conversation = Conversation(period=1000)
    conversation.token()
    for _ in range(30):
        conversation.resampler.before_token()
        assert conversation.cache.captured is not None
        conversation.cache.captured[:] = 0
        conversation.resampler.after_token()
    assert not conversation.token()
    assert conversation.resampler.drifts == 0


def test_the_next_prompt_adds_to_what_was_seen() -> None:
    conversation = Conversation()
    conversation.token()
    conversation.read(OTHER)
    assert conversation.token(OTHER)
    assert conversation.members() == np.flatnonzero(USED + OTHER).tolist()


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.6, 0.95))
def test_sets_of_a_steady_conversation_capture_what_they_cover(seed: int, coverage: float) -> None:
    rng = np.random.default_rng(seed)
    typical = rng.exponential(size=FFN).astype(np.float32) ** 3
    conversation = Conversation(prompt=typical, coverage=coverage, period=8)
    captured, whole = 0.0, 0.0
    for _ in range(80):
        token = typical * rng.uniform(0.5, 1.5, FFN).astype(np.float32)
        if not conversation.token(token) and conversation.cache.candidates is not None:
            assert conversation.cache.captured is not None
            captured += conversation.cache.captured[0]
            whole += token.sum()
    assert captured >= (coverage - 0.05) * whole


def test_settings_that_mean_nothing_are_refused() -> None:
    for settings_ in ({"coverage": 0.0}, {"coverage": 1.5}, {"period": 1}):
        with pytest.raises(ValueError, match="coverage"):
            Resampler(("gate",), FFN, **settings_)


def test_an_engine_keeps_to_the_sets_between_looks(tmp_path: Path) -> None:
    model = open_packed(random_packed(tmp_path / "m", tiny_config(activation="relu")))
    ffn, layers = model.config.ffn_dim, model.config.n_layers
    ones, everyone = np.ones(ffn, np.float32), mask_of(np.ones(ffn, np.bool_))
    neurons = [
        LayerNeurons(
            layer_weights(model, layer, "gate"),
            weights=ones,
            norms=np.linalg.norm(unpack(model.matrix(f"layers.{layer}.down")), axis=0),
            core=everyone * np.uint32(0),
            alive=everyone,
        )
        for layer in range(layers)
    ]
    plan = replace(FfnPlan.exact(layers), candidates="resampled")
    resampler = Resampler(plan.modes, ffn, coverage=0.1, period=3)
    with Engine(model, threads=2, neurons=Neurons(tuple(neurons))) as engine:
        engine.set_plan(plan)
        cache = engine.new_cache(16)
        resampler.start(cache)
        engine.prefill(cache, [5, 60])
        resampler.seed()
        for place, token in enumerate([1, 200, 7, 130, 44, 9], -1):
            looking = resampler.before_token()
            sets = cache.candidates
            engine.decode(cache, token, sparse=True)
            offered = engine.last_counts[:, 0].tolist()
            resampler.after_token()
            assert looking == ([place % 3] if place >= 0 and place % 3 < layers else [])
            assert sets is not None
            assert offered == [int(bits_of(mask, ffn).sum()) for mask in sets]
            assert [layer for layer, count in enumerate(offered) if count == ffn] == looking
    assert resampler.refreshes == 2
    assert 0 < resampler.recall < 1
