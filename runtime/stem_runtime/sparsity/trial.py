"""What a look would have kept and left out, in the kernels' own roundings but many at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.cpu.layout import BINS_PER_NAT, LAG_BINS, NEAR
from ..kernels.oracle import OUTLIERS
from ..quant import PackedMatrix, unpack
from ..sampling import SamplingParams
from .head import Looks, blocks, rounded
from .profile import MAX_MISS_RATE, MIN_MASS

TOP = 40
"""How many of the likeliest tokens are followed, the most that default sampling draws from."""

WARM = SamplingParams(temperature=1.0)
"""The widest sampling that a look answers for: default filters, at most this temperature."""

SPENT = 0.25
"""Share of what the quality rule allows that the choice of a margin spends."""

_WIDEST = LAG_BINS - 1  # bins, the last being for all that is farther behind
WIDEST = LAG_BINS / BINS_PER_NAT
"""Nats of the widest margin that there can be."""

_MANY = 4  # times the leaders: more scores of a block are cut down before they are sorted
_SCORES = 1 << 22  # scores held at a time

F32 = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a look did on some positions; the fields are those of `profile.HeadSetting`."""

    dims: int
    margin: float
    limit: int
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
    states = rounded(hidden, OUTLIERS)
    ids = np.zeros((len(states), count), np.int64)
    logits = np.full((len(states), count), -np.inf, np.float32)
    for start, block in blocks(head):
        weights = unpack(block).T
        step = max(1, _SCORES // block.rows)
        for first in range(0, len(states), step):
            part = slice(first, first + step)
            _merge(ids[part], logits[part], states[part] @ weights, start)
    return ids, logits


def _merge(ids: Ids, logits: F32, found: F32, start: int) -> None:
    """Let the block's scores `found` [n, rows], of tokens from `start` on, compete for the best."""
    count = ids.shape[1]
    better = found > logits[:, -1:]
    hits = np.count_nonzero(better, axis=1)
    rows = np.flatnonzero(hits)
    if not len(rows):
        return
    if hits.max() > _MANY * count:
        found = found[rows]
        best = np.argpartition(found, found.shape[1] - count, axis=1)[:, -count:]
        scores = np.take_along_axis(found, best, axis=1)
    else:
        # after the first blocks few scores are better, and only those need sorting
        best = np.zeros((len(rows), hits.max()), np.int64)
        scores = np.full(best.shape, -np.inf, np.float32)
        filled = np.arange(best.shape[1]) < hits[rows, None]
        best[filled] = np.nonzero(better)[1]
        scores[filled] = found[better]
    both = np.concatenate([logits[rows], scores], axis=1)
    names = np.concatenate([ids[rows], best + start], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :count]
    logits[rows] = np.take_along_axis(both, order, axis=1)
    ids[rows] = np.take_along_axis(names, order, axis=1)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look sees at some positions, in the bins that the kernels count rows in.

    `behind` int64 [n, k] is how far the likeliest tokens score below the mark, `counts` int64
    [n, LAG_BINS] how many rows are that far behind or less.
    """

    behind: Ids
    counts: Ids

    def ends(self, margin: float, limit: int) -> Ids:
        """The first bin at each position whose rows are left out; 0 where the whole head is
        computed, since the first bin alone has more than `limit`, or no row is within the margin.
        """
        ends: Ids = np.count_nonzero(self.counts <= limit, axis=1)
        ends = np.minimum(ends, round(margin * BINS_PER_NAT))
        return np.where(self._before(ends) > 0, ends, 0)

    def rows(self, ends: Ids, vocab: int) -> Ids:
        """How many rows are computed at each position."""
        return np.where(ends == 0, vocab, self._before(ends))

    def kept(self, ends: Ids) -> NDArray[np.bool_]:
        """Which of the likeliest tokens [n, k] are computed."""
        kept: NDArray[np.bool_] = (self.behind < ends[:, None]) | (ends == 0)[:, None]
        return kept

    def _before(self, ends: Ids) -> Ids:
        return np.take_along_axis(self.counts, np.maximum(ends - 1, 0)[:, None], axis=1)[:, 0]


def see(looks: Looks, hidden: F32, ids: Ids, logits: F32, dims: int) -> Seen:
    """What the look of some number of dimensions sees; `ids`, `logits` [n, k] are of the likeliest
    tokens.
    """
    rotation, look = looks.values
    states = rounded(hidden, OUTLIERS)
    turned, apart = rounded(states @ rotation.T)[:, :dims], logits - (states @ looks.mean)[:, None]
    columns = look[:, :dims].T
    behind, counts = [], []
    step = max(1, _SCORES // len(look))
    for first in range(0, len(hidden), step):
        part = slice(first, first + step)
        lags = turned[part] @ columns
        np.subtract(_mark(lags, ids[part], apart[part]), lags, out=lags)
        lags *= np.float32(BINS_PER_NAT)
        bins = np.clip(lags, 0, np.float32(_WIDEST), out=lags).astype(np.uint8)
        behind.append(np.take_along_axis(bins, ids[part], axis=1).astype(np.int64))
        counts.append(np.array([np.bincount(row, minlength=LAG_BINS) for row in bins]))
    return Seen(np.concatenate(behind), np.cumsum(np.concatenate(counts), axis=1))


def _mark(scores: F32, ids: Ids, logits: F32) -> F32:
    """What margins are measured from, float32 [n, 1].

    `logits` [n, k] are those of `ids` less what the mean row adds. Where none of these tokens
    scores near the best row, those that do have no higher logits than the least of them.
    """
    best = scores.max(axis=1, keepdims=True)
    near = np.take_along_axis(scores, ids, axis=1) >= best - np.float32(NEAR)
    found = np.where(near, logits, logits[:, -1:]).max(axis=1, keepdims=True)
    mark: F32 = (best + found) / 2
    return mark


def least_margin(seen: Seen, logits: F32, limit: int) -> float | None:
    """The smallest margin that spends a quarter of what the quality rule allows, None for none.

    `logits` [n, k] are those of the likeliest tokens, best first; at most `limit` rows are computed
    whatever the margin. A quarter, because other positions may be harder than these.
    """
    count = len(logits)
    ends = seen.ends(LAG_BINS / BINS_PER_NAT, limit)
    needed = np.where(seen.kept(ends), seen.behind, LAG_BINS)
    needed[ends == 0] = 0
    allowed = int(SPENT * MAX_MISS_RATE * count)
    winners = np.sort(needed[:, 0])[count - 1 - allowed]
    order = np.argsort(-needed, axis=None)
    lost = np.cumsum(_weights(logits, WARM).ravel()[order]) / count
    first = int(np.searchsorted(lost, SPENT * (1 - MIN_MASS), side="right"))
    bins = 1 + int(max(winners, needed.ravel()[order[min(first, len(order) - 1)]]))
    return bins / BINS_PER_NAT if bins <= _WIDEST else None


def judge(
    looks: Looks, head: PackedMatrix, seen: Seen, logits: F32, dims: int, margin: float, limit: int
) -> Outcome:
    """How the look of `dims` dimensions does where it saw `seen`, logits [n, k] being the best."""
    ends = seen.ends(margin, limit)
    kept, rows, whole = seen.kept(ends), seen.rows(ends, head.rows), ends == 0
    gathered = float(np.where(whole, 0, rows).mean())
    nbytes = looks.nbytes(dims) + gathered * looks.row_bytes + float(whole.mean()) * head.nbytes
    return Outcome(
        dims=dims,
        margin=margin,
        limit=limit,
        positions=len(rows),
        misses=int(np.count_nonzero(~kept[:, 0])),
        mean_rows=float(rows.mean()),
        default_mass=_mass(logits, kept, SamplingParams()),
        warm_mass=_mass(logits, kept, WARM),
        head_bytes=round(nbytes),
    )


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
