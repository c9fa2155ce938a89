"""The model that answers: opened and closed in threads, so that the screen never waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from stem_local.errors import UsageError

if TYPE_CHECKING:
    from stem_local.model import Model

Opener = Callable[[str | None], "Model"]


class Seat:
    """Holds one model at a time; another one takes its place only once it is open."""

    def __init__(self, opener: Opener) -> None:
        """`opener` opens the model of that name, None for the default one; it may block."""
        self._opener = opener
        self._opening: asyncio.Task[Model] | None = None
        self._closed = threading.Event()
        self.model: Model | None = None

    @property
    def opening(self) -> bool:
        return self._opening is not None and not self._opening.done()

    async def take(self, name: str | None) -> Model:
        """Open a model and close the one before. Raises StemError; the one before then stays."""
        if self._opening is not None and not self._opening.done():
            await asyncio.wait([self._opening])
        self._opening = asyncio.create_task(self._open(name))
        return await asyncio.shield(self._opening)

    async def ready(self) -> Model:
        """The model, once it is open. Raises UsageError where none is or comes."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self.model is None:
            raise UsageError("No model is open: choose one with F2, or /model NAME.")
        return self.model

    async def close(self) -> None:
        """Let go of the model, and wait no more for one that is being opened."""
        self._closed.set()
        model, self.model = self.model, None
        if model is not None:
            await asyncio.to_thread(model.close)

    async def _open(self, name: str | None) -> Model:
        from stem_local.stopping import Stop

        opening = Stop(self._closed.is_set, "The chat was left before the model was open.")
        # the first time kernels are compiled, for which nobody who leaves should wait
        model = await asyncio.to_thread(opening.run, partial(self._opener, name))
        old, self.model = self.model, model
        if old is not None:
            await asyncio.to_thread(old.close)
        return model
