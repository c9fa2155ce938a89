"""Where messages and slash commands are written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from textual import on
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import TextArea

from stem_local.errors import StemError, UsageError
from stem_local.history.entries import Attachment
from stem_local.terminal import printable

from .. import slash
from ..attachments import pasted, read_text
from ..slash.command import Suggestion
from . import multiline
from .chips import Chips
from .message_area import MessageArea, is_long
from .recall import Recall
from .suggestions import Suggestions

if TYPE_CHECKING:
    from textual.notifications import SeverityLevel


@dataclass(frozen=True, slots=True)
class Draft:
    """What is in a composer."""

    text: str = ""
    attachments: tuple[Attachment, ...] = ()


class Composer(Vertical):
    """Text, files to go with it, and suggestions for commands.

    `editing` says in words that an earlier message is being changed. While `busy`, messages stay
    here and only commands are taken. `editor` is the command line of the editor to write in.
    """

    class Submitted(Message):
        """A message to send."""

        def __init__(self, text: str, attachments: Sequence[Attachment] = ()) -> None:
            super().__init__()
            self.text = text
            self.attachments = tuple(attachments)

    class Command(Message):
        """A slash command of the table to run, without its slash."""

        def __init__(self, name: str, argument: str) -> None:
            super().__init__()
            self.name = name
            self.argument = argument

    class Cancelled(Message):
        """The change of an earlier message was given up."""

    DEFAULT_CSS = """
    Composer {
        height: auto;
    }
    Composer MessageArea {
        height: auto;
        min-height: 3;
        min-width: 8;
        max-height: 42vh;
        padding: 0 1;
        border: round $border-blurred;
        border-title-color: $text-accent;
        border-subtitle-color: $text-muted;
        background: transparent;
        &:focus {
            border: round $border;
        }
        & .text-area--cursor-line {
            background: transparent;
        }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="composer.send"),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "New line", id="composer.newline"),
        Binding("tab", "complete", "Complete", show=False, id="composer.complete"),
        Binding("escape", "leave", "Close the list, stop editing", show=False, id="composer.leave"),
        Binding("up", "previous", "Up, or the message sent before", show=False, id="composer.up"),
        Binding("down", "next", "Down, or the message sent after", show=False, id="composer.down"),
        Binding(
            "backspace",
            "delete_left",
            "Delete to the left; at the start, take the last file off",
            show=False,
            id="composer.delete_left",
        ),
        Binding("ctrl+g", "edit_outside", "Write in your editor", show=False, id="composer.editor"),
    ]

    editing: reactive[bool] = reactive(False, init=False)
    busy: reactive[bool] = reactive(False, init=False)

    def __init__(self, *, editor: str | None = None, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.editor = editor
        self.area = MessageArea(self._take_long, "Write a message, or / for commands")
        self._chips = Chips()
        self._suggestions = Suggestions()
        self._pastes = 0
        self._recall = Recall()
        self._draft = Draft()

    def compose(self) -> ComposeResult:
        yield self._suggestions
        yield self._chips
        yield self.area

    # What the screen does with it.

    @property
    def text(self) -> str:
        return self.area.text

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        return self._chips.files

    def focus(self, scroll_visible: bool = True) -> Self:
        self.area.focus(scroll_visible)
        return self

    def load(
        self,
        text: str,
        attachments: Sequence[Attachment] | None = None,
        *,
        editing: bool = False,
    ) -> None:
        """Put this into the composer; the files that are there stay where none are given.

        What was typed comes back when an edit ends, and with the arrow keys otherwise.
        """
        if editing and not self.editing:
            self._draft = Draft(self.text, self.attachments)
        elif self.text.strip():
            self._recall.add(self.text)
        self.editing = editing
        files = self.attachments if attachments is None else tuple(attachments)
        self._put(Draft(printable(text), files))

    def stop_editing(self) -> None:
        """Give back what an edit had pushed aside, if there is one."""
        if self.editing:
            self._end_editing()

    def remember(self, sent: Sequence[str]) -> None:
        """Let the arrow keys go back through these, oldest first, instead of what was sent."""
        self._recall.load([text for text in sent if not is_long(text)])

    async def attach(self, path: str | Path) -> Attachment:
        """Add a text file. Raises UsageError for one that cannot go with a message."""
        attachment = await asyncio.to_thread(read_text, path)
        self._chips.add(attachment)
        return attachment

    # Keys.

    def action_send(self) -> None:
        self._follow()
        chosen = self._suggestions.chosen
        # a suggestion that is whole is sent right away
        if chosen is not None and self._insert(chosen) and not chosen.whole:
            return
        text = self.text
        if multiline.is_open(text):
            self.area.insert("\n")
        elif (command := slash.parse(text)) is not None:
            self._send_command(*command)
        else:
            self._send_message(slash.literal(multiline.content(text)))

    def action_newline(self) -> None:
        start, end = self.area.selection
        self.area.replace("\n", start, end)

    async def action_complete(self) -> None:
        self._follow()
        await self._suggestions.listed()
        if not self._suggestions.open:
            if self.text:
                # typing on must not end up as keys of whatever comes next
                return
            raise SkipAction
        chosen = self._suggestions.chosen or self._suggestions.only
        if chosen is None:
            self._suggestions.move(1)
        else:
            self._insert(chosen)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There is something to leave, or the key means what the screen does with it."""
        del parameters
        return action != "leave" or self._suggestions.open or self.editing

    def action_leave(self) -> None:
        if self._suggestions.open:
            self._suggestions.dismiss()
        else:
            self._end_editing()
            self.post_message(self.Cancelled())

    def action_previous(self) -> None:
        if self._suggestions.open:
            self._suggestions.move(-1)
        elif not (self.area.on_first_row and self._go_back(-1)):
            self.area.action_cursor_up()

    def action_next(self) -> None:
        if self._suggestions.open:
            self._suggestions.move(1)
        elif not (self.area.on_last_row and self._go_back(1)):
            self.area.action_cursor_down()

    def action_delete_left(self) -> None:
        at_start = self.area.selection.is_empty and self.area.cursor_at_start_of_text
        if at_start and self.attachments:
            self._chips.drop_last()
        else:
            self.area.action_delete_left()

    def action_edit_outside(self) -> None:
        # not awaited here: the app's own messages wait for its key bindings
        self.run_worker(self._edit_outside(), group="editor", exclusive=True)

    # What is typed.

    @on(TextArea.Changed)
    def _changed(self, event: TextArea.Changed) -> None:
        event.stop()
        self._follow()

    def _follow(self) -> None:
        """Let labels and suggestions fit the text, which may be newer than the last message."""
        self._label()
        self._suggestions.follow(self.text)

    @on(Suggestions.Picked)
    def _picked(self, event: Suggestions.Picked) -> None:
        event.stop()
        self._insert(event.suggestion)
        self.focus()

    def _insert(self, chosen: Suggestion) -> bool:
        """Let a suggestion replace what it completes; False where that is there already."""
        before = self.text
        after = slash.completed(before, chosen)
        self.area.put(after)
        if chosen.whole and not after.endswith(" "):
            self._suggestions.dismiss()
        return after != before

    def _go_back(self, step: int) -> bool:
        text = self._recall.step(step, self.text)
        if text is None:
            return False
        self.area.put(text)
        self._suggestions.dismiss()
        return True

    def on_descendant_blur(self) -> None:
        self._suggestions.display = False

    def on_descendant_focus(self) -> None:
        self._suggestions.display = self._suggestions.open
        self._label()

    def watch_editing(self) -> None:
        self._label()

    def watch_busy(self) -> None:
        self._label()

    def _label(self) -> None:
        title = subtitle = ""
        if self.editing:
            leave = self._key("composer.leave")
            title = "editing an earlier message: sending makes a branch"
            title += f", {leave} leaves it" if leave else ""
        if self.busy and (stop := self._key("chat.stop")):
            subtitle = f"{stop} stops the answer"
        if multiline.is_open(self.text):
            subtitle = f"a block of lines: end it with {multiline.QUOTES} to send it"
        self.area.border_title, self.area.border_subtitle = title, subtitle

    def _key(self, binding_id: str) -> str:
        """The key that does something here, as it is mapped now; none without the focus."""
        for active in self.screen.active_bindings.values():
            if active.binding.id == binding_id:
                return self.app.get_key_display(active.binding)
        return ""

    # What is sent.

    def _send_command(self, name: str, argument: str) -> None:
        command = slash.find(name)
        if command is None:
            self._tell(slash.unknown(name), "warning")
        elif command.needs_argument and not argument:
            self._tell(f"{command.usage}: {command.help}", "warning")
        else:
            self._recall.add(self.text)
            self._put(Draft("", self.attachments))
            self.post_message(self.Command(command.name, argument))

    def _send_message(self, text: str) -> None:
        text = text.strip("\n").rstrip()
        if self.busy:
            self._tell("An answer is under way: stop it, or wait for its end.", "warning")
        elif text:
            self._recall.add(self.text)
            files = self.attachments
            self._end_editing()
            self.post_message(self.Submitted(text, files))
        elif self.attachments:
            self._tell("Write what to do with the attached text first.", "warning")

    def _end_editing(self) -> None:
        """Empty the composer, or give back what an edit had pushed aside."""
        self._put(self._draft)
        self._draft = Draft()
        self.editing = False

    def _put(self, draft: Draft) -> None:
        self._chips.files = draft.attachments
        if is_long(draft.text):
            self.area.put("")
            self._take_long(draft.text)
        else:
            self.area.put(draft.text)
        self._follow()

    # Files, pastes, the editor.

    def _take_long(self, text: str) -> None:
        try:
            attachment = pasted(text, self._pastes + 1)
            self._chips.add(attachment)
        except UsageError as error:
            self._tell(str(error), "error")
            return
        self._pastes += 1
        self._tell(f"The text is long, so it goes along as the file {attachment.name}.")

    async def _edit_outside(self) -> None:
        from .. import editor

        try:
            text = await editor.edit(self.app, self.text, self.editor)
        except StemError as error:
            self._tell(str(error), "error")
            return
        self._put(Draft(printable(text), self.attachments))
        self.focus()

    def _tell(self, text: str, severity: SeverityLevel = "information") -> None:
        self.app.notify(text, severity=severity, markup=False)
