"""Numbers that callers pass: what counts as one, and within which limits."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .errors import UsageError


@dataclass(frozen=True, slots=True)
class Limit:
    """The numbers that an argument may be: from `low`, or `above` it, to `high`."""

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        end = f" to {self.high}" if self.high < math.inf else " up"
        return f"{kind} {'above' if self.above else 'from'} {self.low}{end}"

    def check(self, name: str, value: object) -> Any:
        """The number as Python's own int, or float if not `whole`; NumPy's are taken as well.

        Raises UsageError for anything else than a number within the limits.
        """
        number = whole(value) if self.whole else real(value)
        if (
            number is None
            or not (self.low < number if self.above else self.low <= number)
            or number > self.high
        ):
            raise UsageError(f"{name} must be {self}, not {shown(value)}.")
        return number


def whole(value: object) -> int | None:
    """An integer of any kind as an int, None for what is none; neither is a bool."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:  # of an array of several, or of NumPy's bool
        return None


def real(value: object) -> float | None:
    """A real number of any kind as a float, None for what is none or too large; neither is a bool.

    NaN stays what it is.
    """
    number = value if isinstance(value, Real) and not isinstance(value, bool) else whole(value)
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None


def shown(value: object) -> str:
    """A refused value for an error: Python does not write out numbers of thousands of digits."""
    try:
        return f"{value!r:.40}"
    except ValueError:
        return "a number of thousands of digits"
