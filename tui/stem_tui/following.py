"""Drawing and saving an answer while it comes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from stem_local.errors import StemError

from .pace import Pace

if TYPE_CHECKING:
    from stem_local.history import Entry, State
    from stem_local.live import Live

    from .answering import Answering

SAVE_SECONDS = 0.5
"""What a kill can lose of an answer."""

STATES: dict[str, State] = {
    "stop": "whole",
    "length": "length",
    "context": "context",
    "cancelled": "stopped",
}
"""What the history calls the reasons for which an answer ends."""


async def follow(
    answering: Answering,
    entry: Entry,
    extend: Callable[[str], Awaitable[None]],
    show: Callable[[Live], None],
    save: Callable[[Entry], Awaitable[None]],
) -> Entry:
    """Hand on what comes until the answer ends; returns the entry as it is then, not yet saved.

    `extend` gets more text and `show` figures, as often as drawing them costs little; `save` the
    entry twice a second.
    """
    pace, saved = Pace(), time.monotonic()
    while True:
        await answering.wait(pace.interval)
        # asked before the text is taken, so that none of it can come in between and be lost
        done = answering.done
        text = answering.take()
        if text:
            entry = replace(entry, content=entry.content + text)
            await extend(text)
        if done:
            return ended(answering, entry)
        live = answering.live()
        if live is not None:
            show(live)
        if text and time.monotonic() - saved >= SAVE_SECONDS:
            await save(entry)
            saved = time.monotonic()
        pace.drawn()


def ended(answering: Answering, entry: Entry) -> Entry:
    """The entry with what its answer's end tells of it."""
    last = answering.last
    if last is None or last.finish_reason is None:
        return failed(entry, answering.error)
    stats = None if last.stats is None else last.stats.to_dict()
    return replace(
        entry, state=STATES[last.finish_reason], stats=stats, forgotten=last.dropped_turns
    )


def failed(entry: Entry, error: Exception | None) -> Entry:
    """The entry of an answer that an error ended; the error is kept with it."""
    return replace(entry, state="failed", stats={"error": sentence(error)})


def sentence(error: Exception | None) -> str:
    """What went wrong, for people."""
    if isinstance(error, StemError):
        return str(error)
    return f"Something unexpected went wrong ({type(error).__name__}: {error}); please report it."
