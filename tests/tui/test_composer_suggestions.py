"""The list that completes slash commands while they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Button, Static

from stem_local.chat_settings import ChatSettings
from stem_local.history import History
from stem_tui.slash import Suggestion
from stem_tui.widgets.composer import Composer
from stem_tui.widgets.suggestions import ROWS, Suggestions

from .conftest import run_app, shown
from .test_composer import NOTES, Desk, type_at_once


class Chat(Screen[None]):
    """What completion reads of a chat."""

    settings = ChatSettings()
    model_name = "smollm2-135m"

    def __init__(self) -> None:
        super().__init__()
        self.history = History.in_memory()

    def compose(self) -> Any:
        yield Static("above")
        yield Composer()


class ChatDesk(Desk):
    def on_mount(self) -> None:
        self.push_screen(Chat())

    @property
    def composer(self) -> Composer:
        return self.screen.query_one(Composer)


async def typed(pilot: Pilot[Any], text: str) -> Suggestions:
    """Type a text whose completion is listed when this returns."""
    composer = pilot.app.screen.query_one(Composer)
    composer.focus()
    composer.load(text)
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    return pilot.app.screen.query_one(Suggestions)


def test_a_slash_lists_every_command_and_typing_narrows_it_down() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        listed = await typed(pilot, "/")
        assert listed.region.height == ROWS + 2
        assert listed.region.bottom == pilot.app.screen.query_one(Composer).region.y
        assert "▸ /help" in shown(pilot.app)
        await pilot.press(*"st")
        await pilot.pause()
        assert "▸ /stats" in shown(pilot.app)
        assert "/help" not in shown(pilot.app)
        await pilot.press("backspace", "backspace", "backspace")
        await pilot.pause()
        assert not listed.display

    run_app(Desk(), test)


def test_arrows_mark_around_the_ends_and_scroll() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        await typed(pilot, "/")
        await pilot.press("up")
        assert "▸ /import" in shown(pilot.app)
        await pilot.press("down", "down")
        assert "▸ /theme" in shown(pilot.app)
        assert pilot.app.screen.query_one(Composer).text == "/"

    run_app(Desk(), test)


def test_enter_runs_the_marked_command_and_asks_for_what_it_needs() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        await typed(pilot, "/sta")
        await pilot.press("enter")
        await typed(pilot, "/mod")
        await pilot.press("enter")
        await pilot.pause()
        assert desk.asked == ["/stats ", "/model "]
        assert desk.composer.text == ""
        await typed(pilot, "/rea")
        await pilot.press("enter")
        await pilot.pause()
        assert desk.composer.text == "/read "
        await pilot.press("enter")
        assert "/read FILE: attach a text file" in desk.told[-1]
        assert desk.composer.text == "/read "
        assert len(desk.asked) == 2

    run_app(Desk(), test)


def test_tab_puts_the_command_in_without_running_it() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        listed = await typed(pilot, "/rege")
        await pilot.press("tab")
        await pilot.pause()
        assert desk.composer.text == "/regen"
        assert not listed.display
        assert desk.asked == []

    run_app(Desk(), test)


def test_tab_leaves_an_empty_composer_alone() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        await desk.mount(Button("next"))
        await pilot.press("a", "tab", "b")
        assert desk.composer.text == "ab"
        await pilot.press("backspace", "backspace", "tab")
        assert isinstance(desk.focused, Button)

    run_app(Desk(), test)


def test_an_alias_completes_to_its_command() -> None:
    async def test(pilot: Pilot[Any]) -> list[Any]:
        await typed(pilot, "/qui")
        await pilot.press("enter")
        await pilot.pause()
        return pilot.app.asked  # type: ignore[attr-defined]

    assert run_app(Desk(), test) == ["/exit "]


def test_escape_closes_the_list_until_another_command_is_typed() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        listed = await typed(pilot, "/s")
        await pilot.press("escape")
        await pilot.press("t")
        await pilot.pause()
        assert not listed.display
        assert desk.composer.text == "/st"
        await pilot.press("enter")
        assert "There is no command /st" in desk.told[-1]
        await typed(pilot, "")
        await typed(pilot, "/s")
        assert listed.display

    run_app(Desk(), test)


def test_the_list_goes_with_the_focus() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        listed = await typed(pilot, "/s")
        pilot.app.set_focus(None)
        await pilot.pause()
        assert not listed.display
        pilot.app.query_one(Composer).focus()
        await pilot.pause()
        assert listed.display
        await pilot.press("escape")
        assert not listed.display

    run_app(Desk(), test)


def test_a_click_puts_a_suggestion_in() -> None:
    async def test(pilot: Pilot[Any]) -> str:
        await typed(pilot, "/")
        await pilot.click(Suggestions, offset=(4, 2))
        await pilot.pause()
        return pilot.app.screen.query_one(Composer).text

    assert run_app(Desk(), test) == "/theme "


def test_clicks_on_the_frame_do_nothing() -> None:
    async def test(pilot: Pilot[Any]) -> str:
        await typed(pilot, "/st")
        for row in (0, 2):
            await pilot.click(Suggestions, offset=(4, row))
        return pilot.app.screen.query_one(Composer).text

    assert run_app(Desk(), test) == "/st"


def test_an_argument_is_sent_as_it_stands_unless_another_is_marked() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, ChatDesk)
        assert not (await typed(pilot, "/theme no-such")).display
        await typed(pilot, "/theme tex")
        assert "  textual-dark   dark" in shown(desk)
        assert "▸" not in shown(desk)
        await pilot.press("enter")
        await typed(pilot, "/theme tex")
        await pilot.press("tab", "tab", "enter")
        await pilot.pause()
        assert desk.asked == ["/theme tex", "/theme textual-dark"]

    run_app(ChatDesk(), test)


def test_a_list_for_what_was_typed_before_marks_nothing() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        listed = await typed(pilot, "/")
        assert listed.chosen is not None
        listed.follow("/read notes.txt")
        # its own list is still on its way
        assert listed.chosen is None

    run_app(ChatDesk(), test)


def test_a_setting_completes_to_its_name_then_to_its_value() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, ChatDesk)
        await typed(pilot, "/set temp")
        assert "  temperature" in shown(desk)
        await pilot.press("tab")
        await typed(pilot, desk.composer.text)
        assert desk.composer.text == "/set temperature "
        assert f"temperature {ChatSettings().describe()[5][1]}" in shown(desk)

    run_app(ChatDesk(), test)


def test_files_complete_folder_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "notes.txt").write_text("x" * 1234)
    (tmp_path / ".hidden").write_text("")
    monkeypatch.chdir(tmp_path)

    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, ChatDesk)
        await typed(pilot, "/read ")
        assert "docs/" in shown(desk)
        assert ".hidden" not in shown(desk)
        await pilot.press("tab")
        await typed(pilot, desk.composer.text)
        assert desk.composer.text == "/read docs/"
        assert "docs/notes.txt  1 kB" in shown(desk)
        await typed(pilot, "/read .h")
        assert ".hidden" in shown(desk)
        await typed(pilot, "/read nowhere/at/all")
        assert not desk.screen.query_one(Suggestions).display

    run_app(ChatDesk(), test)


def test_tab_waits_for_a_list_that_is_on_its_way() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, ChatDesk)
        await pilot.pause()
        await type_at_once(pilot, [*"/branch pre", "tab", "enter", *"/theme", "tab", *"tex"])
        await typed(pilot, desk.composer.text)
        assert desk.asked == ["/branch previous"]
        assert desk.composer.text == "/theme tex"
        assert desk.composer.area.has_focus

    run_app(ChatDesk(), test)


def test_saved_chats_complete_by_number_or_title() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        chat = pilot.app.screen
        assert isinstance(chat, Chat)
        for text in ("Of mice", "Of men\x1b[2J"):
            chat.history.add(chat.history.create({}), None, "user", text)
        await typed(pilot, "/load mEn")
        assert "2  Of men" in shown(pilot.app)
        assert "mice" not in shown(pilot.app)
        await pilot.press("down", "enter")
        await pilot.pause()
        assert pilot.app.asked == ["/load 2"]  # type: ignore[attr-defined]

    run_app(ChatDesk(), test)


def test_models_complete_from_what_is_installed() -> None:
    from stem_local import store

    folder = store.models_dir() / "tiny" / "1"
    folder.mkdir(parents=True)

    async def test(pilot: Pilot[Any]) -> str:
        await typed(pilot, "/model t")
        return shown(pilot.app)

    assert "  tiny" in run_app(ChatDesk(), test)


def test_names_of_files_cannot_paint_over_the_screen() -> None:
    async def test(pilot: Pilot[Any]) -> str:
        listed = pilot.app.query_one(Suggestions)
        listed._show([Suggestion("a\x1b[31m\n[bold]b", "\x9bhelp")], mark_first=True)
        await pilot.pause()
        return shown(pilot.app)

    assert "▸ a[31m [bold]b  help" in run_app(Desk(), test)


def test_the_list_fits_a_tiny_terminal() -> None:
    async def test(pilot: Pilot[Any]) -> str:
        await typed(pilot, "/")
        await pilot.press("up", "up")
        return shown(pilot.app)

    screen = run_app(Desk(), test, size=(30, 8))
    assert "▸ /export" in screen
    assert "│ /  " in screen


def test_how_it_looks(snap_compare: Any, theme: str) -> None:
    async def before(pilot: Pilot[Any]) -> None:
        composer = pilot.app.query_one(Composer)
        composer.area.cursor_blink = False
        composer.load("/s", [NOTES], editing=True)
        await pilot.press("down")
        await pilot.pause()

    desk = Desk(theme)
    desk.title = "stem-chat"
    assert snap_compare(desk, run_before=before)
