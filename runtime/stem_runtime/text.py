"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import UsageError

MAX_STOPS = 16
MAX_STOP_CHARS = 512


class StopMatcher:
    """Passes text through until one of `stops` comes, however the text is cut into pieces.

    What could still turn into a stop is held back, so that no part of one is ever shown. The stop
    that is complete first counts. Raises UsageError for stops that are empty, too many or too long.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or len(stops) > MAX_STOPS:
            raise UsageError(f"stop must be a list of at most {MAX_STOPS} texts.")
        for stop in stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
                raise UsageError(
                    f"Each stop must be a text of 1 to {MAX_STOP_CHARS} characters, not "
                    f"{stop!r:.80}."
                )
        self._stops = tuple(stops)
        self._first = frozenset(stop[0] for stop in stops)
        self._reach = max(map(len, stops), default=1) - 1
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown now, and whether a stop has come."""
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held, self._stopped = "", True
            return text[: min(found)[1]], True
        cut = self._first_open(text)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """Return what is still held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_open(self, text: str) -> int:
        """Where the longest end of `text` begins that begins a stop."""
        for start in range(max(0, len(text) - self._reach), len(text)):
            if text[start] in self._first:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)
