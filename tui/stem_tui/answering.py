"""One answer, computed in a thread of its own: the screen asks it for news and never waits."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stem_local.completion import Chunk
    from stem_local.generation import Stream
    from stem_local.live import Live
    from stem_local.sparsity import Sparsity


class Answering:
    """Runs a stream to its end. Made and asked on the event loop's thread.

    `last` is the chunk that ended the answer, `error` what ended it instead; both are None until
    `done`. What came before an error stays to be taken.
    """

    def __init__(self, start: Callable[[], Stream]) -> None:
        """`start` is called in the thread: reading a long prompt into tokens takes a while."""
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._parts: deque[str] = deque()
        self._stream: Stream | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)
        self.last: Chunk | None = None
        self.error: Exception | None = None
        self._thread.start()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def take(self) -> str:
        """The text that came since the last call."""
        parts = []
        while self._parts:
            parts.append(self._parts.popleft())
        return "".join(parts)

    def live(self) -> Live | None:
        """Where the answer stands, None before it has begun."""
        return None if self._stream is None else self._stream.live()

    def stop(self) -> None:
        """End the answer with what there is of it, soon."""
        self._stopping.set()
        if self._stream is not None:
            self._stream.stop()

    def steer(self, sparsity: Sparsity, quality: float) -> None:
        """Leave out something else from the next token on. Raises UsageError where it cannot be."""
        if self._stream is not None:
            self._stream.steer(sparsity, quality)

    async def wait(self, seconds: float) -> None:
        """Wait for the end, this long at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    def _run(self) -> None:
        try:
            self._stream = self._start()
            if self._stopping.is_set():
                self._stream.stop()
            for chunk in self._stream:
                if chunk.text:
                    self._parts.append(chunk.text)
                if chunk.finish_reason is not None:
                    self.last = chunk
        except Exception as error:
            self.error = error
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._ended.set)
