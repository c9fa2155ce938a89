"""Answers on the chat's screen, one at a time: from the question to what is kept of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from stem_local.errors import StemError

from .answering import Answering
from .following import failed, follow

if TYPE_CHECKING:
    from textual.worker import Worker

    from stem_local.generation import Stream
    from stem_local.history import Entry
    from stem_local.live import Live
    from stem_local.model import Model
    from stem_local.sparsity import Sparsity

    from .screens.conversing import Conversing

HINTS = {
    "context": "The context is full: the answer ends here. /clear begins a new chat.",
    "length": "The answer reached max_tokens; /set max_tokens changes it.",
}
"""What to do about an answer that was cut off, by its state."""


class Replies:
    """Has the last message of a screen's conversation answered. Used on the screen's own thread."""

    def __init__(self, chat: Conversing) -> None:
        self._chat = chat
        self._worker: Worker[None] | None = None
        self._answering: Answering | None = None

    @property
    def under_way(self) -> bool:
        return self._worker is not None and not self._worker.is_finished

    async def begin(self) -> None:
        """Begin to answer; returns at once."""
        chat = self._chat
        entry = await chat.kept(lambda dialogue: dialogue.answer())
        await chat.transcript.append(entry)
        chat.composer.busy = True
        self._worker = chat.run_worker(self._run(entry), group="answer", name="answer")

    def stop(self) -> None:
        """Stop, soon; what came of the answer stays."""
        if self._answering is not None:
            self._answering.stop()
        elif self._worker is not None:
            # no model is open yet
            self._worker.cancel()

    def steer(self, sparsity: Sparsity, quality: float) -> None:
        """Leave out something else from the next token on. Raises UsageError where it cannot be."""
        if self._answering is not None:
            self._answering.steer(sparsity, quality)

    async def finish(self) -> None:
        """Stop and wait until what there is of the answer is kept."""
        worker = self._worker
        if worker is not None and not worker.is_finished:
            self.stop()
            await asyncio.wait([asyncio.ensure_future(worker.wait())])

    async def _run(self, entry: Entry) -> None:
        chat = self._chat
        try:
            model = await chat.app.seat.ready()
            # asked before it was open, the question knew of none, or of the one before
            entry = replace(entry, model=model.name)
            chat.dialogue.put(entry)
            chat.transcript.answered_by(entry)
            self._answering = Answering(self._starter(model))
            entry = await follow(
                self._answering, entry, chat.transcript.extend, self._show, self._save
            )
        except asyncio.CancelledError:
            entry = replace(entry, state="stopped")
        except Exception as error:
            entry = failed(entry, error)
        finally:
            self._answering = None
        await self._end(entry)

    async def _end(self, entry: Entry) -> None:
        chat = self._chat
        chat.dialogue.put(entry)
        await chat.transcript.finish(entry)
        chat.composer.busy = False
        chat.show_figures()
        if entry.stats and "error" in entry.stats:
            chat.tell(entry.stats["error"], "error")
        elif entry.state in HINTS:
            chat.tell(HINTS[entry.state], "warning")
        await chat.kept(lambda dialogue: dialogue.save_last())

    def _starter(self, model: Model) -> Callable[[], Stream]:
        dialogue = self._chat.dialogue
        *before, question = dialogue.messages()
        settings, forgotten = dialogue.settings, dialogue.forgotten
        draft = self._chat.app.config.draft

        def start() -> Stream:
            session = model.chat(
                system=settings.system or None,
                messages=before,
                forgotten=forgotten,
                draft=draft,
                **settings.options(),
            )
            return session.stream(question["content"])

        return start

    def _show(self, live: Live) -> None:
        self._chat.meter.show(live)
        self._chat.gauge.show(live.context_used, live.context)

    async def _save(self, entry: Entry) -> None:
        """Save an answer under way; where that fails, its end is soon enough to say so."""
        try:
            await asyncio.to_thread(self._chat.dialogue.save, entry)
        except StemError as error:
            self._chat.log.error(str(error))
