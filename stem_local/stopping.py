"""Stopping long work that nobody wants any more, also while it waits for someone else."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from stem_runtime.errors import Cancelled

if TYPE_CHECKING:
    from filelock import BaseFileLock

_POLL = 0.1
"""Seconds between two looks at whether waiting is still wanted."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stop:
    """Whether somebody asked to stop, and what to tell them then.

    `asked` is called often and from any thread; None where nobody can ask. `sentence` becomes the
    text of Cancelled.
    """

    asked: Callable[[], bool] | None = None
    sentence: str = "It was cancelled."

    def saying(self, sentence: str) -> Stop:
        """The same, with something else to tell."""
        return dataclasses.replace(self, sentence=sentence)

    def check(self) -> None:
        """Raise Cancelled if somebody asked to stop."""
        if self.asked is not None and self.asked():
            raise Cancelled(self.sentence)

    @contextlib.contextmanager
    def hold(self, lock: BaseFileLock) -> Iterator[None]:
        """Hold the lock for the block. Raises Cancelled instead of waiting on."""
        from filelock import Timeout

        while True:
            self.check()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=_POLL)
                break
        try:
            yield
        finally:
            lock.release()

    def run(self, call: Callable[[], T]) -> T:
        """The result of a call that waits for a network. Raises Cancelled instead of waiting on.

        A call that is given up goes on in a thread of its own until it notices, so it must not
        change anything that the caller does not take away from it.
        """
        if self.asked is None:
            return call()
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        while not future.done():
            self.check()
            wait([future], timeout=_POLL)
        return future.result()


NEVER = Stop()
