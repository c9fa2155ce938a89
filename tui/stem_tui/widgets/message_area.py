"""The text of a message while it is typed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.actions import SkipAction
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from stem_local.terminal import printable

MAX_EDITED = 50_000
"""Characters that a paste may have to be edited in place: wrapping more would delay each key."""

_COMPOSER_KEYS = {"up", "down", "backspace"}


def _named(bindings: Iterable[BindingType]) -> Iterable[Binding]:
    """TextArea's keys, less those that the composer answers to, with ids to remap them by.

    They are what every text field has, so help does not list them.
    """
    for binding in bindings:
        if isinstance(binding, Binding) and binding.key not in _COMPOSER_KEYS:
            verb = re.sub(r"\(True\)", "_select", binding.action)
            yield replace(binding, id=f"composer.{verb}", system=True)


class MessageArea(TextArea, inherit_bindings=False):
    """A text area whose Enter and arrows its composer decides about."""

    class LongPaste(Message):
        """A paste that is too long to edit; nothing of it was inserted."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    BINDINGS: ClassVar[list[BindingType]] = [*_named(TextArea.BINDINGS)]

    @property
    def on_first_row(self) -> bool:
        return self.navigator.is_first_wrapped_line(self.cursor_location)

    @property
    def on_last_row(self) -> bool:
        return self.navigator.is_last_wrapped_line(self.cursor_location)

    @property
    def overflows(self) -> bool:
        """Whether there is more text than rows to show it in."""
        return self.wrapped_document.height > self.size.height

    def put(self, text: str) -> None:
        """Replace everything, with the cursor at the end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def action_paste(self) -> None:
        self._paste(self.app.clipboard)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self._paste(event.text)

    def _paste(self, text: str) -> None:
        text = printable(text.replace("\r\n", "\n").replace("\r", "\n"))
        if len(text) > MAX_EDITED:
            self.post_message(self.LongPaste(text))
        elif result := self._replace_via_keyboard(text, *self.selection):
            self.move_cursor(result.end_location)
            self.focus()

    def action_cursor_page_up(self) -> None:
        if not self.overflows:
            raise SkipAction
        super().action_cursor_page_up()

    def action_cursor_page_down(self) -> None:
        if not self.overflows:
            raise SkipAction
        super().action_cursor_page_down()
