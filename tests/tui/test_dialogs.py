"""The small screens over the chat: a question, a line of text, a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input, Markdown

from stem_tui.screens.confirm import ConfirmScreen
from stem_tui.screens.dialog import one_line
from stem_tui.screens.page import PageScreen
from stem_tui.screens.prompt import MAX_LENGTH, PromptScreen

from .conftest import SIZE, Host, run_app, shown

NOTHING_YET = object()


def answers(
    screen: Callable[[], Screen[Any]], *ways: Sequence[str], size: tuple[int, int] = SIZE
) -> list[Any]:
    """What a screen returns for each way to answer it: keys, or a selector to click on."""
    results: list[Any] = []

    async def test(pilot: Pilot[Any]) -> None:
        for way in ways:
            answered: list[Any] = []
            await pilot.app.push_screen(screen(), answered.append)
            if isinstance(way, str):
                await pilot.click(way)
            else:
                await pilot.press(*way)
            await pilot.pause()
            if not answered:
                pilot.app.pop_screen()
            results.append(answered[0] if answered else NOTHING_YET)

    run_app(Host(), test, size)
    return results


def text_of(screen: Screen[Any], *keys: str) -> str:
    """What is on the terminal after these keys."""

    async def test(pilot: Pilot[Any]) -> str:
        await pilot.app.push_screen(screen)
        await pilot.press(*keys)
        await pilot.pause()
        return shown(pilot.app)

    return run_app(Host(), test)


def test_a_question_is_answered_by_keys_and_clicks() -> None:
    yes = [["y"], ["left", "enter"], ["up", "enter"], ["right", "enter"], ["shift+tab", "enter"]]
    no = [["n"], ["escape"], ["enter"], ["left", "down", "enter"]]
    ask = partial(ConfirmScreen, "Delete it?")
    assert answers(ask, *yes, "#yes") == [True] * 6
    assert answers(ask, *no, "#no") == [False] * 5
    assert answers(ask, ["x"]) == [NOTHING_YET]


def test_a_question_shows_what_will_happen_and_nothing_but_text() -> None:
    screen = ConfirmScreen("[b]Delete[/b]\x1b[2J it?", title="A\x07 [i]title", yes="Go", no="Stay")
    text = text_of(screen)
    for part in ("[b]Delete[/b][2J it?", "A [i]title", "Go (y)", "Stay (n)"):
        assert part in text
    assert "\x1b" not in text


def test_the_answers_to_a_long_question_are_in_sight() -> None:
    assert "Keep (n)" in text_of(ConfirmScreen("word " * 2_000, yes="Delete", no="Keep"))


def test_a_question_can_be_answered_on_a_tiny_terminal() -> None:
    ask = partial(ConfirmScreen, "word " * 200)
    assert answers(ask, ["y"], ["left", "enter"], size=(20, 6)) == [True, True]


def test_a_line_of_text_is_typed() -> None:
    ask = partial(PromptScreen, "New title", "old")
    assert answers(ask, ["enter"], "#done", ["n", "e", "w", "enter"]) == ["old", "old", "new"]
    assert answers(ask, ["end", "e", "r", "enter"]) == ["older"]
    assert answers(ask, ["space", "x", "space", "enter"]) == ["x"]
    assert answers(ask, ["escape"], "#cancel") == [None, None]
    assert answers(ask, ["delete", "enter"], ["space", "enter"]) == [NOTHING_YET, NOTHING_YET]


def test_an_empty_line_is_told_of() -> None:
    assert "Type something first" in text_of(PromptScreen("Title", hint="any"), "enter")


def test_a_prompt_holds_a_value_of_any_length_and_no_more_than_a_line() -> None:
    async def test(pilot: Pilot[Any]) -> str:
        await pilot.app.push_screen(PromptScreen("Title", "a\nb\x1b" + "x" * 10_000))
        return pilot.app.screen.query_one(Input).value

    value = run_app(Host(), test)
    assert value.startswith("a bx")
    assert len(value) == MAX_LENGTH


def test_a_page_is_left_by_key() -> None:
    assert (
        answers(partial(PageScreen, "Figures", "text"), ["escape"], ["q"], ["enter"]) == [None] * 3
    )


def test_a_page_shows_markdown_and_scrolls() -> None:
    page = "# Speed\n\n" + "\n\n".join(f"line {n}" for n in range(30))
    first = text_of(PageScreen("Figures", page))
    assert "Speed" in first
    assert "line 29" not in first
    assert "line 29" in text_of(PageScreen("Figures", page), "end")


@pytest.mark.parametrize(("key", "opened"), [("y", ["https://example.org/"]), ("n", [])])
def test_a_link_is_opened_only_after_asking(
    monkeypatch: pytest.MonkeyPatch, key: str, opened: list[str]
) -> None:
    got: list[str] = []

    async def test(pilot: Pilot[Any]) -> str:
        monkeypatch.setattr(pilot.app, "open_url", lambda url, **_: got.append(url))
        await pilot.app.push_screen(PageScreen("Page", "[here](https://example.org/)"))
        page = pilot.app.screen.query_one(Markdown)
        page.post_message(Markdown.LinkClicked(page, "https://example.org/"))
        await pilot.pause()
        asked = shown(pilot.app)
        await pilot.press(key)
        return asked

    assert "https://example.org/" in run_app(Host(), test)
    assert got == opened


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_one_line_is_one_line_without_control_characters(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert line == line.strip()
    assert one_line(line) == line
