"""The slow NumPy truth of an FFN whose neurons are skipped; see `kernels.oracle`.

Everything is computed for every neuron, and then what a test leaves out is taken away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cpu.layout import BINS_PER_NAT, LAG_BINS, NEAR
from .oracle import F64, FloatArray, Packed, ffn_hidden, matmul

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ffn:
    """One layer's FFN; `weights` w_j and `norms` n_j [ffn] make potentials and contributions."""

    gate: Packed
    up: Packed
    down: Packed
    activation: str
    param: float
    weights: FloatArray
    norms: FloatArray


@dataclass(frozen=True, slots=True)
class Tests:
    """What one token's neurons must pass. Sets are bool [ffn]; None names everyone as candidate
    and alive, and nobody as the core. Floor and cap bound how many pass the gate test.
    """

    mode: str
    gate_cutoff: float = 0.0
    contribution_cutoff: float = 0.0
    candidates: Bools | None = None
    core: Bools | None = None
    alive: Bools | None = None
    floor: int = 0
    cap: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The output y [d], which neurons had their gate, their up row and their down column read, and
    everyone's potential and contribution, float64 [ffn].
    """

    y: F64
    candidates: Bools
    passed: Bools
    added: Bools
    potentials: F64
    contributions: F64


def sparse_ffn(ffn: Ffn, tests: Sequence[Tests], x: FloatArray, outliers: int = 0) -> list[Outcome]:
    """The FFN of some tokens, of their normed inputs x [n, d] and each with tests of its own.

    `outliers` as in `oracle.matmul`, of x.
    """
    gates, ups = matmul(ffn.gate, x, outliers), matmul(ffn.up, x, outliers)
    hidden = ffn_hidden(ffn.activation, gates, ups, ffn.param)
    acts = ffn_hidden(ffn.activation, gates, np.ones_like(gates), ffn.param)
    potentials: F64 = np.abs(acts) * ffn.weights
    contributions: F64 = np.abs(hidden) * ffn.norms
    sets = [pick(*token) for token in zip(tests, potentials, contributions, strict=True)]
    y = matmul(ffn.down, np.where([added for _, _, added in sets], hidden, 0.0))
    found = zip(y, sets, potentials, contributions, strict=True)
    return [Outcome(y_, *sets_, p, c) for y_, sets_, p, c in found]


def pick(tests: Tests, potentials: F64, contributions: F64) -> tuple[Bools, Bools, Bools]:
    """One token's candidates, who of them passes the gate test, and whose columns are added."""
    everyone = np.ones(len(potentials), np.bool_)
    if tests.mode == "dense":
        return everyone, everyone, everyone
    core = ~everyone if tests.core is None else tests.core
    candidates = everyone if tests.alive is None else tests.alive
    passed = candidates
    if tests.mode == "gate":
        if tests.candidates is not None:
            candidates = candidates & (tests.candidates | core)
        passed = bounded(np.where(candidates, potentials, 0.0), tests) | core
        passed &= candidates
    return candidates, passed, passed & ((contributions > tests.contribution_cutoff) | core)


def bounded(potentials: F64, tests: Tests) -> Bools:
    """Who passes the gate test, or is among the strongest where too many or too few do.

    Neurons without any potential pass for no floor. The core counts like everyone else, and joins
    whatever the bounds are.
    """
    passed: Bools = potentials > tests.gate_cutoff
    held = passed if tests.core is None else passed | tests.core
    ranks = np.empty(len(potentials), np.int64)
    ranks[np.argsort(-potentials, kind="stable")] = np.arange(len(potentials))
    if tests.cap is not None and held.sum() > tests.cap:
        return passed & (ranks < tests.cap)
    if held.sum() < tests.floor:
        return (potentials > 0) & (ranks < tests.floor)
    return passed


def predicted(
    axes: Packed, scores: Packed, cutoffs: FloatArray, x: FloatArray, outliers: int = 0
) -> Bools:
    """The candidates that a predictor names for inputs x [n, d]: bool [n, ffn]."""
    found: Bools = matmul(scores, matmul(axes, x, outliers)) > cutoffs
    return found


def multiplier(strength: float, mean: float, spread: float, sharpness: float) -> float:
    """What a token's cut-offs are multiplied by, given how sharp its attention is."""
    power = strength * (mean - sharpness) / spread
    return math.exp(min(max(power, -math.log(4)), math.log(4)))


def head_rows(scores: F64, margin: float, limit: int, logits: F64 | None = None) -> Bools:
    """The rows of the output head [n, vocab] that are computed after a look gave them `scores`.

    Those within `margin` of the mark: halfway between the best score and the best of the `logits`,
    less what the mean row adds to all, among rows that score nearly as well. Of more than `limit`
    as many bins of them, best first, as have no more rows; all rows where none is left.
    """
    mark = scores.max(axis=1, keepdims=True)
    if logits is not None:
        among = np.where(scores >= mark - NEAR, logits, -np.inf)
        mark = (mark + among.max(axis=1, keepdims=True)) / 2
    lags = mark - scores
    bins = np.clip(lags * BINS_PER_NAT, 0, LAG_BINS - 1).astype(np.int64)
    near: Bools = lags <= margin
    for row, (mask, places) in enumerate(zip(near, bins, strict=True)):
        if mask.sum() > limit:
            totals = np.cumsum(np.bincount(places[mask], minlength=LAG_BINS))
            end = np.count_nonzero(totals <= limit)
            near[row] &= places < end
        if not near[row].any():
            near[row] = True
    return near
