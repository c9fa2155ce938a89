"""What a look would have kept and left out, in the kernels' own roundings but many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..quant import PackedMatrix, unpack
from ..sampling import SamplingParams
from .head import Looks, blocks, rounded
from .profile import MAX_MISS_RATE, MIN_MASS

TOP = 40
"""How many of the likeliest tokens are followed, the most that default sampling draws from."""

WARM = SamplingParams(temperature=1.0)
"""The widest sampling that a look answers for: default filters, at most this temperature."""

_SCORES = 1 << 23  # scores held at a time

F32 = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a look did on some positions; the fields are those of `profile.HeadSetting`."""

    dims: int
    margin: float
    positions: int
    misses: int
    mean_rows: float
    default_mass: float
    warm_mass: float
    head_bytes: int

    @property
    def passes(self) -> bool:
        few = self.misses <= MAX_MISS_RATE * self.positions
        return few and min(self.default_mass, self.warm_mass) >= MIN_MASS


def leaders(head: PackedMatrix, hidden: F32) -> tuple[Ids, F32]:
    """The likeliest tokens after each hidden state [n, d]: ids and logits [n, 40], best first."""
    count = min(TOP, head.rows)
    states = rounded(hidden)
    ids = np.zeros((len(states), count), np.int64)
    logits = np.full((len(states), count), -np.inf, np.float32)
    for start, block in blocks(head):
        weights = unpack(block).T
        step = max(1, _SCORES // block.rows)
        for first in range(0, len(states), step):
            part = slice(first, first + step)
            found = states[part] @ weights
            # few blocks hold a leader of a position, so most of their scores need no sorting
            least = logits[part, -1:]
            rows = np.flatnonzero((found > least).any(axis=1))
            if len(rows):
                _merge(ids[part], logits[part], rows, found[rows], start)
    return ids, logits


def _merge(ids: Ids, logits: F32, rows: Ids, found: F32, start: int) -> None:
    """Let the block's scores `found`, of tokens from `start` on, compete at positions `rows`."""
    count = ids.shape[1]
    if found.shape[1] > count:
        best = np.argpartition(found, found.shape[1] - count, axis=1)[:, -count:]
    else:
        best = np.broadcast_to(np.arange(found.shape[1]), found.shape)
    both = np.concatenate([logits[rows], np.take_along_axis(found, best, axis=1)], axis=1)
    names = np.concatenate([ids[rows], best + start], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :count]
    logits[rows] = np.take_along_axis(both, order, axis=1)
    ids[rows] = np.take_along_axis(names, order, axis=1)


def lags(looks: Looks, hidden: F32, ids: Ids, dims: Sequence[int]) -> dict[int, F32]:
    """How far tokens `ids` [n, k] score below the best row, float32 [n, k] for each of `dims`."""
    found: dict[int, list[F32]] = {r: [] for r in dims}
    for part, r, scores in _scores(looks, hidden, dims):
        found[r].append(_behind(scores, ids[part]))
    return {r: np.concatenate(parts) for r, parts in found.items()}


def least_margin(behind: F32, logits: F32) -> float:
    """The smallest margin that spends half of what the quality rule allows.

    `behind` float32 [n, k] is how far the likeliest tokens score below the best row, `logits`
    [n, k] their logits, best first. Half, because other positions may be harder than these.
    """
    count = len(behind)
    allowed = int(MAX_MISS_RATE / 2 * count)
    winners = np.sort(behind[:, 0])[count - 1 - allowed]
    order = np.argsort(-behind, axis=None)
    lost = np.cumsum(_weights(logits, WARM).ravel()[order]) / count
    first = int(np.searchsorted(lost, (1 - MIN_MASS) / 2, side="right"))
    needed = max(winners, behind.ravel()[order[min(first, len(order) - 1)]])
    return float(np.nextafter(np.float32(needed), np.float32(np.inf)))


def judge(
    looks: Looks, head: PackedMatrix, hidden: F32, margins: Mapping[int, float], limit: int
) -> list[Outcome]:
    """How the looks of some numbers of dimensions, each with its margin, do on `hidden` [n, d]."""
    ids, logits = leaders(head, hidden)
    counts: dict[int, list[Ids]] = {r: [] for r in margins}
    behind: dict[int, list[F32]] = {r: [] for r in margins}
    for part, r, scores in _scores(looks, hidden, sorted(margins)):
        least = scores.max(axis=1, keepdims=True) - np.float32(margins[r])
        counts[r].append(np.count_nonzero(scores >= least, axis=1))
        behind[r].append(_behind(scores, ids[part]))
    outcomes = []
    for r, margin in margins.items():
        rows = np.concatenate(counts[r])
        whole = rows > limit
        kept = (np.concatenate(behind[r]) <= margin) | whole[:, None]
        gathered = float(np.where(whole, 0, rows).mean())
        nbytes = looks.nbytes(r) + gathered * looks.row_bytes + float(whole.mean()) * head.nbytes
        outcomes.append(
            Outcome(
                dims=r,
                margin=margin,
                positions=len(rows),
                misses=int(np.count_nonzero(~kept[:, 0])),
                mean_rows=float(np.where(whole, head.rows, rows).mean()),
                default_mass=_mass(logits, kept, SamplingParams()),
                warm_mass=_mass(logits, kept, WARM),
                head_bytes=round(nbytes),
            )
        )
    return outcomes


def _scores(looks: Looks, hidden: F32, dims: Sequence[int]) -> Iterator[tuple[slice, int, F32]]:
    """Yield (positions, dimensions, scores [positions, vocab]); each adds to the one before."""
    rotation, look = looks.values
    turned = rounded(rounded(hidden) @ rotation.T)
    step = max(1, _SCORES // len(look))
    for first in range(0, len(hidden), step):
        part = slice(first, first + step)
        states, done = turned[part], 0
        scores = np.zeros((len(states), len(look)), np.float32)
        for r in dims:
            scores += states[:, done:r] @ look[:, done:r].T
            done = r
            yield part, r, scores


def _behind(scores: F32, ids: Ids) -> F32:
    behind: F32 = scores.max(axis=1, keepdims=True) - np.take_along_axis(scores, ids, axis=1)
    return behind


def _mass(logits: F32, kept: NDArray[np.bool_], params: SamplingParams) -> float:
    """The mean share kept of the probability that `params` draw from; logits best first."""
    return float(np.where(kept, _weights(logits, params), 0).sum(axis=1).mean())


def _weights(logits: F32, params: SamplingParams) -> NDArray[np.float64]:
    """Probabilities [n, k] that `params` draw with; `logits` are the best, best first."""
    weights = np.exp((logits - logits[:, :1]).astype(np.float64) / params.temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    before = np.cumsum(weights, axis=1) - weights
    weights[(before >= params.top_p) | (weights < params.min_p * weights[:, :1])] = 0
    found: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return found
