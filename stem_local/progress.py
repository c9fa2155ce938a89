"""How long work tells its caller where it stands, without knowing any screen."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from .stopping import NEVER, Stop

_INTERVAL = 0.1
"""Seconds between two updates: a bar need not be told of every chunk."""


LEARN = "learn"
"""The step of a pull in which the output head is calibrated."""


class Reporter(Protocol):
    """What a caller implements to follow a pull. Calls may come from any thread, one at a time."""

    def note(self, text: str) -> None:
        """One sentence worth telling the user."""

    def update(self, step: str, done: int, total: int) -> None:
        """`done` of `total` bytes of the step "download" or "pack", or milliseconds of "learn", of
        which the total is an estimate; `done` never falls."""


def learning(done: int, total: int) -> str:
    """What is told of the step "learn": how long it still takes, or when it is done how long it
    took."""
    seconds = (total if done == total else total - done) / 1000
    return f"Learning which words to look at: {seconds:.0f} s"


class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None:
        del text

    def update(self, step: str, done: int, total: int) -> None:
        del step, done, total


class Meter:
    """Counts one step's bytes and passes them on: monotonic, bounded by the total, throttled.

    Each count is a chance to stop: Cancelled is raised if `stop` says so.
    """

    def __init__(self, reporter: Reporter, step: str, total: int, stop: Stop = NEVER) -> None:
        self._reporter = reporter
        self._stop = stop
        self._step = step
        self._total = max(total, 1)
        self._done = -1
        self._told = 0.0
        self._lock = threading.Lock()

    def reach(self, done: int, total: int | None = None) -> None:
        """The step has got to `done` bytes in all; `total` corrects an estimate."""
        self._stop.check()
        with self._lock:
            if total is not None:
                self._total = max(total, 1)
            done = min(done, self._total)
            now = time.monotonic()
            if done <= self._done or (done < self._total and now - self._told < _INTERVAL):
                return
            self._done, self._told = done, now
            self._reporter.update(self._step, done, self._total)
