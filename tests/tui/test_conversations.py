"""The list of saved conversations: finding, opening, renaming, deleting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from stem_local.errors import HistoryError
from stem_local.history import History
from stem_local.history.entries import ConversationInfo, Hit
from stem_tui.screens import conversations
from stem_tui.screens.conversation_rows import Row, conversation_row, hit_row, marked, when
from stem_tui.screens.conversations import ConversationsScreen

from .conftest import NOW, SIZE, Host, run_app, shown, until

pytestmark = pytest.mark.usefixtures("clock")

DAY = 86_400

T = TypeVar("T")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "PAUSE", 0.001)


@pytest.fixture
def history() -> Iterator[History]:
    """Three conversations; the fox is on a branch that was left."""
    history = History.in_memory()
    for question in ("Why is the sky blue?", "What does the fox say?", "How do magnets work?"):
        number = history.create({})
        asked = history.add(number, None, "user", question)
        history.add(number, asked.id, "assistant", f"Nobody knows {question.split()[-1]}")
    history.add(2, None, "user", "What does the hen say?")
    yield history
    history.close()


class Opened:
    """The screen over a host app, what it returned, and what can be seen of it."""

    def __init__(self, history: History, pilot: Pilot[Any], **options: Any) -> None:
        self.pilot = pilot
        self.screen = ConversationsScreen(history, **options)
        self.results: list[int | None] = []

    @property
    def text(self) -> str:
        return shown(self.pilot.app)

    @property
    def numbers(self) -> list[int]:
        rows = self.screen.query_one(OptionList).options
        return [row.conversation for row in rows if isinstance(row, Row)]

    async def open(self, count: int) -> None:
        await self.pilot.app.push_screen(self.screen, self.results.append)
        await self.rows(count)

    async def rows(self, count: int) -> None:
        await until(self.pilot, lambda: len(self.numbers) == count)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def returned(self) -> int | None:
        await until(self.pilot, lambda: self.results)
        return self.results[0]

    async def said(self, text: str) -> None:
        await until(self.pilot, lambda: text in self.text)


def listed(
    history: History,
    test: Callable[[Opened], Awaitable[T]],
    *,
    rows: int = 3,
    app: Host | None = None,
    size: tuple[int, int] = SIZE,
    **options: Any,
) -> T:
    """What a test returns that begins once so many rows are listed."""

    async def session(pilot: Pilot[Any]) -> T:
        opened = Opened(history, pilot, **options)
        await opened.open(rows)
        return await test(opened)

    return run_app(app or Host(), session, size)


def test_conversations_are_listed_newest_first_and_opened(history: History) -> None:
    async def test(opened: Opened) -> None:
        assert opened.numbers == [3, 2, 1]
        listing = "▸ today 14:13 3 What does"
        await until(opened.pilot, lambda: listing in " ".join(opened.text.split()))
        assert "3 conversations." in opened.text
        await opened.press("down", "down", "up", "enter")
        assert await opened.returned() == 2
        assert opened.screen.deleted == set()

    listed(history, test, current=2)


@pytest.mark.parametrize(
    ("keys", "number"),
    [
        (["pagedown"], 1),
        (["pagedown", "pageup"], 3),
        (["down"], 2),
        (["up"], 1),
    ],
)
def test_keys_move_through_the_list(history: History, keys: list[str], number: int) -> None:
    async def test(opened: Opened) -> int | None:
        await opened.press(*keys, "enter")
        return await opened.returned()

    assert listed(history, test) == number


def test_a_click_opens_and_escape_leaves(history: History) -> None:
    async def click(opened: Opened) -> int | None:
        await opened.pilot.click(OptionList, offset=(10, 1))
        return await opened.returned()

    async def leave(opened: Opened) -> int | None:
        await opened.press("escape")
        return await opened.returned()

    assert listed(history, click) == 2
    assert listed(history, leave) is None


def test_words_are_searched_as_they_are_typed(history: History) -> None:
    async def test(opened: Opened) -> None:
        await opened.press(*"nobo")
        await opened.said("3 found with “nobo”")
        assert " model  What does the fox say?" in opened.text
        assert "Nobody knows say?" in opened.text
        await opened.press(*"dy blue")
        await opened.said("1 found with “nobody blue”")
        await opened.press(*"xyz")
        await opened.said("Nothing has “nobody bluexyz”")
        await opened.press("enter", "ctrl+r", "ctrl+d", "ctrl+s")
        assert opened.results == []
        assert opened.pilot.app.screen is opened.screen
        opened.screen.query_one(Input).value = ""
        await opened.rows(3)

    listed(history, test)


def test_a_found_message_is_opened_on_its_own_branch(history: History) -> None:
    assert [entry.content for entry in history.get(2).entries] == ["What does the hen say?"]

    async def test(opened: Opened) -> int | None:
        await opened.press("enter")
        assert await opened.returned() == 2
        return opened.screen.found

    find = partial(listed, history, test, rows=1, query="knows say", current=2)

    # It would take the branch away from under an answer that is being written.
    assert find(answering=True) is None
    assert len(history.get(2).entries) == 1
    assert find(answering=False) == 4
    branch = [entry.content for entry in history.get(2).entries]
    assert branch == ["What does the fox say?", "Nobody knows say?"]


def test_the_found_message_that_is_highlighted_stays_so(history: History) -> None:
    async def test(opened: Opened) -> int | None:
        history.add(2, None, "user", "Another fox")
        history.add(2, None, "user", "A third fox")
        opened.screen.query_one(Input).value = "fox "
        await opened.rows(3)
        return opened.screen.query_one(OptionList).highlighted

    assert listed(history, test, rows=1, query="fox") == 2


def test_enter_waits_for_what_was_typed_to_be_found(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "PAUSE", 0.1)

    async def test(opened: Opened) -> int | None:
        for key in (*"blue", "enter"):
            opened.pilot.app.simulate_key(key)
        return await opened.returned()

    assert listed(history, test) == 1


def test_a_conversation_is_renamed(history: History) -> None:
    async def test(opened: Opened) -> None:
        await opened.press("down", "ctrl+r")
        await opened.said("New title")
        await opened.press("escape")
        await opened.pilot.pause()
        await opened.press("ctrl+r")
        await opened.said("New title")
        await opened.press(*"Foxes", "enter")
        await opened.said("3  Foxes")
        await opened.press("enter")
        assert await opened.returned() == 2
        assert opened.screen.renamed == {2: "Foxes"}

    listed(history, test)
    assert history.get(2).info.title == "Foxes"


def test_a_conversation_is_deleted_only_after_asking(history: History) -> None:
    async def test(opened: Opened) -> None:
        await opened.press("down", "ctrl+d")
        await opened.said("Delete “What does the fox say?”")
        await opened.press("n")
        await opened.pilot.pause()
        assert opened.numbers == [3, 2, 1]
        await opened.press("ctrl+d")
        await opened.said("Delete “What does the fox say?”")
        await opened.press("y")
        await opened.rows(2)
        assert opened.numbers == [3, 1]
        assert opened.screen.deleted == {2}
        await opened.press("enter")
        assert await opened.returned() == 1

    listed(history, test)
    assert [info.id for info in history.conversations()] == [3, 1]


def test_a_conversation_that_is_being_answered_is_kept(history: History) -> None:
    async def test(opened: Opened) -> None:
        await opened.press("ctrl+d")
        await opened.said("stop it first")
        await opened.press("down", "ctrl+d")
        await opened.said("Delete “What does the fox say?”")

    listed(history, test, current=3, answering=True)


def test_more_are_listed_as_one_goes_down(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "PAGE", 20)
    for number in range(50):
        history.add(history.create({}), None, "user", f"Question {number}")

    async def test(opened: Opened) -> None:
        assert "The 20 newest conversations; more below." in opened.text
        await opened.press("pagedown")
        await opened.rows(40)
        # Meanwhile another window begins one, which moves the others down.
        history.add(history.create({}), None, "user", "Question 50")
        await opened.press("pagedown", "pagedown")
        await opened.rows(53)
        assert len(set(opened.numbers)) == 53
        await opened.said("53 conversations.")

    listed(history, test, rows=20)


def test_what_goes_wrong_is_said_and_the_list_stays(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise HistoryError("The disk is full: make room and try again.")

    async def test(opened: Opened) -> None:
        monkeypatch.setattr(History, "search", fail)
        await opened.press("x")
        await opened.said("The disk is full")
        assert opened.numbers == [3, 2, 1]

    listed(history, test)


def test_a_private_history_says_so_and_an_empty_one_too() -> None:
    async def test(opened: Opened) -> str:
        await opened.said("No conversations yet")
        await opened.press("enter", "ctrl+r", "ctrl+d", "ctrl+s", "down")
        return opened.text

    assert "(not saved)" in listed(History.in_memory(), test, rows=0)


def test_the_keys_are_all_on_a_small_screen(history: History) -> None:
    async def test(opened: Opened) -> str:
        return opened.text

    text = listed(history, test)
    for key in ("Open", "Rename", "Export", "Import", "Delete", "Close"):
        assert key in text


def test_keys_can_be_others(history: History) -> None:
    app = Host()
    app.set_keymap({"conversations.open": "ctrl+l", "conversations.delete": "f8"})

    async def test(opened: Opened) -> int | None:
        await opened.press("ctrl+d", "enter", "f8")
        await opened.said("Delete “How do magnets work?”")
        assert opened.results == []
        await opened.press("y")
        await opened.rows(2)
        await opened.press("ctrl+l")
        return await opened.returned()

    assert listed(history, test, app=app) == 2


def test_a_tiny_terminal_still_lists_and_finds(history: History) -> None:
    async def test(opened: Opened) -> int | None:
        assert "today 14:13" in opened.text
        await opened.press("down", "enter")
        return await opened.returned()

    assert listed(history, test, size=(40, 8)) == 2


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (0, "today 14:13"),
        (14 * 3_600, "today 00:13"),
        (15 * 3_600, "yesterday 23:13"),
        (6 * DAY, "Tue 14:13"),
        (7 * DAY, "2026-09-14"),
        (-DAY, "2026-09-22"),
    ],
)
def test_times_are_short(ago: float, text: str) -> None:
    assert when(NOW - ago) == text


@settings(max_examples=40, deadline=None)
@given(st.floats() | st.integers(), st.text(), st.integers(0))
def test_a_row_of_anything_is_one_line(then: float, title: str, messages: int) -> None:
    info = ConversationInfo(1, title, then, then, messages)
    row = conversation_row(info, NOW)
    assert len(row.prompt.plain.splitlines()) == 1
    assert len(when(then, NOW)) <= 15


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters() | st.sampled_from("\x02\x03\n ")))
def test_a_found_message_of_anything_is_two_lines(snippet: str) -> None:
    hit = Hit(1, "title", 1, "assistant", snippet, NOW)
    assert len(hit_row(hit, NOW).prompt.plain.split("\n")) == 2
    assert not set("\x02\x03") & set(marked(snippet).plain)


def test_found_words_are_marked_without_colour() -> None:
    shown = marked("a \x02fox\x03 and [b]a\x02hen\x03")
    assert shown.plain.strip() == "a fox and [b]ahen"
    found = [(shown.plain[span.start : span.end], span.style) for span in shown.spans]
    assert found == [("fox", "bold underline"), ("hen", "bold underline")]
