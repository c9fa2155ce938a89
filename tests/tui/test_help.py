"""Help is made from the bindings in force and the table of commands."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input

from stem_tui import slash
from stem_tui.keys import KeyAction, areas
from stem_tui.screens.help import HelpScreen, help_text

from .conftest import Host, run_app, shown


class Talker(Widget, can_focus=True):
    """A widget with bindings of every kind."""

    DEFAULT_CSS = "Talker { height: 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+y,y", "say", "Say it", id="talker.say"),
        Binding("ctrl+n", "shout", "Shout it", id="talker.shout", show=False),
        Binding("ctrl+g", "quiet", "", id="talker.quiet"),
        Binding("ctrl+k", "nameless", "Nameless"),
    ]


class TalkerHost(Host):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Show help", id="app.help"),
    ]

    def compose(self) -> ComposeResult:
        yield Input()
        yield Talker()
        yield Talker()

    def action_help(self) -> None:
        self.push_screen(HelpScreen(self.screen))


def keys(app: Host) -> dict[str, dict[str, list[str]]]:
    """Areas, with each id's keys."""

    async def test(pilot: Pilot[Any]) -> dict[str, dict[str, list[str]]]:
        found = areas(pilot.app, pilot.app.screen)
        return {area: {a.id: a.keys for a in actions} for area, actions in found.items()}

    return run_app(app, test)


def test_keys_are_those_of_the_whole_screen_once_each_by_area() -> None:
    assert keys(TalkerHost()) == {
        "Everywhere": {"app.help": ["f1"]},
        "Talker": {"talker.say": ["^y", "y"], "talker.shout": ["^n"]},
    }


def test_keys_are_those_that_the_user_chose() -> None:
    app = TalkerHost()
    app.set_keymap({"talker.say": "f5", "talker.shout": "ctrl+y"})
    assert keys(app)["Talker"] == {"talker.say": ["f5"], "talker.shout": ["^y"]}


def pages(size: tuple[int, int]) -> tuple[str, str]:
    """Help at its beginning and at its end."""

    async def test(pilot: Pilot[Any]) -> tuple[str, str]:
        await pilot.press("f1")
        await pilot.pause()
        first = shown(pilot.app)
        await pilot.press("end")
        await pilot.pause()
        return first, shown(pilot.app)

    return run_app(TalkerHost(), test, size)


def row_of(page: str, text: str) -> list[str]:
    """The words of the row with a text, without the frame."""
    row = next(line for line in page.splitlines() if text in line)
    return row.strip(" │▁▂▃▄▅▆▇█").split()


def test_help_shows_keys_and_how_to_change_them() -> None:
    first, last = pages((80, 24))
    assert row_of(first, "Say it") == ["^y", "y", "Say", "it"]
    assert "[keys] table" in last


def test_help_shows_the_ids_of_keys_where_there_is_room() -> None:
    first, _ = pages((120, 60))
    assert row_of(first, "Say it") == ["^y", "y", "Say", "it", "talker.say"]


def test_help_shows_every_command_on_lines_that_fit() -> None:
    *lines, _ = help_text({}, slash.COMMANDS.values(), 72).plain.splitlines()
    assert max(map(len, lines)) <= 72
    text = " ".join(" ".join(lines).split())
    for command in slash.COMMANDS.values():
        assert f"{command.usage} {command.help}" in text


def test_help_is_left_by_key() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        for key in ("escape", "q", "f1"):
            await pilot.press("f1")
            assert isinstance(pilot.app.screen, HelpScreen)
            await pilot.press(key)
            assert not isinstance(pilot.app.screen, HelpScreen)

    run_app(TalkerHost(), test)


def test_help_puts_what_a_key_does_below_it_where_it_is_narrow() -> None:
    lines = help_text({"A": [KeyAction("a.b", "Say it " * 5, ["f1"])]}, (), 40).plain.splitlines()
    assert lines[1] == "  f1"
    assert lines[2].startswith("    Say it")
    assert max(map(len, lines[:-1])) <= 40
