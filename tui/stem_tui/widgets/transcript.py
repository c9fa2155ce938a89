"""The conversation: what was said, what is being said, and what can be done with each message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message as Event

from stem_local.history.entries import Entry, Role

from .backlog import read_answer
from .message import LONGEST, Message, counted
from .message_list import MORE, MessageList


class Transcript(MessageList, inherit_bindings=False):
    """Shows the open branch of a conversation, and lets the user act on any message of it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "previous", "Previous message", id="transcript.previous"),
        Binding("down,j", "next", "Next message", id="transcript.next"),
        Binding("home,g", "first", "First message", id="transcript.first", show=False),
        Binding("end,G", "last", "Last message", id="transcript.last", show=False),
        Binding("pageup", "page(-1)", "Page up", id="transcript.page_up", show=False),
        Binding("pagedown,space", "page(1)", "Page down", id="transcript.page_down", show=False),
        Binding("shift+up", "line(-1)", "Line up", id="transcript.line_up", show=False),
        Binding("shift+down", "line(1)", "Line down", id="transcript.line_down", show=False),
        Binding("c", "copy", "Copy message", id="transcript.copy"),
        Binding("y", "copy_code", "Copy code", id="transcript.copy_code"),
        Binding("e", "edit", "Edit", id="transcript.edit"),
        Binding("r", "regenerate", "Answer anew", id="transcript.regenerate"),
        Binding("left", "branch(-1)", "Previous branch", id="transcript.previous_branch"),
        Binding("right", "branch(1)", "Next branch", id="transcript.next_branch"),
        Binding("escape", "leave", "Back to writing", id="transcript.leave"),
    ]

    @dataclass
    class EditRequested(Event):
        """The user wants to write a message of theirs anew."""

        entry: int

    @dataclass
    class RegenerateRequested(Event):
        """The user wants another answer in the place of this one."""

        entry: int

    @dataclass
    class BranchRequested(Event):
        """The user wants to see the sibling `step` places away."""

        entry: int
        step: int

    @dataclass
    class CopyRequested(Event):
        """`text` is to be copied; `what` says what it is, within a sentence."""

        text: str
        what: str

    @dataclass
    class LinkRequested(Event):
        """A link was clicked. Nothing is opened unless whoever handles this does so."""

        target: str

    class Left(Event):
        """The user is done with the messages and wants to write."""

    def __init__(self, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self._answer: Message | None = None
        self._copied: tuple[Message | None, int] = (None, 0)

    @property
    def selected(self) -> int | None:
        """The entry under the message cursor, None while the user writes. Setting it shows it."""
        return self.marked.entry.id if self.marked and self.marked.entry else None

    @selected.setter
    def selected(self, entry: int | None) -> None:
        self.marked = None
        self.refresh()
        if entry is not None and (message := self._message(entry)) is not None:
            self._select(message, 1)

    async def show(self, entries: Sequence[Entry]) -> None:
        """Show these messages and no others, from their end."""
        await _load(entries)
        self.marked = self._answer = None
        self.show_messages([Message(entry) for entry in entries])
        self._mark_forgotten()

    async def append(self, entry: Entry) -> None:
        """One more message. An answer whose state is "streaming" goes on with `extend`."""
        await _load([entry])
        message = Message(entry)
        if entry.role == "assistant" and entry.state == "streaming":
            message.begin()
            self._answer = message
        self.add_message(message)
        if entry.role == "user":
            self.go_to_end()

    def answered_by(self, entry: Entry) -> None:
        """The answer that is streaming comes from the model that `entry` names."""
        if self._answer is not None:
            self._answer.entry = entry
            self.changed(self._answer)

    async def extend(self, text: str) -> None:
        """More text of the answer that is streaming."""
        if self._answer is not None:
            self.grown(self._answer, self._answer.extend(text))

    async def finish(self, entry: Entry) -> None:
        """The answer that is streaming is done: `entry` is what became of it."""
        message, self._answer = self._answer, None
        await self._put(entry, message or self._message(entry.id))

    async def replace(self, entry: Entry) -> None:
        """Show other content, figures or another branch for the message with this id."""
        await self._put(entry, self._message(entry.id))

    def notice(self, text: str) -> None:
        """A line across, after the last message."""
        self.add_message(Message(None, text))

    async def _put(self, entry: Entry, message: Message | None) -> None:
        if message is None:
            return
        body = None
        if message.differs(entry) and len(entry.content) <= LONGEST:
            body = await asyncio.to_thread(read_answer, entry.content, message.laid_out)
        if message in self.messages:
            message.put(entry, body)
            self.changed(message)
            self._mark_forgotten()

    def _mark_forgotten(self) -> None:
        """Draw a line above the oldest turn that the model still saw when it answered last."""
        answers = [m.entry for m in self.messages if m.entry and m.entry.role == "assistant"]
        count = answers[-1].forgotten if answers else 0
        asked = [m for m in self.messages if m.entry and m.entry.role == "user"]
        turns = counted(count, "turn")
        for number, message in enumerate(asked):
            marks = 0 < number == count
            notice = f"no longer seen by the model: {turns} above" if marks else ""
            if message.notice != notice:
                message.notice = notice
                self.changed(message)

    def _message(self, entry: int) -> Message | None:
        return next((m for m in self.messages if m.entry and m.entry.id == entry), None)

    def _entries(self, role: Role | None = None) -> list[tuple[Message, Entry]]:
        """The messages that are no notices, of one role or both."""
        return [
            (message, message.entry)
            for message in self.messages
            if message.entry is not None and role in (None, message.entry.role)
        ]

    def _at_or_before(self, role: Role) -> Entry | None:
        """The selected message if it is of this role, or the last such one before it."""
        found = None
        for message, entry in self._entries():
            if entry.role == role:
                found = entry
            if message is self.marked:
                break
        return found

    def action_previous(self) -> None:
        """Select the message before, or see more of the selected one first."""
        self._move(-1)

    def action_next(self) -> None:
        """Select the message after, or see more of the selected one first; leave after the last."""
        self._move(1)

    def _move(self, step: int) -> None:
        messages = [message for message, _ in self._entries()]
        if not messages:
            return
        marked = self.marked
        if marked is None or not self.in_view(marked):
            nearest = self.message_at(0 if step > 0 else self.size.height - 1)
            at_end = self.following or nearest not in messages
            self._select(messages[-1] if at_end or nearest is None else nearest, step)
        elif not self._more_of(marked, step):
            index = messages.index(marked) + step
            if index == len(messages):
                self.action_leave()
            elif index >= 0:
                self._select(messages[index], step)

    def _more_of(self, message: Message, step: int) -> bool:
        """Scroll on within a message that is higher than the screen. False where it is all seen."""
        top, end = self.lines_of(message)
        height, y = self.size.height, self.scroll_offset.y
        target = max(y - height + 2, top) if step < 0 else min(y + height - 2, end - height)
        if (target - y) * step <= 0:
            return False
        self.go_to(target)
        return True

    def _select(self, message: Message, step: int) -> None:
        """Put the cursor on a message and bring it into view, from its near side."""
        self.marked = message
        self.changed(message)
        top, end = self.lines_of(message)
        height, y = self.size.height, self.scroll_offset.y
        if end - top > height:
            y = top if step > 0 else end - height
        self.go_to(max(min(y, top), end - height) if end - top <= height else y)

    def action_first(self) -> None:
        """Select the first message."""
        if messages := self._entries():
            self._select(messages[0][0], 1)

    def action_last(self) -> None:
        """Select the last message and follow what comes."""
        if messages := self._entries():
            self.marked = messages[-1][0]
        self.go_to_end()
        self.refresh()

    def action_page(self, step: int) -> None:
        """Scroll by a screen, but for two lines."""
        self.go_to(self.scroll_offset.y + step * max(self.size.height - 2, 1))

    def action_line(self, step: int) -> None:
        """Scroll by a line."""
        self.go_to(self.scroll_offset.y + step)

    def action_copy(self) -> None:
        """Copy the selected message, or the last answer."""
        message = self.marked or self._last_answer()
        if message is not None and message.entry is not None:
            what = "your message" if message.entry.role == "user" else "the answer"
            self.post_message(self.CopyRequested(message.text, what))

    def action_copy_code(self) -> None:
        """Copy a code block of the selected message, or of the last answer; another each time."""
        message = self.marked or self._last_answer()
        codes = message.codes() if message is not None else []
        if not codes:
            self.notify("There is no code in this message.")
            return
        last, turn = self._copied
        turn = turn % len(codes) if last is message else 0
        self._copied = (message, turn + 1)
        which = f"code block {turn + 1} of {len(codes)}" if len(codes) > 1 else "the code block"
        self.post_message(self.CopyRequested(codes[turn].source, which))

    def _last_answer(self) -> Message | None:
        answers = self._entries("assistant")
        return answers[-1][0] if answers else None

    def action_edit(self) -> None:
        """Ask for the selected message to be edited, or for the question before an answer."""
        if entry := self._at_or_before("user"):
            self.post_message(self.EditRequested(entry.id))

    def action_regenerate(self) -> None:
        """Ask for another answer in the place of the selected one, or of the last."""
        if entry := self._at_or_before("assistant"):
            self.post_message(self.RegenerateRequested(entry.id))

    def action_branch(self, step: int) -> None:
        """Ask for a neighbour of the selected message's branch, or of the last answer's."""
        message = self.marked or self._last_answer()
        if message is not None and message.entry is not None:
            place, count = message.entry.branch
            if 1 <= place + step <= count:
                self.post_message(self.BranchRequested(message.entry.id, step))

    def action_leave(self) -> None:
        """Give the cursor back to writing."""
        self.selected = None
        self.post_message(self.Left())

    def action_open_link(self, target: str) -> None:
        """Tell that a link was clicked."""
        self.post_message(self.LinkRequested(target))

    def on_click(self, event: events.Click) -> None:
        """Select the message that was clicked; the hint leads to the end."""
        if event.y == self.size.height - 1 and event.x >= self.size.width - len(MORE):
            if not self.following:
                self.go_to_end()
        elif self.text_selection is None and (message := self.message_at(event.y)) is not None:
            self.marked = message
            self.refresh()


async def _load(entries: Sequence[Entry]) -> None:
    """The parser takes its time to load: in a thread, and only once there is an answer."""
    if any(entry.role == "assistant" for entry in entries):
        await asyncio.to_thread(import_module, f"{__package__}.growing_markdown")
