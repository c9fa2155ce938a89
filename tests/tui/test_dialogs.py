"""The small screens over the chat: a question, a line of text, a page."""

from __future__ import annotations

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

from .conftest import Host, run_app, shown

NOTHING_YET = object()


def answer(screen: Screen[Any], *keys: str, click: str | None = None, size=(80, 24)) -> Any:
    """What a screen returns after these keys, or after a click."""
    results: list[Any] = []

    async def test(pilot: Pilot[Any]) -> None:
        await pilot.app.push_screen(screen, results.append)
        await pilot.press(*keys)
        if click is not None:
            await pilot.click(click)
        await pilot.pause()

    run_app(Host(), test, size)
    return results[0] if results else NOTHING_YET


def text_of(screen: Screen[Any], *keys: str, size=(80, 24)) -> str:
    """What is on the terminal after these keys."""

    async def test(pilot: Pilot[Any]) -> str:
        await pilot.app.push_screen(screen)
        await pilot.press(*keys)
        await pilot.pause()
        return shown(pilot.app)

    return run_app(Host(), test, size)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["y"], True),
        (["n"], False),
        (["escape"], False),
        (["enter"], False),
        (["left", "enter"], True),
        (["up", "enter"], True),
        (["right", "enter"], True),
        (["left", "down", "enter"], False),
        (["shift+tab", "enter"], True),
        (["x"], NOTHING_YET),
    ],
)
def test_a_question_is_answered_by_keys(keys: list[str], expected: object) -> None:
    assert answer(ConfirmScreen("Delete it?"), *keys) is expected


@pytest.mark.parametrize(("button", "expected"), [("#yes", True), ("#no", False)])
def test_a_question_is_answered_by_mouse(button: str, expected: bool) -> None:
    assert answer(ConfirmScreen("Delete it?"), click=button) is expected


def test_a_question_shows_what_will_happen_and_nothing_but_text() -> None:
    screen = ConfirmScreen("[b]Delete[/b]\x1b[2J it?", title="A\x07 [i]title", yes="Go", no="Stay")
    text = text_of(screen)
    for part in ("[b]Delete[/b][2J it?", "A [i]title", "Go (y)", "Stay (n)"):
        assert part in text
    assert "\x1b" not in text


def test_a_question_can_be_answered_on_a_tiny_terminal() -> None:
    assert answer(ConfirmScreen("word " * 200), "y", size=(20, 6)) is True


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["enter"], "old"),
        (["n", "e", "w", "enter"], "new"),
        (["end", "e", "r", "enter"], "older"),
        (["space", "x", "space", "enter"], "x"),
        (["escape"], None),
        (["delete", "enter"], NOTHING_YET),
        (["space", "enter"], NOTHING_YET),
    ],
)
def test_a_line_of_text_is_typed(keys: list[str], expected: object) -> None:
    assert answer(PromptScreen("New title", "old"), *keys) == expected


@pytest.mark.parametrize(("button", "expected"), [("#done", "old"), ("#cancel", None)])
def test_a_line_of_text_is_taken_by_mouse(button: str, expected: str | None) -> None:
    assert answer(PromptScreen("New title", "old"), click=button) == expected


def test_an_empty_line_is_told_of() -> None:
    assert "Type something first" in text_of(PromptScreen("Title", hint="any"), "enter")


def test_a_prompt_holds_a_value_of_any_length_and_no_more_than_a_line() -> None:
    async def test(pilot: Pilot[Any]) -> str:
        await pilot.app.push_screen(PromptScreen("Title", "a\nb\x1b" + "x" * 10_000))
        return pilot.app.screen.query_one(Input).value

    value = run_app(Host(), test)
    assert value.startswith("a bx")
    assert len(value) == MAX_LENGTH


@pytest.mark.parametrize("key", ["escape", "q", "enter"])
def test_a_page_is_left_by_key(key: str) -> None:
    assert answer(PageScreen("Figures", "text"), key) is None


def test_a_page_shows_markdown_and_scrolls() -> None:
    page = "# Speed\n\n" + "\n\n".join(f"line {n}" for n in range(60))
    assert "Speed" in text_of(PageScreen("Figures", page))
    assert "line 59" not in text_of(PageScreen("Figures", page))
    assert "line 59" in text_of(PageScreen("Figures", page), "end")


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
