"""The command palette: what it offers, how it is searched, what choosing does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input, OptionList

from stem_local.errors import HistoryError
from stem_local.history import History
from stem_tui import slash
from stem_tui.palette import Palette, match

from .conftest import Host, run_app, until


class Composer(Input):
    """Where a command that needs an argument is begun."""

    def load(self, text: str) -> None:
        self.value = text


class Chat(Screen[None]):
    """As much of a chat as the palette acts on."""

    COMMANDS: ClassVar[set[Any]] = {Palette}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+y", "wave", "Wave", id="chat.wave"),
        Binding("ctrl+k", "nameless", "Nameless"),
    ]

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history = history
        self.composer = Composer()
        self.did: list[object] = []

    def compose(self) -> ComposeResult:
        yield self.composer

    def tell(self, text: str, severity: str = "information") -> None:
        self.did.append((severity, text))

    async def open_conversation(self, number: int) -> None:
        self.did.append(("opened", number))

    async def new_chat(self) -> None:
        self.did.append("cleared")

    def action_wave(self) -> None:
        self.did.append("waved")


class PaletteHost(Host):
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[Any]] = set()

    def __init__(self, history: History | None = None) -> None:
        super().__init__()
        self.chat = Chat(history or History.in_memory())

    def get_default_screen(self) -> Chat:
        return self.chat


async def offered(pilot: Pilot[Any], query: str = "") -> list[str]:
    """What the palette lists for a query, best first, each as one line."""
    pilot.app.action_command_palette()
    await until(pilot, lambda: CommandPalette.is_open(pilot.app))
    await pilot.press(*query)
    results = pilot.app.screen.query_one(OptionList)
    await until(pilot, lambda: results.option_count)
    await pilot.app.workers.wait_for_complete()
    return [option.prompt.plain for option in results.options]


def choose(query: str, done: Callable[[Chat], object], history: History | None = None) -> Chat:
    """Search, take the first, and wait for what it does."""
    app = PaletteHost(history)

    async def test(pilot: Pilot[Any]) -> None:
        await offered(pilot, query)
        await pilot.press("enter")
        await until(pilot, lambda: done(app.chat))

    run_app(app, test)
    return app.chat


def test_commands_and_keys_are_offered_at_once() -> None:
    texts = run_app(PaletteHost(), offered)
    for command in slash.COMMANDS.values():
        assert f"/{command.name}: {command.help}" in texts
    assert "Wave (^y)" in texts
    assert not any("Nameless" in text for text in texts)


def test_a_command_is_run() -> None:
    assert choose("clear", lambda chat: chat.did).did == ["cleared"]


def test_a_command_that_needs_more_is_begun_in_the_composer() -> None:
    chat = choose("/read", lambda chat: chat.composer.value)
    assert chat.composer.value == "/read "
    assert chat.did == []


def test_a_key_is_run() -> None:
    assert choose("wave", lambda chat: chat.did).did == ["waved"]


def test_a_theme_is_chosen() -> None:
    choose("stem-light", lambda chat: chat.app.theme == "stem-light")


def test_a_conversation_is_opened_by_its_title_which_is_only_text() -> None:
    history = History.in_memory()
    number = history.create({})
    history.add(number, None, "user", "About [@click=app.quit]foxes[/] and hens")

    async def test(pilot: Pilot[Any]) -> list[str]:
        return await offered(pilot, "foxes hens")

    (text,) = run_app(PaletteHost(history), test)
    assert text.startswith("Open: About [@click=app.quit]foxes[/] and hens\n")
    chat = choose("foxes hens", lambda chat: chat.did, history)
    assert chat.did == [("opened", number)]


def test_without_a_history_the_rest_is_offered(monkeypatch: Any) -> None:
    def fail(*_: object) -> None:
        raise HistoryError("The disk is gone.")

    monkeypatch.setattr(History, "conversations", fail)
    app = PaletteHost()

    async def test(pilot: Pilot[Any]) -> list[str]:
        return await offered(pilot, "wave")

    assert run_app(app, test) == ["Wave (^y)"]
    assert app.chat.did == [("error", "The disk is gone.")]


def test_words_match_in_any_order_and_the_name_counts_most() -> None:
    assert match("hens fox", "the fox and the hens") is not None
    assert match("fox dog", "the fox and the hens") is None
    name, middle, inside = (match("set", text) for text in ("/set: x", "to set", "offset"))
    assert name and middle and inside
    assert name[0] > middle[0] > inside[0] > 0


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=200))
def test_what_matches_contains_every_word(query: str, text: str) -> None:
    found = match(query, text)
    words = query.lower().split()
    assert (found is not None) == all(word in text.lower() for word in words)
    if found is not None:
        score, places = found
        assert 0 <= score <= 1
        assert [text.lower()[start:end] for start, end in places] == words
