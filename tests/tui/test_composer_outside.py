"""What leaves the composer's screen: the clipboard, and the user's own editor."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyperclip
import pytest
from textual.pilot import Pilot

from stem_tui import clipboard, editor

from .conftest import Host, run_app
from .test_composer import Desk


class Terminal(Host):
    """An app that keeps what it sends to the terminal's clipboard."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def copy_to_clipboard(self, text: str) -> None:
        self.sent.append(text)


def copied(text: str, system: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    monkeypatch.setattr(pyperclip, "copy", system)
    terminal = Terminal()
    return asyncio.run(clipboard.copy(terminal, text, "the answer")), terminal.sent


def missing(_: str) -> None:
    raise pyperclip.PyperclipException("no copy mechanism")


def test_a_copy_goes_to_both_clipboards(monkeypatch: pytest.MonkeyPatch) -> None:
    system: list[str] = []
    told, terminal = copied("héllo", system.append, monkeypatch)
    assert (system, terminal) == (["héllo"], ["héllo"])
    assert told == "The answer is in the clipboard."


def test_a_copy_goes_to_the_terminals_where_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, terminal = copied("text", missing, monkeypatch)
    assert terminal == ["text"]
    assert "the terminal's clipboard; this system has no other" in told


def test_a_long_copy_goes_to_the_systems_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    system: list[str] = []
    text = "é" * (clipboard.MAX_TERMINAL // 2 + 1)
    told, terminal = copied(text, system.append, monkeypatch)
    assert (system, terminal) == ([text], [])
    assert "too long for the terminal's" in told


def test_a_long_copy_without_a_system_clipboard_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told, terminal = copied("x" * (clipboard.MAX_TERMINAL + 1), missing, monkeypatch)
    assert terminal == []
    assert "was not copied" in told
    assert "/export" in told


def test_half_a_character_is_copied_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    told, terminal = copied("a\ud800", missing, monkeypatch)
    assert terminal == ["a?"]
    assert "The answer was sent" in told


def test_a_clipboard_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()
    monkeypatch.setattr(clipboard, "PATIENCE", 0.01)
    monkeypatch.setattr(pyperclip, "copy", lambda _: release.wait())

    async def test() -> str:
        try:
            return await clipboard.copy(Terminal(), "text")
        finally:
            release.set()

    assert "this system has no other" in asyncio.run(test())


def command(tmp_path: Path, code: str) -> str:
    """The command line of an editor that does that to the file named last."""
    script = tmp_path / "an editor.py"
    script.write_text(f"import sys, pathlib\nfile = pathlib.Path(sys.argv[-1])\n{code}\n")
    python = Path(sys.executable).as_posix()
    return f'"{python}" "{script.as_posix()}" --wait'


SHOUT = "file.write_text(file.read_text('utf-8').upper() + '\\n', 'utf-8')"


def edited(line: str | None, monkeypatch: pytest.MonkeyPatch, text: str = "draft é") -> Desk:
    """A desk whose composer was opened in an editor by key."""
    desk = Desk()
    monkeypatch.setattr(desk, "suspend", nullcontext)

    async def test(pilot: Pilot[Any]) -> None:
        desk.composer.editor = line
        desk.composer.load(text)
        await pilot.press("ctrl+g")
        await pilot.app.workers.wait_for_complete()
        desk.left = desk.composer.text

    run_app(desk, test)
    return desk


def test_a_message_is_written_in_an_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = edited(command(tmp_path, SHOUT), monkeypatch)
    assert desk.left == "DRAFT É\n"


def test_the_editor_of_the_environment_is_taken_where_none_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", command(tmp_path, SHOUT))
    assert edited(None, monkeypatch).left == "DRAFT É\n"


def test_what_an_editor_left_alone_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert edited(command(tmp_path, ""), monkeypatch, "a\n\n").left == "a\n\n"


def test_what_an_editor_wrote_cannot_take_over_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        edited(command(tmp_path, "file.write_text('a\\x1b[2Jb\\n')"), monkeypatch).left == "a[2Jb"
    )


@pytest.mark.parametrize(
    "code",
    ["sys.exit(3)", "file.write_bytes(b'\\xff\\xfe\\xff')", "file.unlink()"],
    ids=["fails", "no text", "no file"],
)
def test_an_editor_that_fails_leaves_the_message_alone(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = edited(command(tmp_path, code), monkeypatch)
    assert desk.left == "draft é"
    assert "the message is as it was" in desk.told[0]


@pytest.mark.parametrize("line", ["/no/such/editor", "vi 'unclosed"])
def test_an_editor_that_cannot_be_started_is_told(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = edited(line, monkeypatch)
    assert desk.left == "draft é"
    assert "Name another editor" in desk.told[0]


def test_a_terminal_that_cannot_be_lent_is_told() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        with pytest.raises(editor.EditorError, match="cannot be lent"):
            await editor.edit(pilot.app, "text")

    run_app(Host(), test)
