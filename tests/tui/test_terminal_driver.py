"""Keys, pastes and signals as the terminal sends them. Some tests need tmux."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual import constants, events
from textual.driver import Driver
from textual.drivers.headless_driver import HeadlessDriver

from stem_tui.terminal_driver import BriefSelector, PasteParser, driver

from .tmux import Tmux

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


def test_only_what_follows_input_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []
    select = selectors.SelectSelector.select

    def record(selector: selectors.SelectSelector, timeout: float | None = None) -> object:
        waited.append(timeout)
        return select(selector, 0)

    monkeypatch.setattr(selectors.SelectSelector, "select", record)
    reading, writing = os.pipe()
    with BriefSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        assert selector.select(0.1) == []
        os.write(writing, b"\x1b")
        assert selector.select(0.1)
        os.read(reading, 1)
        assert selector.select(0.1) == []
        assert selector.select(None) == []
    os.close(reading)
    os.close(writing)
    assert waited == [0.1, 0.1, constants.ESCAPE_DELAY, None]


def test_drivers_of_other_systems_stay_as_they_are() -> None:
    assert driver(HeadlessDriver) is HeadlessDriver


@pytest.mark.skipif(os.name == "nt", reason="Windows has another driver")
def test_the_driver_of_terminals_is_told_to_be_brief() -> None:
    from textual.drivers.linux_driver import LinuxDriver

    quick: type[Driver] = driver(LinuxDriver)
    assert issubclass(quick, LinuxDriver)
    assert quick.run_input_thread is not LinuxDriver.run_input_thread


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_pasted_is_never_taken_for_keys(at_once: bool) -> None:
    sent = "a\x1b[31mred\r\x1b\x11\x1b[20\x1b\x1b[201~b\x1b[A"
    parser = PasteParser()
    read = [sent] if at_once else list(sent)
    found = [message for part in ["\x1b[200~", *read] for message in parser.feed(part)]
    paste, *keys = found
    assert isinstance(paste, events.Paste)
    assert paste.text == "a[31mred\r\x11[20"
    assert [key.key for key in keys if isinstance(key, events.Key)] == ["b", "up"]


@pytest.fixture
def chat(tmp_path: Path, home: Path) -> Iterator[Tmux]:
    """stem-chat on a terminal, without any model; then how it leaves the terminal."""
    with Tmux(tmp_path) as tmux:
        command = f"{sys.executable} -m stem_tui; stty -a"
        tmux.run(["sh", "-c", command], {"STEM_HOME": str(home)})
        tmux.wait_for("Choose a model")
        yield tmux


def send(chat: Tmux, *signals: int) -> None:
    found = subprocess.run(["pgrep", "-P", str(chat.pid)], capture_output=True, check=True)
    for number in signals:
        os.kill(int(found.stdout), number)


def left_as_it_was(chat: Tmux) -> bool:
    """Whether the terminal edits lines again and shows no picture."""
    chat.wait_for_end()
    return " icanon" in chat.screen() and "Choose" not in chat.screen()


@needs_tmux
def test_after_a_stop_the_terminal_is_taken_back(chat: Tmux) -> None:
    send(chat, signal.SIGSTOP, signal.SIGCONT)
    chat.resize(100, 30)
    chat.wait_for("Choose a model")
    chat.press("C-q")
    assert left_as_it_was(chat)


@needs_tmux
def test_told_to_end_it_leaves_the_terminal_as_it_was(chat: Tmux) -> None:
    send(chat, signal.SIGTERM)
    assert left_as_it_was(chat)
