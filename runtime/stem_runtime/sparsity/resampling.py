"""Resampling: which neurons a conversation uses, looked up again as it goes on.

Between looks nothing outside a layer's set of candidates is touched, the gate's rows included.
Every so many tokens one token looks at all neurons, and the sets are drawn anew from what has been
seen of the conversation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..quant import GROUP, groups_of
from .neurons import mask_of
from .plan import Mode

COVERAGE = 0.98
"""Share of the contributions of tokens to come that the sets are meant to hold."""

PERIOD = 32
"""Tokens from one full look to the next."""

_MARGIN = 0.1  # of what tokens to come may miss is what the sets miss of the past, to begin with
_MOST = 0.75  # a set of more neurons than this saves less than looking for it costs
_KEEP = 0.9  # what a look leaves of the weight of all that was seen before it
_SMOOTH = 8  # tokens that the drift measure is averaged over
_BOUND = 0.7  # of what the sets should hold: under it, the conversation has drifted
_RECENT = 8  # looks of which not more than half may find drift
_WANTING = 3  # times what they may miss: sets that miss more over so many looks are no use

Bools = NDArray[np.bool_]
F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]


class Sampled(Protocol):
    """What resampling needs of a `KVCache`, which says what the arrays are."""

    candidates: U32 | None
    heat: F32 | None
    captured: F32 | None


class Resampler:
    """The candidate sets of one conversation, which cover a share of what it has used so far.

    A layer's set is the smallest that holds a certain share of the contributions seen: those of
    the prompt, then those since, the older ones counting less at every look. A neuron outside the
    sets is seen in looks only, so there it counts for all tokens since the last one. The share
    starts a tenth of the way from 1 to `coverage`, and every look corrects it by what its own
    token had outside the sets, so that it is tokens to come of which they hold `coverage`.

    Call `start` before a prompt is read and `seed` after; then, for every token, `before_token`,
    decode, `after_token`.

    Drift is measured by what the sets capture: the contribution of a token's active neurons over
    what full looks found, averaged over layers and over the last few tokens. Under 70% of
    `coverage` the next token looks at once. A look whose own token had less than that in the sets
    counts as drift too.

    Resampling switches itself off, and `reason` says why, when the sets hold more than three
    quarters of the neurons, when more than half of the last eight looks found drift, or when the
    tokens of these had more than three times as much outside the sets as `coverage` allows.
    """

    def __init__(
        self, modes: Sequence[Mode], ffn: int, *, coverage: float = COVERAGE, period: int = PERIOD
    ) -> None:
        """`modes` are those of an `FfnPlan`; only "gate" layers have candidates, of `ffn` neurons.

        Raises ValueError for a coverage outside 0..1 or a period under 2 tokens.
        """
        if not 0 < coverage <= 1 or period < 2:
            raise ValueError(f"coverage {coverage} is not in (0, 1] or period {period} is under 2")
        self._gated = np.array([mode == "gate" for mode in modes], np.bool_)
        self._ffn, self._coverage, self._period = ffn, coverage, period
        self._seen: F32 = np.zeros((len(modes), groups_of(ffn) * GROUP), np.float32)
        self._heat, self._between = np.zeros_like(self._seen), np.zeros_like(self._seen)
        self._sets: Bools = np.zeros(self._seen.shape, np.bool_)
        self._masks: U32 | None = None
        self._baseline: F32 | None = None
        self._level, self._margin = 1.0, _MARGIN
        self._since = 0
        self._drifting = self._looking = False
        self._found: deque[bool] = deque(maxlen=_RECENT)
        self._recalls: deque[float] = deque(maxlen=_RECENT)
        self._cache: Sampled | None = None
        self._held = 0.0
        self.refreshes = 0
        self.drifts = 0
        self.reason = "" if self._gated.any() else "no layer has a gate test"

    @property
    def active(self) -> bool:
        """Whether there are sets; without them all neurons are candidates."""
        return not self.reason

    @property
    def share(self) -> float:
        """Mean size of the sets as a share of the neurons, over the layers that have them."""
        return float(self._sets[self._gated].sum() / (self._ffn * max(1, self._gated.sum())))

    @property
    def recall(self) -> float:
        """Share of a look's contributions that was in the sets, the mean over looks; 1 before."""
        return self._held / self.refreshes if self.refreshes else 1.0

    def start(self, cache: Sampled) -> None:
        """Make `cache` collect the contributions of the prompt that is read next."""
        self._heat[:] = 0
        cache.candidates = None
        cache.heat = self._heat if self.active else None
        self._cache = cache

    def seed(self) -> None:
        """Draw the sets from the prompt. The next token looks, for a first measure of drift."""
        self._seen = np.float32(_KEEP) * self._seen + self._heat
        self._heat[:], self._between[:] = 0, 0
        self._baseline, self._since = None, 0
        self._draw()

    def before_token(self) -> bool:
        """Prepare the cache for a token; True when it takes a full look."""
        if self._cache is None or not self.active:
            return False
        due = self._baseline is None or self._since >= self._period - 1
        self._looking = due or self._drifting
        if self._looking:
            self._between += self._heat
            self._heat[:] = 0
        self._cache.candidates = None if self._looking else self._masks
        return self._looking

    def after_token(self) -> None:
        """Take in what the token did, from the cache. One that ran dense says nothing."""
        cache = self._cache
        if cache is None or not self.active or cache.captured is None or not cache.captured.any():
            return
        captured = cache.captured[self._gated]
        if self._looking:
            self._refresh(captured)
        elif self._baseline is not None:
            self._since += 1
            # a layer that rests runs dense, and captures nothing that is counted
            captured = np.where(captured > 0, captured, self._baseline)
            self._level += (_mean_ratio(captured, self._baseline) - self._level) / _SMOOTH
            self._drifting = self._level < _BOUND * self._coverage

    def _refresh(self, captured: F32) -> None:
        """Draw the sets anew after a look, whose contributions alone are in the heat."""
        look, held = self._heat, np.where(self._sets, self._heat, np.float32(0))
        recall = _mean_ratio(held[self._gated].sum(axis=1), look[self._gated].sum(axis=1))
        if self._masks is None:  # nothing was seen before
            recall = self._coverage
        self._correct(1 - recall)
        self._found.append(self._drifting or recall < _BOUND * self._coverage)
        self._recalls.append(recall)
        self._held += recall
        self.drifts += self._found[-1]
        self.refreshes += 1
        unseen = (look - held) * np.float32(self._since + 1)
        self._seen = np.float32(_KEEP) * self._seen + self._between + held + unseen
        self._heat[:], self._between[:] = 0, 0
        before = captured if self._baseline is None else self._baseline
        self._baseline = ((before + captured) / 2).astype(np.float32)
        self._level, self._since, self._drifting = 1.0, 0, False
        self._draw()
        if sum(self._found) > _RECENT // 2:
            self._switch_off("the conversation changes faster than its sets of candidates")
        lately = sum(self._recalls) / len(self._recalls)
        if len(self._recalls) == _RECENT and 1 - lately > _WANTING * (1 - self._coverage):
            self._switch_off(f"its sets of candidates hold only {lately:.0%} of what tokens use")

    def _correct(self, missed: float) -> None:
        """Miss less of the past where a look missed more than it may, half way each time."""
        step = np.sqrt((1 - self._coverage) / max(missed, 1e-6))
        self._margin = float(np.clip(self._margin * np.clip(step, 0.5, 2), 0.01, 1))

    def _draw(self) -> None:
        share = 1 - self._margin * (1 - self._coverage)
        for layer in np.flatnonzero(self._gated):
            self._sets[layer] = smallest_set(self._seen[layer], share)
        self._masks = np.stack([mask_of(bits) for bits in self._sets]) if self._sets.any() else None
        if self.share > _MOST:
            self._switch_off(f"its sets of candidates hold {self.share:.0%} of the neurons")

    def _switch_off(self, reason: str) -> None:
        self.reason = reason
        if self._cache is not None:
            self._cache.candidates = self._cache.heat = None


def _mean_ratio(part: F32, whole: F32) -> float:
    """The mean of part / whole over layers, 1 for those where the whole is nothing."""
    ratio = np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)
    return float(ratio.mean())


def smallest_set(heat: F32, coverage: float) -> Bools:
    """The fewest entries of float32 [n] that hold a share `coverage` of their sum: bool [n].

    Entries that are equal to the smallest one taken are taken too; zeros never are.
    """
    ordered = np.sort(heat)[::-1]
    held = np.cumsum(ordered, dtype=np.float64)
    last = min(int(np.searchsorted(held, coverage * held[-1])), len(heat) - 1)
    found: Bools = (heat >= ordered[last]) & (heat > 0)
    return found
