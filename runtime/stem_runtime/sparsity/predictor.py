"""A cheap look at which gates can fire, so that the rows of the others are never read.

The gate's products W x are approximated from few numbers of x. Their axes are the best ones there
are for the inputs that occur: with C the covariance of x, they make the mean square error of W x
the least, which is the best approximation of W in the norm of C^(1/2). Reached by a randomized
subspace iteration on W C W^T (Halko, Martinsson and Tropp 2011), since a full decomposition of wide
layers takes minutes.

Every neuron has a cut-off of its own: what scores mean is learned, not derived, so that means,
shifts and rounding need no care. Four bits a number are enough for that: what they round off is
little beside what the axes leave out, and as many bytes hold twice the axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.oracle import OUTLIERS
from ..quant import GROUP, PackedMatrix, pack, unpack
from ..quant.rounding import quantize
from .head import rounded
from .neurons import Predictor

RECALL = 0.98
"""Share of the contributions that the candidates of a token must hold."""

NEVER = float(np.finfo(np.float32).max)
"""The cut-off of a neuron that is never a candidate."""

_SPENT = 0.7  # of what the recall allows to miss, since texts to come are less alike than these
_RUN = 64  # neighbours are alike, so tokens are dealt in runs of this many
_SHARE = 4  # of that many runs one chooses the price, the others the cut-offs at each price
_PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 10, 48)])
_BLOCK = 1024  # neurons whose tokens are sorted together
_PASSES = 3
_SPARE = 16  # directions beyond the rank, which make the last ones that are kept accurate
_RIDGE = 1e-3  # of the mean variance: what few tokens cannot tell from nothing

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A predictor, the share of contributions its candidates held, and the share of the neurons
    they were, both on tokens that its axes and the shape of its cut-offs were not fitted to.
    """

    predictor: Predictor
    recall: float
    candidates: float


def fit(
    gate: F32,
    inputs: F32,
    fires: Bools,
    contribution: F32,
    *,
    rank: int = 4 * GROUP,
    recall: float = RECALL,
) -> Fitted:
    """Fit the predictor of a layer.

    `gate` float32 [ffn, d], the gate's weights; `inputs` float32 [n, d], what the FFN got for n
    neighbouring tokens, a few thousand; `fires` bool [n, ffn], who passed the gate test, and
    `contribution` float32 [n, ffn], what they added. Candidates are as few as hold a share `recall`
    of the contributions of the neurons that fired, averaged over tokens. Raises ValueError for a
    rank that is no multiple of 32 or over d.
    """
    if rank % GROUP or not 0 < rank <= gate.shape[1]:
        raise ValueError(f"rank is a multiple of {GROUP} up to {gate.shape[1]}, not {rank}")
    chosen = _chosen(len(inputs))
    axes, scores = low_rank(gate, inputs[~chosen], rank)
    first = pack(quantize(axes, "int4"), "predictor.axes", gate.shape[1])
    second = pack(quantize(scores, "int4"), "predictor.scores")
    seen = scored(first, second, inputs)
    cutoffs, held, share = choose_cutoffs(seen, shares(fires, contribution), recall)
    return Fitted(Predictor(first, second, cutoffs), held, share)


def measure(
    predictor: Predictor, inputs: F32, fires: Bools, contribution: F32
) -> tuple[float, float]:
    """Recall of contribution and share of candidates for tokens as `fit` takes them."""
    seen = scored(predictor.axes, predictor.scores, inputs)
    return _held(seen > predictor.cutoffs, shares(fires, contribution))


def low_rank(gate: F32, inputs: F32, rank: int) -> tuple[F32, F32]:
    """Axes float32 [rank, d] and scores [ffn, rank]: scores @ axes @ x is W x but for a constant.

    The numbers axes @ x are uncorrelated over `inputs` and have variance 1, the weightiest first.
    """
    centred = inputs - inputs.mean(axis=0)
    covariance = centred.T @ centred / np.float32(len(inputs))
    width = len(covariance)
    covariance += np.eye(width, dtype=np.float32) * (_RIDGE * np.trace(covariance) / width + 1e-12)
    count = min(rank + _SPARE, *gate.shape)
    basis = np.random.default_rng(0).standard_normal((len(gate), count), np.float32)
    for _ in range(_PASSES):
        basis = np.linalg.qr(gate @ (covariance @ (gate.T @ basis)))[0]
    pulled = gate.T @ basis  # [d, count]
    values, turn = np.linalg.eigh((pulled.T @ covariance @ pulled).astype(np.float64))
    values, turn = values[::-1][:rank], turn[:, ::-1][:, :rank]
    sizes = np.sqrt(np.maximum(values, values[0] * 1e-12 + 1e-30))
    axes = (pulled @ (turn / sizes)).T
    scores = (basis @ turn) * sizes
    return np.ascontiguousarray(axes, np.float32), np.ascontiguousarray(scores, np.float32)


