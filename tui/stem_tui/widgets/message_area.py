"""The text of a message while it is typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.actions import SkipAction
from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from stem_local.terminal import printable

MAX_EDITED = 50_000
MAX_LINE = 10_000
"""Characters that a text, and a line of it, may have to be edited in place: a line is wrapped and
drawn anew with each key.
"""


def is_long(text: str) -> bool:
    """Whether a text is too long to be edited here."""
    return len(text) > MAX_EDITED or max(map(len, text.split("\n"))) > MAX_LINE


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

    BINDINGS: ClassVar[list[BindingType]] = [*_named(TextArea.BINDINGS)]

    def __init__(self, take_long_paste: Callable[[str], None], placeholder: str) -> None:
        """`take_long_paste` gets what is too long to edit, of which nothing is inserted."""
        super().__init__(placeholder=placeholder, highlight_cursor_line=False)
        self._take_long_paste = take_long_paste

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

    async def _on_key(self, event: events.Key) -> None:
        """Do what keys of the composer mean right here, in the order in which they are typed.

        Textual looks for bindings only when a key has bubbled up to the app, and for those with
        priority before the widget has had the keys typed earlier: a message that is typed fast, or
        by a program, would be sent without its end or with the beginning of the next.
        """
        if event.is_printable:
            return
        active = self.screen.active_bindings.get(event.key)
        if active is None or not (active.binding.id or "").startswith("composer."):
            return
        if await self.app.run_action(active.binding.action, active.node):
            event.stop()
            event.prevent_default()

    def action_paste(self) -> None:
        self._paste(self.app.clipboard)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self._paste(event.text)

    def _paste(self, text: str) -> None:
        text = printable(text.replace("\r\n", "\n").replace("\r", "\n"))
        if is_long(text):
            self._take_long_paste(text)
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
