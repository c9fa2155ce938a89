"""The slow NumPy truth of an FFN whose neurons are skipped; see `kernels.oracle`.

Everything is computed for every neuron, and then what a test leaves out is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .oracle import F64, FloatArray, Packed, ffn_hidden, matvec

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


def sparse_ffn(ffn: Ffn, tests: Tests, x: FloatArray) -> Outcome:
    """One token's FFN, of the normed input x [d]."""
    gates, ups = matvec(ffn.gate, x), matvec(ffn.up, x)
    hidden = ffn_hidden(ffn.activation, gates, ups, ffn.param)
    potentials = np.abs(ffn_hidden(ffn.activation, gates, np.ones_like(gates), ffn.param))
    potentials *= ffn.weights
    contributions: F64 = np.abs(hidden) * ffn.norms
    everyone = np.ones(len(hidden), np.bool_)
    core = ~everyone if tests.core is None else tests.core
    candidates = everyone if tests.alive is None else tests.alive
    if tests.mode == "gate" and tests.candidates is not None:
        candidates = candidates & (tests.candidates | core)
    passed = added = candidates
    if tests.mode == "gate":
        passed = bounded(np.where(candidates, potentials, 0.0), tests) | (core & candidates)
    if tests.mode != "dense":
        added = passed & ((contributions > tests.contribution_cutoff) | core)
    else:
        candidates = passed = added = everyone
    y = matvec(ffn.down, np.where(added, hidden, 0.0))
    return Outcome(y, candidates, passed, added, potentials, contributions)


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


def predicted(axes: Packed, scores: Packed, cutoffs: FloatArray, x: FloatArray) -> Bools:
    """The candidates that a predictor names: bool [ffn]."""
    found: Bools = matvec(scores, matvec(axes, x)) > cutoffs
    return found


def multiplier(strength: float, mean: float, spread: float, sharpness: float) -> float:
    """What a token's cut-offs are multiplied by, given how sharp its attention is."""
    return float(np.clip(np.exp(strength * (mean - sharpness) / spread), 0.25, 4.0))
