"""The chat: a conversation, what it costs, and where the next message is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.notifications import SeverityLevel
from textual.screen import Screen
from textual.widgets import Footer

from stem_local.errors import HistoryError, StemError, UsageError

from .. import slash
from ..answering import Answering
from ..dialogue import Dialogue
from ..following import failed, follow
from ..palette import Palette
from ..widgets.composer import Composer
from ..widgets.gauge import ContextGauge
from ..widgets.meter import StemMeter
from ..widgets.title_bar import TitleBar
from ..widgets.transcript import Transcript

if TYPE_CHECKING:
    from textual.worker import Worker

    from stem_local.chat_settings import ChatSettings
    from stem_local.generation import Stream
    from stem_local.history import Attachment, Entry, History
    from stem_local.model import Model

    from ..app import ChatApp

T = TypeVar("T")

BUSY = "An answer is under way: stop it first (Escape)."


class ChatScreen(Screen[None]):
    """One conversation at a time; the app holds the model and the history."""

    app: ChatApp
    COMMANDS: ClassVar[set[Any]] = {Palette}
    DEFAULT_CSS = """
    ChatScreen {
        #talk { width: 1fr; }
        Transcript { height: 1fr; }
        SettingsPanel { dock: right; width: 44; max-width: 60%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="chat.help"),
        Binding("f2", "models", "Models", id="chat.models"),
        Binding("f3", "conversations", "Chats", id="chat.conversations"),
        Binding("f4", "settings", "Settings", id="chat.settings"),
        Binding("ctrl+n", "new", "New chat", id="chat.new"),
        Binding("ctrl+r", "regenerate", "Answer again", show=False, id="chat.regenerate"),
        Binding("escape", "escape", "Stop", id="chat.stop"),
        *StemMeter.KEYS,
    ]

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__()
        self.dialogue = Dialogue(None, settings)
        self._answer: Worker[None] | None = None
        self._answering: Answering | None = None
        self._editing: int | None = None

    def compose(self) -> ComposeResult:
        yield TitleBar()
        with Horizontal(), Vertical(id="talk"):
            yield Transcript()
            yield StemMeter()
            yield ContextGauge()
            yield Composer(editor=self.app.config.editor)
        yield Footer(show_command_palette=False)

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
        return self._answer is not None and not self._answer.is_finished

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
        self._require_idle()
        entry = await self.kept(lambda dialogue: dialogue.say(text, attachments))
        await self.transcript.append(entry)
        await self._begin_answer()

    async def regenerate(self, entry: int | None = None) -> None:
        """Have a message answered again, beside the answer that it had; None: the last one."""
        self._require_idle()
        dialogue = self.dialogue
        old = dialogue.last("user") if entry is None else dialogue.entry(entry)
        if old.role == "assistant":
            dialogue.cut(old)
        else:
            dialogue.cut_after(old)
        await self.transcript.show(dialogue.entries)
        await self._begin_answer()

    async def edit(self, entry: int | None = None) -> None:
        """Put a message of the user into the composer; sending it makes a branch."""
        self._require_idle()
        dialogue = self.dialogue
        old = dialogue.last("user") if entry is None else dialogue.entry(entry)
        self._editing = old.id
        self.composer.load(old.content, old.attachments, editing=True)
        self.composer.focus()

    def stop(self) -> None:
        """Stop the answer; what came of it stays."""
        if self._answering is not None:
            self._answering.stop()
        elif self._answer is not None:
            self._answer.cancel()

    async def new_chat(self) -> None:
        """Begin another conversation; this one stays as it is."""
        await self._finish_answer()
        dialogue = Dialogue(self.history, self.settings, self.dialogue.model)
        await self._open(dialogue)

    async def open_conversation(self, conversation: int) -> None:
        """Go on with a saved conversation."""
        await self._finish_answer()
        dialogue = await asyncio.to_thread(
            Dialogue.open, self.history, conversation, self.app.settings
        )
        await self._open(dialogue)
        if dialogue.model and dialogue.model != self.model_name:
            self.app.use_model(dialogue.model, wanted=False)

    def change(self, settings: ChatSettings) -> None:
        """This chat's settings from now on; a running answer takes over the sparsity."""
        self._change(settings)

    async def use_model(self, name: str) -> None:
        """Let another installed model answer from now on."""
        await self._finish_answer()
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
        if chosen is not None and chosen != self.conversation:
            await self.open_conversation(chosen)

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
        await self._finish_answer()
        if self.app.history_opened.is_set():
            await asyncio.to_thread(self.history.close)

    async def kept(self, change: Callable[[Dialogue], T]) -> T:
        """Change the conversation in a thread; where it cannot be saved it goes on in memory."""
        await self.app.history_opened.wait()
        try:
            return await asyncio.to_thread(change, self.dialogue)
        except HistoryError as error:
            await self.app.go_on_unsaved(error)
        return await asyncio.to_thread(change, self.dialogue)

    # An answer.

    async def _begin_answer(self) -> None:
        entry = await self.kept(lambda dialogue: dialogue.answer())
        await self.transcript.append(entry)
        self.query_one(TitleBar).title = self.dialogue.title
        self.composer.busy = True
        self._answer = self.run_worker(self._run_answer(entry), group="answer", name="answer")

    async def _run_answer(self, entry: Entry) -> None:
        try:
            model = await self.app.seat.ready()
            self._answering = Answering(self._starter(model))
            entry = await follow(
                self._answering, entry, self.transcript.extend, self._show_live, self._save
            )
        except asyncio.CancelledError:
            entry = replace(entry, state="stopped")
        except Exception as error:
            entry = failed(entry, error)
        finally:
            self._answering = None
        await self._end_answer(entry)

    async def _end_answer(self, entry: Entry) -> None:
        self.dialogue.put(entry)
        await self.transcript.finish(entry)
        self.composer.busy = False
        self.show_figures()
        if entry.stats and "error" in entry.stats:
            self.tell(entry.stats["error"], "error")
        elif entry.state == "context":
            self.tell("The context is full: the answer ends here. /clear begins anew.", "warning")
        elif entry.state == "length":
            self.tell("The answer reached max_tokens; /set max_tokens changes it.", "warning")
        await self.kept(lambda dialogue: dialogue.save_last())

    def _starter(self, model: Model) -> Callable[[], Stream]:
        dialogue = self.dialogue
        *before, question = dialogue.messages()
        settings, forgotten = dialogue.settings, dialogue.forgotten

        def start() -> Stream:
            session = model.chat(
                system=settings.system or None,
                messages=before,
                forgotten=forgotten,
                **settings.options(),
            )
            return session.stream(question["content"])

        return start

    def _show_live(self, live: Any) -> None:
        self.meter.show(live)
        self.query_one(ContextGauge).show(live.context_used, live.context)

    async def _save(self, entry: Entry) -> None:
        """Save an answer under way; where that fails, its end is soon enough to say so."""
        try:
            await asyncio.to_thread(self.dialogue.save, entry)
        except StemError:
            self.log.error("the answer under way could not be saved")

    async def _finish_answer(self) -> None:
        """Stop the answer, if one is under way, and wait until it is kept."""
        if self._answer is not None and not self._answer.is_finished:
            self.stop()
            await self._answer.wait()

    def _require_idle(self) -> None:
        if self.answering:
            raise UsageError(BUSY)

    # Settings and figures.

    @work(exclusive=True, group="settings")
    async def _change(self, settings: ChatSettings) -> None:
        model, sparsity, quality = self.app.seat.model, settings.sparsity, settings.quality
        try:
            if model is not None:
                await asyncio.to_thread(model.choose, sparsity, quality)
            if self._answering is not None:
                self._answering.steer(sparsity, quality)
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
        self.query_one(ContextGauge).policy = self.settings.context_policy
        for panel in self.query("SettingsPanel"):
            panel.load(self.settings)  # type: ignore[attr-defined]

    def show_figures(self) -> None:
        """Draw what the last answer cost, and how full the context is after it."""
        model = self.app.seat.model
        limit = 0 if model is None else model.context
        self.query_one(ContextGauge).show(self.dialogue.context_used, limit)
        self.meter.rest(self.dialogue.figures)

    async def _open(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self._editing = None
        self.query_one(TitleBar).title = dialogue.title
        await self.transcript.show(dialogue.entries)
        sent = [entry.content for entry in dialogue.entries if entry.role == "user"]
        self.composer.remember(sent)
        self._show_settings()
        self.show_figures()
        self.composer.focus()

    # What the widgets ask for.

    @on(Composer.Submitted)
    async def _submitted(self, event: Composer.Submitted) -> None:
        editing, self._editing = self._editing, None
        try:
            if editing is not None:
                self.dialogue.cut(self.dialogue.entry(editing))
                await self.transcript.show(self.dialogue.entries)
            await self.ask(event.text, event.attachments)
        except StemError as error:
            self.composer.load(event.text, event.attachments)
            self.tell(str(error), "error")

    @on(Composer.Command)
    def _command(self, event: Composer.Command) -> None:
        slash.start(self, event.name, event.argument)

    @on(Composer.Cancelled)
    def _edit_left(self) -> None:
        self._editing = None

    @on(Transcript.EditRequested)
    async def _edit_requested(self, event: Transcript.EditRequested) -> None:
        await self._told(self.edit(event.entry))

    @on(Transcript.RegenerateRequested)
    async def _regenerate_requested(self, event: Transcript.RegenerateRequested) -> None:
        await self._told(self.regenerate(event.entry))

    @on(Transcript.BranchRequested)
    async def _branch_requested(self, event: Transcript.BranchRequested) -> None:
        await self._told(self._step(event.entry, event.step))

    async def _step(self, entry: int, step: int) -> None:
        self._require_idle()
        await self.kept(lambda dialogue: dialogue.step(entry, step))
        await self.transcript.show(self.dialogue.entries)
        self.show_figures()

    @on(Transcript.CopyRequested)
    async def _copy_requested(self, event: Transcript.CopyRequested) -> None:
        from .. import clipboard

        self.tell(await clipboard.copy(self.app, event.text, event.what))

    @on(StemMeter.SparsityRequested)
    def _sparsity_requested(self, event: StemMeter.SparsityRequested) -> None:
        self.change(replace(self.settings, sparsity=event.value))

    async def _told(self, asked: Any) -> None:
        """Say what goes wrong with something that was asked for by key."""
        try:
            await asked
        except StemError as error:
            self.tell(str(error), "warning")

    # Keys.

    def action_escape(self) -> None:
        if self.answering:
            self.stop()
        else:
            self.composer.focus()

    def action_meter(self, how: str) -> None:
        self.meter.step(how)

    @work(group="action", exclusive=True)
    async def action_regenerate(self) -> None:
        await self._told(self.regenerate())

    @work(group="action", exclusive=True)
    async def action_new(self) -> None:
        await self.new_chat()

    @work(group="action", exclusive=True)
    async def action_conversations(self) -> None:
        await self._told(self.choose_conversation())

    @work(group="action", exclusive=True)
    async def action_models(self) -> None:
        await self._told(self.choose_model())

    def action_help(self) -> None:
        from .help import HelpScreen

        self.app.push_screen(HelpScreen(self))

    async def action_settings(self) -> None:
        """Show or hide the side panel."""
        for panel in self.query("SettingsPanel"):
            await panel.remove()
            self.composer.focus()
            return
        await self._mount_panel()

    async def _mount_panel(self) -> None:
        from ..widgets.settings_panel import SettingsPanel

        panel = SettingsPanel()
        await self.mount(panel)
        panel.load(self.settings)
        panel.focus()
