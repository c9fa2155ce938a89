"""A screen with one conversation: all that keys, commands and the app can ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.notifications import SeverityLevel
from textual.screen import Screen

from stem_local.errors import HistoryError, StemError, UsageError

from ..dialogue import Dialogue
from ..replies import Replies
from ..widgets.composer import Composer
from ..widgets.gauge import ContextGauge
from ..widgets.key_line import KeyLine
from ..widgets.meter import StemMeter
from ..widgets.title_bar import TitleBar
from ..widgets.transcript import Transcript

if TYPE_CHECKING:
    from stem_local.chat_settings import ChatSettings
    from stem_local.history import Attachment, History
    from stem_local.model import Model

    from ..app import ChatApp

T = TypeVar("T")

BUSY = "An answer is under way: stop it first (Escape)."


class Conversing(Screen[None]):
    """One conversation at a time; the app holds the model and the history."""

    app: ChatApp

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__()
        self.dialogue = Dialogue(None, settings)
        self._replies = Replies(self)
        self.editing: int | None = None

    def compose(self) -> ComposeResult:
        yield TitleBar()
        with Horizontal(id="body"), Vertical(id="talk"):
            yield Transcript()
            yield StemMeter()
            yield ContextGauge()
            yield Composer(editor=self.app.config.editor)
        yield KeyLine()

    def on_mount(self) -> None:
        self._show_settings()
        self.composer.focus()

    # What others ask of it.

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def meter(self) -> StemMeter:
        return self.query_one(StemMeter)

    @property
    def gauge(self) -> ContextGauge:
        return self.query_one(ContextGauge)

    @property
    def history(self) -> History:
        return self.dialogue.history

    @property
    def conversation(self) -> int | None:
        return self.dialogue.id

    @property
    def settings(self) -> ChatSettings:
        return self.dialogue.settings

    @property
    def model_name(self) -> str:
        model = self.app.seat.model
        return "" if model is None else model.name

    @property
    def answering(self) -> bool:
        return self._replies.under_way

    def tell(self, text: str, severity: SeverityLevel = "information") -> None:
        """A sentence for the user, which goes away by itself."""
        title = "" if severity == "information" else severity.capitalize()
        self.app.notify(text, title=title, severity=severity, markup=False)

    def show_text(self, title: str, markdown: str) -> None:
        """A page over the chat."""
        from .page import PageScreen

        self.app.push_screen(PageScreen(title, markdown))

    async def ask(self, text: str, attachments: Sequence[Attachment] = ()) -> None:
        """Say something at the end of the branch and have it answered."""
        self.require_idle()
        entry = await self.kept(lambda dialogue: dialogue.say(text, attachments))
        await self.transcript.append(entry)
        self.query_one(TitleBar).title = self.dialogue.title
        await self._replies.begin()

    async def regenerate(self, entry: int | None = None) -> None:
        """Have a message answered again, beside the answer that it had; None: the last one."""
        self.require_idle()
        dialogue = self.dialogue
        old = dialogue.last("user") if entry is None else dialogue.entry(entry)
        if old.role == "assistant":
            dialogue.cut(old)
        else:
            dialogue.cut_after(old)
        await self.transcript.show(dialogue.entries)
        await self._replies.begin()

    async def edit(self, entry: int | None = None) -> None:
        """Put a message of the user into the composer; sending it makes a branch."""
        self.require_idle()
        dialogue = self.dialogue
        old = dialogue.last("user") if entry is None else dialogue.entry(entry)
        self.editing = old.id
        self.composer.load(old.content, old.attachments, editing=True)
        self.composer.focus()

    def stop(self) -> None:
        """Stop the answer; what came of it stays."""
        self._replies.stop()

    async def new_chat(self) -> None:
        """Begin another conversation; this one stays as it is."""
        await self._replies.finish()
        dialogue = Dialogue(self.history, self.settings, self.dialogue.model)
        await self._open(dialogue)

    async def open_conversation(self, conversation: int) -> None:
        """Go on with a saved conversation."""
        await self._replies.finish()
        dialogue = await asyncio.to_thread(
            Dialogue.open, self.history, conversation, self.app.settings
        )
        await self._open(dialogue)
        if dialogue.model and self.model_name and dialogue.model != self.model_name:
            self.app.use_model(dialogue.model, wanted=False)

    def change(self, settings: ChatSettings) -> None:
        """This chat's settings from now on; a running answer takes over the sparsity."""
        self._change(settings)

    async def use_model(self, name: str) -> None:
        """Let another installed model answer from now on."""
        await self._replies.finish()
        self.app.use_model(name)

    async def choose_model(self) -> None:
        """Let the user get, choose or remove models."""
        await self.app.choose_model()

    async def choose_conversation(self, query: str = "") -> None:
        """Let the user find a conversation."""
        from .conversations import ConversationsScreen

        screen = ConversationsScreen(
            self.history, self.conversation, query=query, answering=self.answering
        )
        chosen = await self.app.push_screen_wait(screen)
        if self.conversation in screen.deleted:
            await self.new_chat()
        else:
            await self.retitle()
        elsewhere = chosen != self.conversation or screen.found is not None
        if chosen is not None and elsewhere:
            await self.open_conversation(chosen)

    async def retitle(self) -> None:
        """Draw the title that the conversation has now."""
        with suppress(UsageError):  # deleted elsewhere: the title stays
            await asyncio.to_thread(self.dialogue.read_title)
        self.query_one(TitleBar).title = self.dialogue.title

    # What the app tells it.

    def model_ready(self, model: Model) -> None:
        """A model took its seat."""
        self.query_one(TitleBar).model = model.name
        self.show_figures()
        if self.dialogue.model != model.name:
            self._keep_settings(self.settings, model.name)

    async def history_changed(self, history: History) -> None:
        """The history that is written from now on; the conversation goes along if it can."""
        await asyncio.to_thread(self.dialogue.move, history)
        self.query_one(TitleBar).unsaved = self.app.unsaved
        await self.transcript.show(self.dialogue.entries)

    async def leave(self) -> None:
        """End the answer under way and keep it; nothing is asked of the screen afterwards."""
        await self._replies.finish()
        if self.app.history_opened.is_set():
            await asyncio.to_thread(self.history.close)

    async def kept(self, change: Callable[[Dialogue], T]) -> T:
        """Change the conversation in a thread; where it cannot be saved it goes on in memory.

        One that was deleted meanwhile is saved anew, with what is shown of it.
        """
        await self.app.history_opened.wait()
        try:
            return await asyncio.to_thread(change, self.dialogue)
        except HistoryError as error:
            await self.app.go_on_unsaved(error)
        except UsageError:
            if not await asyncio.to_thread(self.dialogue.deleted):
                raise
            await self.history_changed(self.history)
            self.tell("This chat was deleted elsewhere; it is saved anew.", "warning")
        return await asyncio.to_thread(change, self.dialogue)

    def require_idle(self) -> None:
        if self.answering:
            raise UsageError(BUSY)

    # Settings and figures.

    @work(exclusive=True, group="settings")
    async def _change(self, settings: ChatSettings) -> None:
        model, sparsity, quality = self.app.seat.model, settings.sparsity, settings.quality
        try:
            if model is not None:
                await asyncio.to_thread(model.choose, sparsity, quality)
            self._replies.steer(sparsity, quality)
        except StemError as error:
            self.tell(str(error), "warning")
            settings = replace(settings, sparsity=self.settings.sparsity)
        self._keep_settings(settings, self.dialogue.model)
        self._show_settings()

    def _keep_settings(self, settings: ChatSettings, model: str) -> None:
        self.dialogue.settings, self.dialogue.model = settings, model
        self.run_worker(self.kept(lambda dialogue: dialogue.save_settings()), group="keep")

    def _show_settings(self) -> None:
        self.meter.setting = self.settings.sparsity
        self.gauge.policy = self.settings.context_policy
        for panel in self.query("SettingsPanel"):
            panel.load(self.settings)  # type: ignore[attr-defined]

    def show_figures(self) -> None:
        """Draw what the last answer cost, and how full the context is after it."""
        model = self.app.seat.model
        limit = 0 if model is None else model.context
        self.gauge.show(self.dialogue.context_used, limit)
        self.meter.rest(self.dialogue.figures)

    async def _open(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.editing = None
        self.composer.stop_editing()
        self.query_one(TitleBar).title = dialogue.title
        await self.transcript.show(dialogue.entries)
        sent = [entry.content for entry in dialogue.entries if entry.role == "user"]
        self.composer.remember(sent)
        self._show_settings()
        self.show_figures()
        self.composer.focus()
