"""The chat's lines where there is little room for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stem_local.config import Config

from .chatting import Chatting, run_chat
from .fake_model import Scripted


@pytest.fixture
def model(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


@pytest.mark.parametrize("height", [4, 5, 6, 7, 10, 12])
def test_what_is_typed_and_answered_is_seen_in_a_few_rows(model: Scripted, height: int) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.press("h", "i")
        assert "│ hi" in chatting.screen
        await chatting.send_held("Hi")
        assert "answering …" in chatting.screen
        await chatting.let_go()

    run_chat(model, test, size=(20, height))


def test_how_to_stop_is_told_while_there_is_something_to_stop(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        assert "f12 stops the answer" not in chatting.screen
        await chatting.send_held("Hi")
        assert "f12 stops the answer" in chatting.screen
        await chatting.press("f12")
        await chatting.let_go()
        assert "f12 stops the answer" not in chatting.screen

    run_chat(model, test, config=Config(keys={"chat.stop": "f12"}))


@pytest.mark.parametrize("width", [30, 60, 80, 100])
def test_no_key_of_the_last_line_is_cut_off(model: Scripted, width: int) -> None:
    async def test(chatting: Chatting) -> None:
        for size in (width, width + 5, width):
            await chatting.pilot.resize_terminal(size, 24)
            await chatting.until(lambda: chatting.screen.splitlines()[-1].startswith(" ⏎ Send"))
            *_, keys = chatting.screen.splitlines()
            whole = (
                " ⏎ Send  ^j New line  f1 Help  f2 Models  f3 Chats  f4 Settings  ^n New chat  ^t "
            )
            assert whole.startswith(f"{keys}  ")
            assert len(keys) > size - 15 or size > 77

    run_chat(model, test, size=(width, 24))


def test_that_nothing_is_saved_is_seen_beside_a_long_title(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Tell me about 漢字漢字漢字 and lighthouses and their keepers.")
        title, *_ = chatting.screen.splitlines()
        assert title.startswith(" tiny · Tell me about 漢字")
        assert title.endswith("… · (private)")

    run_chat(model, test, size=(40, 24), config=Config(private=True))
