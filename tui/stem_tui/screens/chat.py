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
from stem_local.terminal import printable

from .. import slash
from ..dialogue import Dialogue
from ..replies import Replies
from ..widgets.composer import Composer
from ..widgets.gauge import ContextGauge
from ..widgets.meter import StemMeter
from ..widgets.title_bar import TitleBar
from ..widgets.transcript import Transcript

if TYPE_CHECKING:
    from stem_local.chat_settings import ChatSettings
    from stem_local.history import Attachment, History
    from stem_local.model import Model

    from ..app import ChatApp
    from ..palette import Palette
    from ..widgets.settings_panel import SettingsPanel

T = TypeVar("T")

BUSY = "An answer is under way: stop it first (Escape)."


def _palette() -> type[Palette]:
    from ..palette import Palette

    return Palette


class ChatScreen(Screen[None]):
    """One conversation at a time; the app holds the model and the history."""

    app: ChatApp
    COMMANDS: ClassVar[set[Any]] = {_palette}
    DEFAULT_CSS = """
    ChatScreen {
        #body { layers: talk over; }
        #talk { width: 1fr; layer: talk; }
        Transcript { height: 1fr; }
        /* a narrow window has no room beside the settings, so they lie over the chat */
        &.-narrow SettingsPanel { layer: over; }
    }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (72, "-wide")]  # noqa: RUF012 (as Screen has it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="chat.help"),
        Binding("f2", "models", "Models", id="chat.models"),
        Binding("f3", "conversations", "Chats", id="chat.conversations"),
        Binding("f4", "settings", "Settings", id="chat.settings"),
        Binding("ctrl+n", "new", "New chat", id="chat.new"),
        Binding("ctrl+r", "regenerate", "Answer again", show=False, id="chat.regenerate"),
        Binding("escape", "escape", "Stop", id="chat.stop"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="chat.page_up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="chat.page_down"),
        Binding("ctrl+up", "select", "Go to the messages", show=False, id="chat.select"),
        *StemMeter.KEYS,
    ]

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__()
        self.dialogue = Dialogue(None, settings)
        self._replies = Replies(self)
        self._editing: int | None = None

    def compose(self) -> ComposeResult:
        yield TitleBar()
        with Horizontal(id="body"), Vertical(id="talk"):
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
        self._require_idle()
        entry = await self.kept(lambda dialogue: dialogue.say(text, attachments))
        await self.transcript.append(entry)
        self.query_one(TitleBar).title = self.dialogue.title
        await self._replies.begin()

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
        await self._replies.begin()

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
        """Change the conversation in a thread; where it cannot be saved it goes on in memory."""
        await self.app.history_opened.wait()
        try:
            return await asyncio.to_thread(change, self.dialogue)
        except HistoryError as error:
            await self.app.go_on_unsaved(error)
        return await asyncio.to_thread(change, self.dialogue)

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

    @on(Transcript.LinkRequested)
    @work
    async def _link_requested(self, event: Transcript.LinkRequested) -> None:
        from .confirm import ConfirmScreen

        question = f"Open {printable(event.target)} in your browser? That uses the network."
        screen = ConfirmScreen(question, title="Link", yes="Open", no="Leave it")
        if await self.app.push_screen_wait(screen):
            self.app.open_url(event.target)

    @on(Transcript.Left)
    def _messages_left(self) -> None:
        self.action_escape()

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

    def action_page(self, step: int) -> None:
        self.transcript.action_page(step)

    def action_select(self) -> None:
        """Go to the last message; keys there copy, edit, answer anew and change branches."""
        self.transcript.focus()
        self.transcript.action_previous()

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
        """Show the side panel, or put it away."""
        from ..widgets.settings_panel import SettingsPanel

        if not self.query(SettingsPanel):
            panel = SettingsPanel(self.settings, self.app.settings)
            await self.query_one("#body").mount(panel)
            panel.focus()
        else:
            await self._close_settings()

    async def on_settings_panel_closed(self) -> None:
        await self._close_settings()

    def on_settings_panel_changed(self, event: SettingsPanel.Changed) -> None:
        self.change(event.settings)

    async def _close_settings(self) -> None:
        await self.query("SettingsPanel").remove()
        self.composer.focus()
