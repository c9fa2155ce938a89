"""Drafts of what comes next, looked up in the text so far, and whether they are worth their time.

What a text says twice can be guessed the second time: where its last tokens stood before, what
followed them there is a draft. One step reads it beside the text's last token, and every token of
it that is then chosen anyway saves a step; the first that is not ends it. See Saxena, "Prompt
Lookup Decoding" (2023), and Yang et al., "Inference with Reference" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """What is done where the last `length` tokens of a text stood before.

    `drafted` tokens are read beside the last one at most. Before any were seen, `accepted` of them
    are taken to hold, and the step to take `cost` times as long as one without.
    """

    length: int
    drafted: int
    accepted: float
    cost: float


MATCHES = (Match(3, 3, 1.8, 1.3), Match(2, 3, 1.0, 1.3), Match(1, 1, 0.35, 1.08))
"""The longest first: it is the best guess."""

_NEW = 0.2  # the weight of what was seen last
_BACK = 0.004  # how far an expectation that is not tested goes back to where it began
_OUTLIER = 2.0  # a step that took more than so many usual ones counts as that many


class PromptLookup:
    """Finds what followed the last tokens of a growing text where they stood before.

    Each token is entered once, in constant time.
    """

    def __init__(self) -> None:
        self._places: dict[Match, dict[tuple[int, ...], int]] = {match: {} for match in MATCHES}
        self._entered = 0

    def propose(self, tokens: Sequence[int], most: int) -> tuple[list[int], Match | None]:
        """Up to `most` tokens to follow `tokens`, and how much of their end stood there before.

        `tokens` are those of the call before and what came since. Of several places the latest
        counts; what followed it goes round where the text ends before the draft does. Returns
        ([], None) where the last token stood nowhere before.
        """
        self._enter(tokens)
        for match, places in self._places.items():
            if place := places.get(tuple(tokens[-match.length :])):
                period = len(tokens) - place
                count = min(most, match.drafted)
                return [tokens[place + i % period] for i in range(count)], match
        return [], None

    def _enter(self, tokens: Sequence[int]) -> None:
        """Note the place behind all tokens that end before the last, behind which is nothing."""
        for match, places in self._places.items():
            start = max(0, self._entered - match.length + 1)
            new = tokens[start:-1]
            grams = zip(*(new[i:] for i in range(match.length)), strict=False)
            places.update((gram, start + match.length + i) for i, gram in enumerate(grams))
        self._entered = max(0, len(tokens) - 1)


class Gain:
    """Whether drafting saves time here: running means of what it takes and of what it brings.

    They are of one answer, since it hangs on the text as much as on the machine. Seconds are those
    of whole steps. The times of steps without drafts go on being taken wherever nothing is found.
    """

    def __init__(self) -> None:
        self._plain = 0.0
        self._accepted = {match: match.accepted for match in MATCHES}
        self._cost = {match: match.cost for match in MATCHES}

    def expected(self, match: Match) -> bool:
        """Whether a draft after such a match is likely to save time.

        Where not, what is known fades a little, so that it is tried again some time.
        """
        if 1 + self._accepted[match] >= self._cost[match]:
            return True
        self._accepted[match] += _BACK * (match.accepted - self._accepted[match])
        self._cost[match] += _BACK * (match.cost - self._cost[match])
        return False

    def plain(self, seconds: float) -> None:
        """A step without a draft was made."""
        self._plain = _after(self._plain or seconds, seconds)

    def drafted(self, match: Match, accepted: int, seconds: float) -> None:
        """A step with a draft was made, and so many of its tokens held."""
        self._accepted[match] += _NEW * (accepted - self._accepted[match])
        if self._plain:
            self._cost[match] = _after(self._cost[match], seconds / self._plain)


def _after(mean: float, value: float) -> float:
    """A running mean after another step; a machine that was busy elsewhere does not count."""
    return mean + _NEW * (min(value, _OUTLIER * mean) - mean)
