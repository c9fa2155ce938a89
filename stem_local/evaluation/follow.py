"""Going through long work item by item, told and stoppable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from stem_runtime.engine import Cancelled

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Follow:
    """Who follows the work: `progress` receives (step, done, total), `cancel` is asked often."""

    progress: Callable[[str, int, int], None] | None = None
    cancel: Callable[[], bool] | None = None

    def each(self, step: str, items: Sequence[T]) -> Iterator[T]:
        """Yield the items. Raises Cancelled."""
        for done, item in enumerate(items):
            if self.cancel is not None and self.cancel():
                raise stopped()
            self._tell(step, done, len(items))
            yield item
        self._tell(step, len(items), len(items))

    def _tell(self, step: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(step, done, total)


def stopped() -> Cancelled:
    """What to raise when the work was cancelled."""
    return Cancelled("The evaluation was stopped; nothing of it is kept.")
