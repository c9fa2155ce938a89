"""Exporting a conversation to a file and importing one, from the list of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.events import Paste
from textual.pilot import Pilot
from textual.widgets import OptionList

from stem_local.history import History
from stem_tui.screens.conversation_files import file_stem
from stem_tui.screens.conversations import ConversationsScreen

from .conftest import Host, run_app, shown, until


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    """One conversation, and an empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    history = History.in_memory()
    number = history.create({})
    asked = history.add(number, None, "user", "Why is the sky blue?")
    history.add(number, asked.id, "assistant", "Because of Rayleigh.")
    yield history
    history.close()


def after(history: History, *steps: str | tuple[str, ...] | Paste) -> str:
    """What is on the screen after steps: keys to press, a text to wait for, or one to paste and
    send. Texts may be broken into lines: the names of files in folders of tests are long.
    """

    async def test(pilot: Pilot[Any]) -> str:
        screen = ConversationsScreen(history)
        await pilot.app.push_screen(screen)
        await until(pilot, lambda: screen.query_one(OptionList).option_count)
        for step in steps:
            if isinstance(step, tuple):
                await pilot.press(*step)
            elif isinstance(step, Paste):
                pilot.app.post_message(step)
                await pilot.press("enter")
            else:
                await until(pilot, lambda step=step: step in unbroken(shown(pilot.app)))
        return shown(pilot.app)

    return run_app(Host(), test, (220, 24))


def unbroken(screen: str) -> str:
    """The words of a screen with single blanks, without the frame around them."""
    return " ".join(screen.replace("│", " ").split())


def test_a_conversation_is_written_as_markdown_under_its_title(history: History) -> None:
    after(history, ("ctrl+s",), "to which file?", ("enter",), "Written to")
    text = Path("why-is-the-sky-blue.md").read_text(encoding="utf-8")
    assert "Because of Rayleigh." in text


def test_what_was_exported_as_json_is_imported_again(history: History) -> None:
    after(history, ("ctrl+s",), "to which file?", Paste("sky.json"), "Written to")
    assert json.loads(Path("sky.json").read_text(encoding="utf-8"))["messages"]
    after(history, ("ctrl+o",), "Import which file?", Paste("sky.json"), "2 conversations")
    assert [entry.content for entry in history.get(2).entries] == [
        "Why is the sky blue?",
        "Because of Rayleigh.",
    ]


@pytest.mark.parametrize(("key", "kept"), [("n", True), ("y", False)])
def test_a_file_is_replaced_only_after_asking(history: History, key: str, kept: bool) -> None:
    Path("a.md").write_text("mine", encoding="utf-8")
    then = () if kept else ("Written to",)
    after(history, ("ctrl+s",), "to which file?", Paste("a.md"), "Replace it?", (key,), *then)
    assert (Path("a.md").read_text(encoding="utf-8") == "mine") is kept


@pytest.mark.parametrize(
    ("key", "typed", "problem"),
    [
        ("ctrl+s", "a.txt", "must end in .md or .json"),
        ("ctrl+s", "nowhere/a.md", "cannot be written"),
        ("ctrl+s", "~nobody-of-that-name/a.md", "home directory"),
        ("ctrl+o", "nothing.json", "There is no file"),
        ("ctrl+o", "bad.json", "not JSON"),
    ],
)
def test_what_cannot_be_done_is_said(history: History, key: str, typed: str, problem: str) -> None:
    Path("bad.json").write_text("{", encoding="utf-8")
    asked = {"ctrl+s": "to which file?", "ctrl+o": "Import which file?"}[key]
    after(history, (key,), asked, Paste(typed), problem)
    assert len(history.conversations()) == 1
    assert [path.name for path in Path().iterdir()] == ["bad.json"]


@pytest.mark.parametrize("key", ["ctrl+s", "ctrl+o"])
def test_leaving_the_question_does_nothing(history: History, key: str) -> None:
    text = after(history, (key,), "file?", ("escape",), "1 conversation.")
    assert "Written" not in text
    assert list(Path().iterdir()) == []


def test_an_import_shows_up_in_the_whole_list(history: History) -> None:
    messages = [{"role": "user", "content": "What does the fox say?"}]
    Path("fox.json").write_text(json.dumps(messages), encoding="utf-8")
    steps = (("b", "l", "u", "e"), "1 found", ("ctrl+o",), "Import which file?")
    assert "fox say" in after(history, *steps, Paste("fox.json"), "2 conversations")


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_a_title_becomes_a_file_name_that_every_system_takes(title: str) -> None:
    stem = file_stem(title)
    assert 0 < len(stem) <= 60
    assert not set(stem) & set('/\\:*?"<>|. \n\t\0')
