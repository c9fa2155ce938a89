"""What could be typed next, in a list over whatever is above it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from stem_local.terminal import printable

from .. import slash
from ..slash.command import Suggestion

if TYPE_CHECKING:
    from ..screens.chat import ChatScreen

ROWS = 8
"""Suggestions in view at once; the list scrolls to the chosen one."""

PATIENCE = 1.0
"""Seconds that Tab waits for a list; folders can be far away."""


class Suggestions(Widget):
    """What a slash command that is being typed could become; the text keeps the focus."""

    class Picked(Message):
        """A suggestion was clicked."""

        def __init__(self, suggestion: Suggestion) -> None:
            super().__init__()
            self.suggestion = suggestion

    DEFAULT_CSS = """
    Suggestions {
        overlay: screen;
        constrain: inside inside;
        display: none;
        width: 100%;
        padding: 0 1;
        border: round $border;
        background: $surface;
        color: $foreground;
        text-wrap: nowrap;
        text-overflow: ellipsis;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._items: Sequence[Suggestion] = ()
        self._chosen: int | None = None
        self._top = 0
        self._rows = ROWS
        self._text = ""
        self._dismissed = False
        self._listed = asyncio.Event()
        self._listed.set()

    @property
    def open(self) -> bool:
        return bool(self._items)

    @property
    def chosen(self) -> Suggestion | None:
        """The one under the mark; None where none is marked yet."""
        return None if self._chosen is None else self._items[self._chosen]

    @property
    def only(self) -> Suggestion | None:
        """The one that there is, marked or not, where there is no other."""
        return self._items[0] if len(self._items) == 1 else None

    def follow(self, text: str) -> None:
        """Offer what `text` could become. Names of commands are there at once, arguments soon."""
        if text == self._text:
            return
        self._text = text
        if not text.startswith("/"):
            self._dismissed = False
        names = () if self._dismissed else slash.names(text)
        if names or self._dismissed or slash.awaited(text) is None:
            self._show(names, mark_first=True)
        else:
            # what was marked was for another text, and Enter may come before the new list does
            self._chosen = None
            self._listed.clear()
            self.run_worker(self._list_arguments(text), group="arguments", exclusive=True)

    def dismiss(self) -> None:
        """Close the list until another command is typed."""
        self._dismissed = True
        self._show((), mark_first=False)

    async def listed(self) -> None:
        """Wait until what follows the text is listed, if that takes no longer than people do."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._listed.wait()

    async def _list_arguments(self, text: str) -> None:
        chat = cast("ChatScreen", self.screen)
        items = await asyncio.to_thread(slash.arguments, chat, text)
        if text == self._text and not self._dismissed:
            # what is typed may be meant as it stands, so Enter takes one only if it was marked
            self._show(items, mark_first=False)

    def _show(self, items: Sequence[Suggestion], *, mark_first: bool) -> None:
        self._listed.set()
        self._items = items
        self._chosen = 0 if items and mark_first else None
        self._top = 0
        self._rows = max(1, min(len(items), ROWS, self._room))
        self.styles.height = self._rows + 2
        self.styles.offset = (0, -self._rows - 2)
        self.display = self.open
        self._update()

    def move(self, step: int) -> None:
        """Mark the next suggestion, or the one before; around at the ends."""
        if self._chosen is None:
            self._chosen = 0 if step > 0 else len(self._items) - 1
        else:
            self._chosen = (self._chosen + step) % len(self._items)
        self._top = max(min(self._top, self._chosen), self._chosen - self._rows + 1)
        self._update()

    def render(self) -> Content:
        names = [_one_line(item.label or item.value) for item in self._items]
        width = min(max(map(cell_len, names), default=0), self.size.width // 2)
        lines = []
        for row in range(self._top, min(self._top + self._rows, len(names))):
            mark = "▸" if row == self._chosen else " "
            lines.append(
                Content.assemble(
                    (f"{mark} {names[row]}", "bold" if row == self._chosen else ""),
                    " " * (width - cell_len(names[row])),
                    (f"  {_one_line(self._items[row].help)}", "$text-muted"),
                )
            )
        return Content("\n").join(lines)

    def on_click(self, event: events.Click) -> None:
        event.stop()
        row = self._top + event.y - self.gutter.top
        if event.y >= self.gutter.top and row < min(self._top + self._rows, len(self._items)):
            self.post_message(self.Picked(self._items[row]))

    @property
    def _room(self) -> int:
        """Rows above what is typed, which stays in view, less the frame of the list."""
        composer = cast("Widget", self.parent).region
        return composer.y - 2 if composer else ROWS

    def _update(self) -> None:
        hidden = len(self._items) - self._rows
        place = "" if self._chosen is None else f"{self._chosen + 1} of "
        self.border_subtitle = f"{place}{len(self._items)}" if hidden > 0 else ""
        self.refresh()


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())
