"""The help page: every key and every command, as they are now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from ..keys import KeyAction, areas
from ..widgets.key_line import KeyLine
from .dialog import Dialog

if TYPE_CHECKING:
    from ..slash.command import SlashCommand

_LEFT = 26
_RIGHT = 28
"""Cells for what is pressed or typed, and for the longest id."""

_WIDE = 100
"""Cells from which there is room for the ids."""


class HelpScreen(Dialog[None]):
    """Keys by area with the ids that remap them, and the slash commands."""

    DEFAULT_CSS = """
    HelpScreen > #box {
        width: 116;
        height: 95%;
        padding: 0 1;
    }
    HelpScreen VerticalScroll {
        height: 1fr;
    }
    """

    AUTO_FOCUS = "VerticalScroll"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1", "leave", "Close", id="help.close"),
    ]

    def __init__(self, below: Screen[Any]) -> None:
        """`below` is the screen whose keys are explained."""
        super().__init__("Help")
        self._below = below

    def parts(self) -> ComposeResult:
        with VerticalScroll():
            yield Static()
        yield KeyLine()

    def on_mount(self) -> None:
        self._keys = areas(self.app, self._below)

    def on_resize(self) -> None:
        from ..slash import COMMANDS

        # The scroll bar comes only with the text, and would wrap it anew.
        width = self.query_one(VerticalScroll).size.width - 2
        text = help_text(self._keys, COMMANDS.values(), width)
        self.query_one(Static).update(text)

    def action_leave(self) -> None:
        self.dismiss()


def help_text(
    keys: Mapping[str, Sequence[KeyAction]], commands: Iterable[SlashCommand], width: int
) -> Content:
    """Keys by area, then commands, in columns that fit a width."""
    lines: list[Content] = []
    for area, actions in keys.items():
        lines.append(Content.styled(area, "bold underline"))
        for action in actions:
            lines.extend(_row(" ".join(action.keys), action.description, action.id, width))
        lines.append(Content(""))
    lines.append(Content.styled("Commands", "bold underline"))
    for command in commands:
        lines.extend(_row(command.usage, command.help, "", width))
    lines.append(Content(""))
    where = "The [keys] table of config.toml chooses other keys"
    names = (
        "by the names at the right." if width >= _WIDE else "by names that a wider window shows."
    )
    lines.append(Content(f"{where}, {names}"))
    return Content("\n").join(lines)


def _row(left: str, text: str, name: str, width: int) -> Iterator[Content]:
    """What is pressed, what that does in as many lines as it takes, and the name for the config."""
    wide = width >= _WIDE
    room = width - _LEFT - 2 - (_RIGHT if wide else 0)
    if room < _LEFT:
        yield Content.styled(f"  {left}", "bold")
        for line in wrap(text, max(width - 4, 10)):
            yield Content(f"    {line}")
        return
    first, *others = wrap(text, room) or [""]
    start = (f"  {left:<{_LEFT}}", "bold")
    if wide:
        yield Content.assemble(start, f"{first:<{room}} ", (name, "$foreground-muted"))
    else:
        yield Content.assemble(start, first)
    for other in others:
        yield Content(f"{'':<{_LEFT + 2}}{other}")
