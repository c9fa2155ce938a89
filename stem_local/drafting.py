"""Drafts of what comes next, looked up in the text so far, and whether they are worth their time.

What a text says twice can be guessed the second time: where its last tokens stood before, what
followed them there is a draft. One step reads it beside the text's last token, and every token of
it that is then chosen anyway saves a step; the first that is not ends it. See Saxena, "Prompt
Lookup Decoding" (2023), and Yang et al., "Inference with Reference" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, pairwise

LONG, SHORT = 3, 2
"""How many tokens at the end of a text are looked up: the longer match is the better guess."""

_ACCEPTED = {LONG: 1.8, SHORT: 1.0}  # how many tokens of a draft hold, before one was seen
_COST = 1.3  # of a step with a draft in steps without, before both were timed
_NEW = 0.2  # the weight of what was seen last
_BACK = 0.004  # how far an expectation that is not tested goes back to where it began
_OUTLIER = 2.0  # a step that took more than so many usual ones counts as that many


class PromptLookup:
    """Finds what followed the last tokens of a growing text where they stood before.

    Each token is entered once, in constant time.
    """

    def __init__(self) -> None:
        self._long: dict[tuple[int, int, int], int] = {}
        self._short: dict[tuple[int, int], int] = {}
        self._entered = 0

    def propose(self, tokens: Sequence[int], most: int) -> tuple[list[int], int]:
        """`most` tokens to follow `tokens`, and how many at their end stood there before.

        `tokens` are those of the call before and what came since. Of several places the latest
        counts; what followed it goes round where the text ends before the draft does. Returns
        ([], 0) where neither the last three tokens nor the last two stood anywhere before.
        """
        self._enter(tokens)
        if len(tokens) <= SHORT:
            return [], 0
        first, second, third = tokens[-LONG:]
        if place := self._long.get((first, second, third)):
            length = LONG
        elif place := self._short.get((second, third)):
            length = SHORT
        else:
            return [], 0
        period = len(tokens) - place
        return [tokens[place + i % period] for i in range(most)], length

    def _enter(self, tokens: Sequence[int]) -> None:
        """Note the place behind every two and three tokens but the last, which is empty yet."""
        start = max(0, self._entered - SHORT + 1)
        pairs = pairwise(tokens[start:-1])
        self._short.update(zip(pairs, count(start + SHORT), strict=False))
        start = max(0, self._entered - LONG + 1)
        new = tokens[start:-1]
        triples = zip(new, new[1:], new[2:], strict=False)
        self._long.update(zip(triples, count(start + LONG), strict=False))
        self._entered = len(tokens) - 1


class Gain:
    """Whether drafting saves time here: running means of what it takes and of what it brings.

    They are of one answer, since it hangs on the text as much as on the machine. Seconds are those
    of whole steps. The times of steps without drafts go on being taken wherever nothing is found.
    """

    def __init__(self) -> None:
        self._accepted = dict(_ACCEPTED)
        self._plain = self._drafted = 0.0

    def expected(self, length: int) -> bool:
        """Whether a draft after `length` tokens that were found is likely to save time.

        Where not, what is known fades a little, so that it is tried again some time.
        """
        if (1 + self._accepted[length]) * self._plain >= self._drafted:
            return True
        self._accepted[length] += _BACK * (_ACCEPTED[length] - self._accepted[length])
        self._drafted += _BACK * (_COST * self._plain - self._drafted)
        return False

    def plain(self, seconds: float) -> None:
        """A step without a draft was made."""
        self._plain = _after(self._plain or seconds, seconds)
        self._drafted = self._drafted or _COST * self._plain

    def drafted(self, length: int, accepted: int, seconds: float) -> None:
        """A step with a draft was made, and so many of its tokens held."""
        self._accepted[length] += _NEW * (accepted - self._accepted[length])
        if self._plain:
            self._drafted = _after(self._drafted, seconds)


def _after(mean: float, seconds: float) -> float:
    """A running mean after another step; a machine that was busy elsewhere does not count."""
    return mean + _NEW * (min(seconds, _OUTLIER * mean) - mean)
