"""Resampling: which neurons a conversation uses, looked up again as it goes on.

Between looks nothing outside a layer's set of candidates is touched, the gate's rows included.
Layers take turns: every so many tokens each of them looks at all its neurons for one token, and its
set is drawn anew from what has been seen of the conversation.
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
"""Tokens from one look of a layer to its next."""

_MARGIN = 0.1  # of what tokens to come may miss is what the sets miss of the past, to begin with
_LEAST = 0.01  # the same, as little as it may become
_PART = 1 / 16  # of what was seen: less in a part of a prompt says too little about sets
_MOST = 0.75  # a set of more neurons than this saves less than looking for it costs
_KEEP = 0.9  # what a look leaves of the weight of all that was seen before it
_SMOOTH = 8  # tokens that the drift measure is averaged over
_BOUND = 0.7  # of what the sets should hold: under it, the conversation has drifted
_RECENT = 8  # rounds of looks of which not more than half may find drift
_WANTING = 3  # times what they may miss: sets that miss more over so many rounds are no use

Bools = NDArray[np.bool_]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
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
    starts a tenth of the way from 1 to `coverage`, or, where a prompt is read in parts, with what
    would have held `coverage` of the last part (see `part`). Every look corrects it by what the
    layers had outside their sets when they last looked, so that it is tokens to come of which they
    hold `coverage`.

    `period` tokens after its last look a layer is due. Of those that are due the ones that wait
    longest look, no more than n_layers / period (rounded up) with any one token, so that tokens
    cost about the same, and so does the memory that looks touch. When every layer has looked once
    more a round is complete.

    Call `start` before a prompt is read, `part` after each part of it and `seed` at its end; then,
    for every token, `before_token`, decode, `after_token`.

    Drift is measured by what the sets capture: the contribution of a token's active neurons over
    what the layer's last looks found, averaged over the last few tokens since its look and over
    layers. Under 70% of `coverage` all layers look with the next token. A round whose looks found
    less than that in the sets counts as drift too.

    Resampling switches itself off, and `reason` says why, when the sets hold more than three
    quarters of the neurons, when more than half of the last eight rounds found drift, or when the
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
        layers = len(modes)
        self._gated: I64 = np.flatnonzero([mode == "gate" for mode in modes])
        self._ffn, self._coverage, self._period = ffn, coverage, period
        self._turns = -(-len(self._gated) // period)
        self._everyone = mask_of(np.ones(ffn, np.bool_))
        self._seen: F32 = np.zeros((layers, groups_of(ffn) * GROUP), np.float32)
        self._heat, self._between = np.zeros_like(self._seen), np.zeros_like(self._seen)
        self._sets: Bools = np.zeros(self._seen.shape, np.bool_)
        self._masks: U32 | None = None
        # of each layer: tokens since its look, whether it looked since the prompt, what its looks
        # find, which share of the last one's was in its set, and how much of it is seen since
        self._since: I64 = np.zeros(layers, np.int64)
        self._unknown: Bools = np.ones(layers, np.bool_)
        self._baseline: F32 = np.zeros(layers, np.float32)
        self._held: F32 = np.full(layers, coverage, np.float32)
        self._level: F32 = np.ones(layers, np.float32)
        self._margin = _MARGIN
        self._drifting = False
        self._looking: I64 = self._gated[:0]
        self._round: set[int] = set()
        self._found: deque[bool] = deque(maxlen=_RECENT)
        self._recalls: deque[float] = deque(maxlen=_RECENT)
        self._cache: Sampled | None = None
        self._recall_sum, self._looks = 0.0, 0
        self.refreshes = 0
        self.drifts = 0
        self.reason = "" if len(self._gated) else "no layer has a gate test"

    @property
    def active(self) -> bool:
        """Whether there are sets; without them all neurons are candidates."""
        return not self.reason

    @property
    def share(self) -> float:
        """Mean size of the sets as a share of the neurons, over the layers that have them."""
        return float(self._sets[self._gated].sum() / (self._ffn * max(1, len(self._gated))))

    @property
    def recall(self) -> float:
        """Share of a look's contributions that was in the set, the mean over looks; 1 before."""
        return self._recall_sum / self._looks if self._looks else 1.0

    def start(self, cache: Sampled) -> None:
        """Make `cache` collect the contributions of the prompt that is read next."""
        self._heat[:], self._between[:] = 0, 0
        cache.candidates = None
        cache.heat = self._heat if self.active else None
        self._cache = cache

    def part(self) -> None:
        """Take in a part of the prompt, and how well sets drawn from what came before hold it.

        Of what sets may miss, a share is missed of the past, the rest is what the past has not
        shown; the latter falls with the length of the past, as Good and Turing found for words.
        """
        known = (self._seen + self._between)[self._gated]
        new, before = self._heat[self._gated], float(known.sum())
        after = before + float(new.sum())
        if self.active and known.any(axis=1).all() and after - before > _PART * before:
            margins = np.geomspace(1, _LEAST, 24)
            shares = 1 - margins * (1 - self._coverage)
            pairs = [pair for pair in zip(known, new, strict=True) if pair[1].any()]
            held = np.mean([held_by_sets(*pair, shares) for pair in pairs], axis=0)
            enough = np.append(np.flatnonzero(held >= self._coverage), len(margins) - 1)
            self._margin = 1 - float(1 - margins[enough[0]]) * before / after
        self._between += self._heat
        self._heat[:] = 0

    def seed(self) -> None:
        """Draw the sets from the prompt. From the second token on all layers are due, for a first
        measure of drift.
        """
        self._seen = np.float32(_KEEP) * self._seen + self._between + self._heat
        self._heat[:], self._between[:] = 0, 0
        self._baseline[:], self._level[:] = 0, 1
        self._unknown[:], self._since[:] = True, 0
        self._draw(self._gated)

    def before_token(self) -> list[int]:
        """Prepare the cache for a token; returns the layers that look with it."""
        if self._cache is None or not self.active:
            return []
        self._looking = self._due()
        self._between[self._looking] += self._heat[self._looking]
        self._heat[self._looking] = 0
        masks = self._masks
        if len(self._looking) == len(self._gated):
            masks = None
        elif masks is not None and len(self._looking):
            masks = masks.copy()  # a new array, since a card copies those that it has not seen
            masks[self._looking] = self._everyone
        self._cache.candidates = masks
        return [int(layer) for layer in self._looking]

    def after_token(self) -> None:
        """Take in what the token did, from the cache. One that ran dense says nothing."""
        cache = self._cache
        if cache is None or not self.active or cache.captured is None or not cache.captured.any():
            return
        self._since[self._gated] += 1
        self._follow(cache.captured)
        if len(self._looking):
            self._refresh(cache.captured)

    def _due(self) -> I64:
        """The layers that look with the next token."""
        if self._drifting or self._masks is None:
            return self._gated
        # not with the first token: its layers' candidates may first have to be copied together
        due = (self._unknown & (self._since > 0)) | (self._since >= self._period - 1)
        waiting = self._gated[due[self._gated]]
        longest = np.argsort(-self._since[waiting], kind="stable")
        return np.sort(waiting[longest[: self._turns]])

    def _follow(self, captured: F32) -> None:
        """Measure drift by the layers that did not look and know what looks find there."""
        others = self._baseline > 0
        others[self._looking] = False
        known = np.flatnonzero(others)
        if not len(known):
            return
        # a layer that rests runs dense, and captures nothing that is counted
        usual = self._baseline[known]
        ratio = np.where(captured[known] > 0, captured[known], usual) / usual
        self._level[known] += (ratio - self._level[known]) / _SMOOTH
        self._drifting = float(self._level[self._gated].mean()) < _BOUND * self._coverage

    def _refresh(self, captured: F32) -> None:
        """Draw the sets of the layers anew that looked, whose looks alone are in their heat."""
        now = self._looking
        look, held = self._heat[now], np.where(self._sets[now], self._heat[now], np.float32(0))
        recalls = _ratio(held.sum(axis=1), look.sum(axis=1))
        if self._masks is None:  # nothing was seen before
            recalls[:] = self._coverage
        self._held[now] = recalls
        self._recall_sum += float(recalls.sum())
        self._looks += len(now)
        self._correct(1 - float(self._held[self._gated].mean()), len(now) / len(self._gated))
        unseen = (look - held) * self._since[now, None].astype(np.float32)
        self._seen[now] = np.float32(_KEEP) * self._seen[now] + self._between[now] + held + unseen
        self._heat[now], self._between[now] = 0, 0
        before = np.where(self._baseline[now] > 0, self._baseline[now], captured[now])
        self._baseline[now] = np.where(captured[now] > 0, (before + captured[now]) / 2, before)
        self._level[now], self._since[now], self._unknown[now] = 1, 0, False
        self._draw(now)
        self._end_round(now)

    def _end_round(self, looked: I64) -> None:
        """Count a round where all layers have looked, and judge the last ones."""
        self._round.update(looked.tolist())
        if len(self._round) < len(self._gated):
            return
        self._round.clear()
        recall = float(self._held[self._gated].mean())
        self._found.append(self._drifting or recall < _BOUND * self._coverage)
        self._recalls.append(recall)
        self.drifts += self._found[-1]
        self.refreshes += 1
        if len(looked) == len(self._gated):
            self._drifting = False
        if sum(self._found) > _RECENT // 2:
            self._switch_off("the conversation changes faster than its sets of candidates")
        lately = sum(self._recalls) / len(self._recalls)
        if len(self._recalls) == _RECENT and 1 - lately > _WANTING * (1 - self._coverage):
            self._switch_off(f"its sets of candidates hold only {lately:.0%} of what tokens use")

    def _correct(self, missed: float, part: float) -> None:
        """Miss less of the past where looks missed more than they may, half way every round.

        `part` is how much of a round is made up for.
        """
        step = np.sqrt((1 - self._coverage) / max(missed, 1e-6))
        self._margin = float(np.clip(self._margin * np.clip(step, 0.5, 2) ** part, _LEAST, 1))

    def _draw(self, layers: I64) -> None:
        share = 1 - self._margin * (1 - self._coverage)
        for layer in layers:
            self._sets[layer] = smallest_set(self._seen[layer], share)
        masks = np.zeros((len(self._sets), len(self._everyone)), np.uint32)
        if self._masks is not None:
            masks[:] = self._masks
        for layer in layers:
            masks[layer] = mask_of(self._sets[layer])
        self._masks = masks if self._sets.any() else None
        if self.share > _MOST:
            self._switch_off(f"its sets of candidates hold {self.share:.0%} of the neurons")

    def _switch_off(self, reason: str) -> None:
        self.reason = reason
        if self._cache is not None:
            self._cache.candidates = self._cache.heat = None


def _ratio(part: F32, whole: F32) -> F32:
    """part / whole, 1 where the whole is nothing."""
    return np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)


def held_by_sets(seen: F32, now: F32, shares: F64) -> F64:
    """The share of `now` [n] in the smallest sets that hold `shares` [k] of `seen` [n]: [k]."""
    order = np.argsort(-seen)
    covered, held = (np.cumsum(heat[order], dtype=np.float64) for heat in (seen, now))
    last = np.searchsorted(covered, shares * covered[-1]).clip(max=len(order) - 1)
    found: F64 = held[last] / held[-1]
    return found


def smallest_set(heat: F32, coverage: float) -> Bools:
    """The fewest entries of float32 [n] that hold a share `coverage` of their sum: bool [n].

    Entries that are equal to the smallest one taken are taken too; zeros never are.
    """
    ordered = np.sort(heat)[::-1]
    held = np.cumsum(ordered, dtype=np.float64)
    last = min(int(np.searchsorted(held, coverage * held[-1])), len(heat) - 1)
    found: Bools = (heat >= ordered[last]) & (heat > 0)
    return found
