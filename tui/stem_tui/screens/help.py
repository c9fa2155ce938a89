"""The help page: every key and every command, as they are now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Static

from ..keys import KeyAction, areas
from .dialog import Dialog

if TYPE_CHECKING:
    from ..slash.command import SlashCommand

_KEYS = 24
_TEXT = 30
"""Widths of the columns, in cells: what is left of 80 holds the longest id."""


class HelpScreen(Dialog[None]):
    """Keys by area with the ids that remap them, and the slash commands."""

    DEFAULT_CSS = """
    HelpScreen > #box {
        width: 90;
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
        from ..slash import COMMANDS

        with VerticalScroll():
            yield Static(help_text(areas(self.app, self._below), COMMANDS.values()))
        yield Footer(show_command_palette=False)

    def action_leave(self) -> None:
        self.dismiss()


def help_text(keys: Mapping[str, Sequence[KeyAction]], commands: Iterable[SlashCommand]) -> Content:
    """Keys, then commands, in columns."""
    lines: list[Content] = []
    for area, actions in keys.items():
        lines.append(Content.styled(area, "bold underline"))
        lines.extend(_row(" ".join(a.keys), a.description, a.id) for a in actions)
        lines.append(Content(""))
    lines.append(Content.styled("Commands", "bold underline"))
    lines.extend(_row(command.usage, command.help, "") for command in commands)
    lines.append(Content(""))
    lines.append(
        Content("The names at the right choose other keys, in the [keys] table of config.toml.")
    )
    return Content("\n").join(lines)


def _row(left: str, text: str, right: str) -> Content:
    return Content.assemble(
        (f"  {left:<{_KEYS}} ", "bold"), f"{text:<{_TEXT}} ", (right, "$text-muted")
    )
