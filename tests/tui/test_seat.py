"""The model that answers: what waits for it, and what does not."""

from __future__ import annotations

import asyncio
import threading

import pytest

from stem_local.errors import Cancelled
from stem_local.model import Model
from stem_tui.seat import Seat


def test_who_leaves_does_not_wait_for_a_model_that_is_being_opened() -> None:
    begun, left = threading.Event(), threading.Event()

    def open_slowly(_: str | None) -> Model:
        begun.set()
        assert left.wait(60)
        raise AssertionError("nobody waits for this any more")

    async def leave() -> None:
        seat = Seat(open_slowly)
        taking = asyncio.ensure_future(seat.take(None))
        await asyncio.to_thread(begun.wait, 60)
        await seat.close()
        with pytest.raises(Cancelled, match="was left"):
            await taking

    try:
        asyncio.run(leave())
    finally:
        left.set()