def scored(axes: PackedMatrix, scores: PackedMatrix, inputs: F32) -> F32:
    """What the kernels compare with the cut-offs, float32 [n, ffn]."""
    turned = rounded(inputs, OUTLIERS) @ unpack(axes).T
    found: F32 = rounded(turned) @ unpack(scores).T
    return found


def shares(fires: Bools, contribution: F32) -> F32:
    """Contributions of those that fired as shares of their token's: float32 [n, ffn].

    So that no token counts more than another: the first ones of a text have huge contributions.
    """
    kept = np.where(fires, contribution, np.float32(0))
    found: F32 = kept / np.maximum(kept.sum(axis=1, keepdims=True), np.float32(1e-30))
    return found


def choose_cutoffs(scores: F32, contribution: F32, recall: float) -> tuple[F32, float, float]:
    """Cut-offs float32 [ffn] for `scores` [n, ffn], the recall they reach and their candidates.

    `contribution` [n, ffn] is as `shares` makes it. A candidate costs one gate row, whoever it is.
    So at every price of a row each neuron takes the cut-off that gains the most contribution less
    that price; the price is the highest at which tokens that did not choose cut-offs miss no
    more than seven tenths of what `recall` allows (0 where there is none).
    """
    wanted = 1 - _SPENT * (1 - recall)
    chosen = _chosen(len(scores))
    ffn = scores.shape[1]
    cutoffs = np.empty((len(_PRICES), ffn), np.float32)
    for start in range(0, ffn, _BLOCK):
        part = slice(start, start + _BLOCK)
        cutoffs[:, part] = _at_prices(scores[~chosen, part], contribution[~chosen, part], ffn)
    judged, weights = scores[chosen], contribution[chosen]
    low, high = 0, len(_PRICES)
    while high - low > 1:
        middle = (low + high) // 2
        enough = _held(judged > cutoffs[middle], weights)[0] >= wanted
        low, high = (middle, high) if enough else (low, middle)
    return cutoffs[low], *_held(judged > cutoffs[low], weights)


def _at_prices(scores: F32, contribution: F32, ffn: int) -> F32:
    """The best cut-offs of a block of neurons at every price, float32 [prices, block]."""
    falling = np.ascontiguousarray(-scores.T)
    order = np.argsort(falling, axis=1)
    falling = np.take_along_axis(falling, order, axis=1)
    gained = np.zeros((scores.shape[1], len(scores) + 1), np.float32)
    sizes = np.ascontiguousarray(contribution.T)
    np.cumsum(np.take_along_axis(sizes, order, axis=1), axis=1, out=gained[:, 1:])
    between = np.full_like(gained, NEVER)
    between[:, 1:-1] = -(falling[:, :-1] + falling[:, 1:]) / 2
    between[:, -1] = -NEVER
    spent = np.arange(gained.shape[1], dtype=np.float32) / np.float32(ffn)
    best = [(gained - np.float32(price) * spent).argmax(axis=1) for price in _PRICES]
    found: F32 = np.take_along_axis(between, np.array(best).T, axis=1).T
    return found


def _held(candidates: Bools, contribution: F32) -> tuple[float, float]:
    total = max(float(contribution.sum(dtype=np.float64)), 1e-30)
    held = float(np.sum(contribution, where=candidates, dtype=np.float64)) / total
    return held, float(candidates.mean())


def _chosen(count: int) -> Bools:
    """Which of `count` tokens judge: one run of every few, one token of so many in a short text."""
    run = max(1, min(_RUN, count // (2 * _SHARE)))
    found: Bools = np.arange(count) // run % _SHARE == _SHARE - 1
    return found
