"""The gate predictor: its axes, its cut-offs, and what its candidates hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_runtime.kernels import oracle
from stem_runtime.sparsity.head import principal_axes
from stem_runtime.sparsity.predictor import (
    NEVER,
    choose_cutoffs,
    fit,
    low_rank,
    measure,
    scored,
    shares,
)

WIDTH, FFN, TOKENS = 64, 96, 1200


def inputs(seed: int, tokens: int = TOKENS) -> np.ndarray:
    """FFN inputs float32 [tokens, 64] with a mean and a spectrum, of one distribution."""
    mixing = np.random.default_rng(99).standard_normal((WIDTH, WIDTH)) / np.arange(1, WIDTH + 1)
    noise = np.random.default_rng(seed).standard_normal((tokens, WIDTH))
    return (noise @ mixing.T + 0.5).astype(np.float32)


def gate(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((FFN, WIDTH)).astype(np.float32)


def firing(weights: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Who fires and what that adds, in a ReLU layer where one in ten or so does."""
    g = x @ weights.T
    over = g - np.quantile(inputs(0) @ weights.T, 0.9, axis=0)
    return over > 0, np.maximum(over, 0).astype(np.float32)


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=0)


def test_a_gate_of_low_rank_is_found_exactly() -> None:
    rng = np.random.default_rng(4)
    weights = (rng.standard_normal((FFN, 20)) @ rng.standard_normal((20, WIDTH))).astype(np.float32)
    axes, scores = low_rank(weights, inputs(1), 32)
    assert axes.shape == (32, WIDTH) and scores.shape == (FFN, 32)
    fresh = inputs(2)
    wanted = centred(fresh @ weights.T)
    assert np.abs(centred(fresh @ axes.T @ scores.T) - wanted).max() < 1e-3 * np.abs(wanted).max()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_no_axes_do_better(seed: int) -> None:
    weights, x = gate(seed), centred(inputs(seed))
    axes, scores = low_rank(weights, x, 32)
    wanted = x @ weights.T
    error = np.square(wanted - x @ axes.T @ scores.T).sum()
    best = np.square(np.linalg.svd(wanted, compute_uv=False)[32:]).sum()
    main = principal_axes(x, 32)
    plain = np.square(wanted - x @ main.T @ (weights @ main.T).T).sum()
    assert best * 0.99 <= error <= min(best * 1.02, plain)


def test_axes_are_uncorrelated_and_in_the_order_of_their_weight() -> None:
    x = centred(inputs(3))
    axes, scores = low_rank(gate(), x, 32)
    turned = x @ axes.T
    spread = turned.T @ turned / len(x)
    assert np.allclose(spread, np.diag(np.diag(spread)), atol=0.05)
    assert (np.diag(spread) < 1.001).all() and (np.diag(spread)[:16] > 0.95).all()
    assert (np.diff(np.linalg.norm(scores, axis=0)) <= 1e-3).all()


def test_scores_are_what_the_kernels_compute() -> None:
    weights, x = gate(), inputs(1)
    found = fit(weights, x, *firing(weights, x), rank=32).predictor
    seen = scored(found.axes, found.scores, x[:5])
    for token, row in zip(x[:5], seen, strict=True):
        assert np.allclose(
            oracle.matvec(found.scores, oracle.matvec(found.axes, token, oracle.OUTLIERS)),
            row,
            atol=2e-2,
        )


def test_candidates_hold_the_recall_asked_for_on_fresh_tokens() -> None:
    weights, x, fresh = gate(), inputs(1), inputs(2)
    shares_of = {}
    for recall in (0.8, 0.98):
        fitted = fit(weights, x, *firing(weights, x), rank=32, recall=recall)
        held, candidates = measure(fitted.predictor, fresh, *firing(weights, fresh))
        assert 1 - 0.7 * (1 - recall) <= fitted.recall and recall < held
        assert abs(candidates - fitted.candidates) < 0.05
        shares_of[recall] = candidates
    assert shares_of[0.8] < shares_of[0.98] < 0.5


def test_more_axes_leave_fewer_candidates() -> None:
    weights, x = gate(), inputs(1)
    few, many = (fit(weights, x, *firing(weights, x), rank=rank) for rank in (32, 64))
    assert many.candidates < few.candidates


def test_a_neuron_that_never_fired_is_never_a_candidate() -> None:
    weights, x = gate(), inputs(1)
    fires, contribution = firing(weights, x)
    fires[:, 7] = False
    predictor = fit(weights, x, fires, contribution, rank=32).predictor
    assert predictor.cutoffs[7] == np.float32(NEVER)
    assert (np.delete(predictor.cutoffs, 7) < NEVER).all()
    assert np.isfinite(predictor.cutoffs).all()


def test_a_rank_that_cannot_be_packed_is_refused() -> None:
    weights, x = gate(), inputs(1, 64)
    for rank in (0, 33, 96):
        with pytest.raises(ValueError, match=f"not {rank}"):
            fit(weights, x, *firing(weights, x), rank=rank)


def test_right_scores_find_those_that_fire_and_no_others() -> None:
    weights, x = gate(), inputs(1)
    fires, contribution = firing(weights, x)
    parts = shares(fires, contribution)
    cutoffs, held, candidates = choose_cutoffs(x @ weights.T, parts, 0.98)
    assert held >= 0.98
    assert candidates <= fires.mean()
    assert not ((x @ weights.T > cutoffs) & ~fires).mean() > 0.005


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.999), st.integers(8, 300))
def test_cut_offs_reach_any_recall_that_all_neurons_reach(
    seed: int, recall: float, tokens: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((tokens, 8)).astype(np.float32)
    fires = rng.random((tokens, 8)) < 0.5
    fires[:, 0] = True
    parts = shares(fires, rng.random((tokens, 8)).astype(np.float32))
    cutoffs, held, candidates = choose_cutoffs(scores, parts, recall)
    assert cutoffs.shape == (8,) and cutoffs.dtype == np.float32
    assert 0 <= held <= 1 + 1e-6 and 0 <= candidates <= 1
    free = choose_cutoffs(scores, parts, 1.5)
    assert held >= min(1 - 0.7 * (1 - recall), free[1])
    assert candidates <= free[2]


def test_every_token_counts_the_same() -> None:
    fires = np.array([[True, True], [True, False], [False, False]])
    contribution = np.array([[3, 1], [1000, 50], [7, 7]], np.float32)
    assert shares(fires, contribution).tolist() == [[0.75, 0.25], [1, 0], [0, 0]]
