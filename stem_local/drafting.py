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
    """That the last `length` tokens of a text stood before.

    `holds` is how likely a drafted token is taken to be right, those before it being right, as long
    as none was seen.
    """

    length: int
    holds: float


MATCHES = (Match(3, 0.8), Match(2, 0.6), Match(1, 0.35))
"""The longest first: it is the best guess."""

COSTS = {1: 1.08, 3: 1.3}
"""How many tokens are drafted, and what such a step takes, in steps without, before it was timed.

Kernels multiply by one token, two, or up to four at a time."""

_HELD = 0.1  # the weight of the last token that was drafted
_NEW = 0.2  # the weight of the last step that was timed
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
        """`most` tokens to follow `tokens`, and how much of their end stood there before.

        `tokens` are those of the call before and what came since. Of several places the latest
        counts; what followed it goes round where the text ends before the draft does. Returns
        ([], None) where the last token stood nowhere before.
        """
        self._enter(tokens)
        for match, places in self._places.items():
            if place := places.get(tuple(tokens[-match.length :])):
                period = len(tokens) - place
                return [tokens[place + i % period] for i in range(most)], match
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
    """How much drafting saves time here: running means of what it takes and of what it brings.

    They are of one answer, since it hangs on the text as much as on the machine. Seconds are those
    of whole steps. The times of steps without drafts go on being taken wherever nothing is found.
    """

    def __init__(self) -> None:
        self._plain = 0.0
        self._holds = {match: match.holds for match in MATCHES}
        self._cost = dict(COSTS)

    def count(self, match: Match, most: int) -> int:
        """How many tokens to draft after such a match, `most` at most: what saves most, or none.

        What is known of the ways not taken fades a little, so that they are tried again some time.
        """
        holds, best, found = self._holds[match], 1.0, 0
        for count, cost in self._cost.items():
            gain = sum(holds**i for i in range(count + 1)) / cost
            if count <= most and gain > best:
                best, found = gain, count
        for count, cost in COSTS.items():
            if count != found:
                self._cost[count] += _BACK * (cost - self._cost[count])
        if not found:
            self._holds[match] += _BACK * (match.holds - holds)
        return found

    def plain(self, seconds: float) -> None:
        """A step without a draft was made."""
        self._plain = _after(self._plain or seconds, seconds)

    def drafted(self, match: Match, count: int, accepted: int, seconds: float) -> None:
        """A step with a draft of `count` tokens was made, and the first `accepted` of them held."""
        holds = self._holds[match]
        for held in [1.0] * accepted + [0.0] * (accepted < count):
            holds += _HELD * (held - holds)
        self._holds[match] = holds
        if self._plain:
            alike = next(most for most in COSTS if most >= count)
            self._cost[alike] = _after(self._cost[alike], seconds / self._plain)


def _after(mean: float, value: float) -> float:
    """A running mean after another step; a machine that was busy elsewhere does not count."""
    return mean + _NEW * (min(value, _OUTLIER * mean) - mean)
