"""The chat: its keys, and what its widgets ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.binding import Binding, BindingType

from stem_local.errors import StemError
from stem_local.terminal import printable

from .. import slash
from ..widgets.composer import Composer
from ..widgets.meter import StemMeter
from ..widgets.transcript import Transcript
from .conversing import Conversing

if TYPE_CHECKING:
    from ..palette import Palette
    from ..widgets.settings_panel import SettingsPanel


def _palette() -> type[Palette]:
    from ..palette import Palette

    return Palette


class ChatScreen(Conversing):
    """A conversation, what it costs, and where the next message is written."""

    COMMANDS: ClassVar[set[Any]] = {_palette}
    DEFAULT_CSS = """
    ChatScreen {
        #body { layers: talk over; }
        #talk { width: 1fr; layer: talk; }
        Transcript { height: 1fr; }
        /* a narrow window has no room beside the settings, so they lie over the chat */
        &.-narrow SettingsPanel { layer: over; }
        /* of a few rows those go first that neither say nor ask anything */
        &.-short, &.-flat {
            StemMeter, ContextGauge { display: none; }
            MessageArea { max-height: 3; }
        }
        &.-flat { TitleBar, KeyLine { display: none; } }
    }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (72, "-wide")]  # noqa: RUF012 (as Screen has it)
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (7, "-short"), (11, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="chat.help"),
        Binding("f2", "models", "Models", id="chat.models"),
        Binding("f3", "conversations", "Chats", id="chat.conversations"),
        Binding("f4", "settings", "Settings", id="chat.settings"),
        Binding("ctrl+n", "new", "New chat", id="chat.new"),
        Binding("ctrl+r", "regenerate", "Answer again", show=False, id="chat.regenerate"),
        Binding("escape", "escape", "Stop", show=False, id="chat.stop"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="chat.page_up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="chat.page_down"),
        Binding("ctrl+up", "select", "Go to the messages", show=False, id="chat.select"),
        *StemMeter.KEYS,
    ]

    # What the widgets ask for.

    @on(Composer.Submitted)
    async def _submitted(self, event: Composer.Submitted) -> None:
        editing, self.editing = self.editing, None
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
        self.editing = None

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
        self.require_idle()
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
        self.composer.focus()

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
