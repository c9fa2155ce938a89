"""How often a running answer is drawn: often enough to read along, without slowing it down."""

from __future__ import annotations

import time

FASTEST = 1 / 15
"""Seconds between two updates that cost nothing."""

SLOWEST = 0.5

_SHARE = 0.05
"""Of one core that drawing may take: the answer is computed on all of them, and its threads wait
for each other, so what drawing takes from one is lost on every one."""


class Pace:
    """Spreads updates so that this thread's own work stays a small share of the time."""

    def __init__(self) -> None:
        self._spent = time.thread_time()
        self.interval = FASTEST

    def drawn(self) -> None:
        """An update was made, and all that followed from the one before."""
        now = time.thread_time()
        cost, self._spent = now - self._spent, now
        wanted = min(max(cost / _SHARE, FASTEST), SLOWEST)
        # one dear update, the first of a new block say, should not make the next ones rare
        self.interval += (wanted - self.interval) / 3
