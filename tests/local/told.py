"""A reporter for tests of pulls."""

from __future__ import annotations


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: dict[str, list[tuple[int, int]]] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, step: str, done: int, total: int) -> None:
        self.steps.setdefault(step, []).append((done, total))
