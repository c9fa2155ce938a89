"""Going back through what was sent, and forth again to what was being written."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 200
"""Messages that are kept."""


class Recall:
    """What was sent, oldest first, and a place in it: the draft lies after the newest."""

    def __init__(self) -> None:
        self._sent: list[str] = []
        self._at = 0
        self._draft = ""

    def load(self, sent: Sequence[str]) -> None:
        """Go back through these instead."""
        self._sent = list(sent[-MOST:])
        self._at = len(self._sent)

    def add(self, text: str) -> None:
        """The newest thing that was sent; once only if it is sent again and again."""
        if self._sent[-1:] != [text]:
            self._sent.append(text)
        self.load(self._sent)

    def step(self, step: int, current: str) -> str | None:
        """The text `step` places on from `current`; None where there is none."""
        at = self._at + step
        if not 0 <= at <= len(self._sent):
            return None
        if self._at == len(self._sent):
            self._draft = current
        self._at = at
        return self._draft if at == len(self._sent) else self._sent[at]
