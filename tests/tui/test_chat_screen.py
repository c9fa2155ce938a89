"""The chat with a scripted model: asking, stopping, branching, and what is kept."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from textual import events

from stem_local.chat_settings import ChatSettings
from stem_local.config import Config
from stem_local.errors import HistoryError, NotInstalledError, UsageError
from stem_local.history import History
from stem_local.history.aside import default_path
from stem_runtime import paths
from stem_tui.screens.models import ModelsScreen

from .chatting import Chatting, run_chat
from .fake_model import Scripted


@pytest.fixture
def model(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


def saved() -> list[list[str]]:
    """What the history on disk has, of every conversation its open branch."""
    history = History.open()
    try:
        found = [history.get(info.id) for info in history.conversations()]
    finally:
        history.close()
    return [[entry.content for entry in conversation.entries] for conversation in found]


def test_a_question_is_answered_drawn_and_saved(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Hi")
        assert chatting.said == ["Hi", "Hello there."]
        assert "Hello there." in chatting.screen
        assert "tok/s" in chatting.screen
        assert "of 400 tokens" in chatting.screen

    run_chat(model, test)
    assert saved() == [["Hi", "Hello there."]]


def test_the_screen_is_drawn_before_the_model_is_open(model: Scripted) -> None:
    model.hold_opening()

    async def test(chatting: Chatting) -> None:
        assert "Write a message" in chatting.screen
        await chatting.send("Hi")
        await chatting.until(lambda: len(chatting.entries) == 2)
        assert chatting.chat.answering
        model.hold()
        model.release_opening()
        await chatting.until(model.started.is_set)
        assert "● tiny" in chatting.screen
        await chatting.let_go()
        assert chatting.said == ["Hi", "Hello there."]
        kept = chatting.chat.history.get(chatting.chat.conversation)
        assert kept.entries[-1].model == "tiny"

    run_chat(model, test, opened=False)


def test_a_conversation_goes_on_with_what_was_said(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("One")
        read = model.engine.evaluated
        await chatting.ask("Two")
        stats = chatting.entries[-1].stats or {}
        assert stats["prompt_tokens"] > stats["reused_tokens"] > 0
        # the cache was kept: only what is new was read
        assert model.engine.evaluated - read < stats["prompt_tokens"]

    run_chat(model, test)


def test_escape_stops_the_answer_and_keeps_what_came(model: Scripted) -> None:
    model.reply = "word " * 60

    async def test(chatting: Chatting) -> None:
        await chatting.send_held("Hi", after=40)
        await chatting.press("escape")
        await chatting.let_go()
        answer = chatting.entries[-1]
        assert answer.state == "stopped"
        assert 0 < len(answer.content) < len(model.reply)
        assert model.reply.startswith(answer.content)
        assert "stopped" in chatting.screen

    run_chat(model, test)
    assert model.reply.startswith(saved()[0][1])


def test_escape_leads_from_the_messages_back_to_writing_before_it_stops(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.send_held("Hi", after=1)
        for leave in ("escape", "down"):
            await chatting.press("ctrl+up", leave)
            assert chatting.chat.composer.area.has_focus
        await chatting.let_go()
        assert chatting.said == ["Hi", "Hello there."]

    run_chat(model, test)


def test_escape_stops_a_prompt_being_read(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.send_held("A question that is longer than one part of the prompt")
        await chatting.press("escape")
        assert model.engine.interrupted
        await chatting.let_go()
        answer = chatting.entries[-1]
        assert (answer.content, answer.state) == ("", "stopped")

    run_chat(model, test)


def test_a_message_waits_while_an_answer_is_under_way(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.send_held("One")
        await chatting.send("Two")
        assert chatting.chat.composer.text == "Two"
        assert "under way" in chatting.told
        await chatting.let_go()
        assert len(chatting.entries) == 2

    run_chat(model, test)


def test_answering_again_makes_a_branch_to_go_back_from(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Hi")
        first = chatting.entries[-1]
        await chatting.press("ctrl+r")
        await chatting.until(
            lambda: chatting.entries[-1].branch == (2, 2) and not chatting.chat.answering
        )
        assert chatting.said == ["Hi", "Hello there."]
        assert "2/2" in chatting.screen
        await chatting.press("ctrl+up", "left")
        await chatting.until(lambda: chatting.entries[-1].id == first.id)
        assert "1/2" in chatting.screen
        await chatting.press("ctrl+up", "right")
        await chatting.until(lambda: chatting.entries[-1].id != first.id)

    run_chat(model, test)


def test_editing_a_message_makes_a_branch(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("One")
        await chatting.ask("Two")
        await chatting.press("ctrl+up", "up", "e")
        await chatting.until(lambda: chatting.chat.composer.editing)
        assert chatting.chat.composer.text == "Two"
        await chatting.press("escape")
        assert not chatting.chat.composer.editing
        await chatting.press("ctrl+up", "home", "e")
        await chatting.until(lambda: chatting.chat.composer.editing)
        assert chatting.chat.composer.text == "One"
        chatting.chat.composer.area.put("Three")
        await chatting.press("enter")
        await chatting.until(lambda: len(chatting.entries) == 2 and not chatting.chat.answering)
        assert chatting.said == ["Three", "Hello there."]
        assert chatting.entries[0].branch == (2, 2)

    run_chat(model, test)
    assert saved() == [["Three", "Hello there."]]


def test_another_chat_ends_an_edit(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("One")
        composer = chatting.chat.composer
        composer.area.put("Begun")
        await chatting.press("ctrl+up", "home", "e")
        await chatting.until(lambda: composer.editing)
        await chatting.press("ctrl+n")
        await chatting.until(lambda: not chatting.entries)
        assert not composer.editing
        assert composer.text == "Begun"

    run_chat(model, test)


def test_an_error_is_told_and_the_question_kept(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        def fail(_: object) -> None:
            raise UsageError("The lights went out.")

        model.engine.before_step = fail
        await chatting.ask("Hi")
        assert chatting.entries[-1].state == "failed"
        assert "The lights went out." in chatting.told
        model.engine.before_step = model.step
        await chatting.ask("Still there?")
        assert chatting.said[-1] == "Hello there."

    run_chat(model, test)


def test_a_full_context_is_told(tmp_path: Path) -> None:
    model = Scripted(tmp_path, "word " * 60, context=120)

    async def test(chatting: Chatting) -> None:
        await chatting.ask("Hi")
        assert chatting.entries[-1].state == "context"
        assert "The context is full" in chatting.told
        assert "full: the chat stops here" in chatting.screen
        await chatting.ask("More")
        assert chatting.entries[-1].state == "failed"
        assert "context policy drop_oldest" in chatting.told

    run_chat(model, test)


def test_old_turns_are_dropped_where_that_is_wanted_and_marked(tmp_path: Path) -> None:
    model = Scripted(tmp_path, "Six. " * 6, context=200)
    config = Config(chat=ChatSettings(context_policy="drop_oldest", max_tokens=50))

    async def test(chatting: Chatting) -> None:
        for turn in range(5):
            await chatting.ask(f"Question {turn} of them?")
        assert chatting.entries[-1].forgotten > 0
        assert chatting.entries[-1].state == "whole"
        assert chatting.entries[1].forgotten == 0

    run_chat(model, test, config=config)


@pytest.mark.parametrize("draft", [True, False])
def test_answers_are_drafted_as_the_settings_say(model: Scripted, draft: bool) -> None:
    async def test(chatting: Chatting) -> None:
        for _ in range(2):
            await chatting.ask("Hi")
        assert ((chatting.entries[-1].stats or {})["drafted_tokens"] > 0) == draft

    model.draft_tokens = 3
    run_chat(model, test, config=Config(draft=draft))


def test_sparsity_is_changed_by_key_and_kept_with_the_chat(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Hi")
        assert chatting.chat.settings.sparsity == "auto"
        # a share needs calibration: it is refused in words, and nothing changes
        await chatting.press("f9")
        await chatting.until(lambda: "matter" in chatting.told)
        assert chatting.chat.settings.sparsity == "auto"
        await chatting.send("/sparsity off")
        await chatting.until(lambda: chatting.chat.settings.sparsity == "off")
        assert "sparsity ◂ off ▸" in chatting.screen
        await chatting.ask("Again")
        assert (chatting.entries[-1].stats or {})["sparsity"] == "dense: switched off"

    run_chat(model, test)
    history = History.open()
    assert history.get(history.latest() or 0).settings["sparsity"] == "off"
    history.close()


def test_a_new_chat_leaves_the_old_one(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("One")
        await chatting.press("ctrl+n")
        await chatting.until(lambda: not chatting.entries)
        await chatting.ask("Two")

    run_chat(model, test)
    assert sorted(conversation[0] for conversation in saved()) == ["One", "Two"]


def test_a_new_chat_stops_the_answer_of_the_old_one_and_keeps_it(model: Scripted) -> None:
    model.reply = "word " * 60

    async def test(chatting: Chatting) -> None:
        await chatting.send_held("One", after=30)
        await chatting.press("ctrl+n")
        model.release()
        await chatting.until(lambda: not chatting.entries)
        await chatting.ask("Two")
        assert chatting.said[0] == "Two"

    run_chat(model, test)
    assert sorted(conversation[0] for conversation in saved()) == ["One", "Two"]


def delete_elsewhere(chatting: Chatting) -> None:
    history = History.open()
    history.delete(chatting.chat.conversation)
    history.close()


def test_a_chat_that_another_window_deletes_goes_on(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("One")
        delete_elsewhere(chatting)
        await chatting.ask("Two")
        assert "deleted elsewhere; it is saved anew" in chatting.told

    run_chat(model, test)
    assert saved() == [["One", "Hello there.", "Two", "Hello there."]]


def test_a_chat_that_is_deleted_while_it_answers_keeps_the_answer(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.send_held("One", after=1)
        delete_elsewhere(chatting)
        await chatting.let_go()
        await chatting.until(lambda: "saved anew" in chatting.told)
        assert chatting.screen.count("Hello there.") == 1
        await chatting.press("f3")
        await chatting.until(lambda: "Conversations" in chatting.screen)
        delete_elsewhere(chatting)
        await chatting.press("escape")
        await chatting.send("/export")
        await chatting.until(lambda: "to which file" in chatting.screen)

    run_chat(model, test)
    assert saved() == [["One", "Hello there."]]


def test_what_the_command_line_says_holds_for_a_resumed_chat(model: Scripted) -> None:
    async def first(chatting: Chatting) -> None:
        await chatting.send("/set temperature 0.3")
        await chatting.ask("One")

    async def second(chatting: Chatting) -> None:
        await chatting.until(lambda: chatting.chat.settings.system == "Be brief.")
        assert chatting.chat.settings.temperature == 0.3
        assert chatting.chat.model_name == "other"

    run_chat(model, first)
    run_chat(model, second, resume="latest", model="other", given={"system": "Be brief."})


def test_the_model_of_the_last_chat_answers_the_next(model: Scripted) -> None:
    async def first(chatting: Chatting) -> None:
        await chatting.send("/model other")
        await chatting.until(lambda: chatting.chat.model_name == "other")
        await chatting.ask("One")

    async def second(chatting: Chatting) -> None:
        assert chatting.chat.model_name == "other"

    run_chat(model, first)
    run_chat(model, second)


@pytest.mark.parametrize("resume", ["latest", 1])
def test_a_chat_is_resumed_with_its_settings(model: Scripted, resume: int | str) -> None:
    async def first(chatting: Chatting) -> None:
        await chatting.send("/set temperature 0.3")
        await chatting.ask("One")

    async def second(chatting: Chatting) -> None:
        await chatting.until(lambda: chatting.said == ["One", "Hello there."])
        assert chatting.chat.settings.temperature == 0.3
        assert "One" in chatting.screen
        await chatting.ask("Two")

    run_chat(model, first)
    run_chat(model, second, resume=resume)
    assert saved() == [["One", "Hello there.", "Two", "Hello there."]]


def test_resuming_what_is_not_there_is_told(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.until(lambda: chatting.told)
        assert not chatting.entries

    run_chat(model, test, resume=77)
    run_chat(model, test, resume="latest")


def test_a_first_message_is_sent_at_once(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.until(lambda: chatting.said == ["Hi", "Hello there."])

    run_chat(model, test, first="Hi")


def test_a_private_chat_writes_nothing(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Secret")
        assert "(private)" in chatting.screen

    run_chat(model, test, config=Config(private=True))
    assert not paths.data_dir().exists() or not list(paths.data_dir().glob("history*"))


def test_models_are_switched_and_the_old_one_let_go(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Hi")
        old = chatting.app.seat.model
        await chatting.send("/model other")
        await chatting.until(lambda: chatting.chat.model_name == "other")
        await chatting.until(lambda: old is not None and old.closed)
        await chatting.ask("Again")
        assert chatting.entries[-1].model == "other"

    run_chat(model, test)


def test_a_model_that_is_gone_leaves_the_one_that_answers(model: Scripted) -> None:
    def fails(name: str | None) -> Exception | None:
        return NotInstalledError("gone is not installed.") if name == "gone" else None

    model.fails = fails

    async def test(chatting: Chatting) -> None:
        await chatting.send("/model gone")
        await chatting.until(lambda: "gone is not installed." in chatting.told)
        await chatting.ask("Hi")
        assert chatting.said == ["Hi", "Hello there."]

    run_chat(model, test)


def test_the_first_run_offers_models_and_uses_the_one_chosen(model: Scripted) -> None:
    model.fails = lambda name: None if name else NotInstalledError("Nothing is installed.")

    async def test(chatting: Chatting) -> None:
        await chatting.until(lambda: isinstance(chatting.app.screen, ModelsScreen))
        chatting.app.screen.dismiss("chosen")
        await chatting.until(lambda: chatting.chat.model_name == "chosen")
        await chatting.ask("Hi")

    run_chat(model, test, opened=False)
    assert [opened["name"] for opened in model.opened] == [None, "chosen"]


def test_without_a_model_a_question_says_what_to_do(model: Scripted) -> None:
    model.fails = lambda _: NotInstalledError("Nothing is installed.")

    async def test(chatting: Chatting) -> None:
        await chatting.until(lambda: isinstance(chatting.app.screen, ModelsScreen))
        await chatting.press("escape")
        await chatting.ask("Hi")
        assert "No model is open" in chatting.told

    run_chat(model, test, opened=False)


def test_a_full_disk_loses_nothing_of_the_chat(
    model: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = History.add

    def full(history: History, *arguments: object, **options: object) -> object:
        if not history.private:
            raise HistoryError("The disk is full.")
        return add(history, *arguments, **options)  # type: ignore[arg-type]

    async def test(chatting: Chatting) -> None:
        await chatting.ask("One")
        with monkeypatch.context() as patch:
            patch.setattr(History, "add", full)
            await chatting.ask("Two")
        assert "The disk is full." in chatting.told
        assert "(not saved)" in chatting.screen
        assert chatting.said == ["One", "Hello there.", "Two", "Hello there."]
        await chatting.send("/save")
        await chatting.until(lambda: "(not saved)" not in chatting.screen)
        await chatting.ask("Three")

    run_chat(model, test)
    assert ["One", "Hello there.", "Two", "Hello there.", "Three", "Hello there."] in saved()


def test_a_damaged_history_is_moved_aside_only_when_told_to(model: Scripted) -> None:
    path = default_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all" * 100)

    async def leave(chatting: Chatting) -> None:
        await chatting.until(lambda: "Move aside" in chatting.screen)
        await chatting.press("escape")
        await chatting.until(lambda: chatting.chat.model_name)
        await chatting.ask("Hi")
        assert "(not saved)" in chatting.screen

    async def move(chatting: Chatting) -> None:
        await chatting.until(lambda: "Move aside" in chatting.screen)
        await chatting.press("y")
        await chatting.until(lambda: chatting.chat.model_name)
        await chatting.ask("Hi")

    run_chat(model, leave, opened=False)
    assert path.read_bytes().startswith(b"no database")
    run_chat(model, move, opened=False)
    assert saved() == [["Hi", "Hello there."]]
    (aside,) = path.parent.glob("history-damaged-*.db")
    assert aside.read_bytes().startswith(b"no database")


def test_quitting_keeps_the_answer_under_way(model: Scripted) -> None:
    model.reply = "word " * 60

    async def test(chatting: Chatting) -> None:
        await chatting.send_held("Hi", after=30)
        chatting.app.run_worker(chatting.app.action_quit())
        model.release()
        await chatting.until(lambda: chatting.app.chat.dialogue.entries[-1].state == "stopped")

    run_chat(model, test)
    (conversation,) = saved()
    assert conversation[0] == "Hi"


def test_files_go_along_with_a_message(model: Scripted, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("remember the milk")

    async def test(chatting: Chatting) -> None:
        await chatting.send(f"/read {notes}")
        await chatting.until(lambda: chatting.chat.composer.attachments)
        await chatting.ask("What is in it?")
        assert chatting.entries[0].attachments[0].text == "remember the milk"
        assert "notes.txt" in chatting.screen
        assert "remember the milk" in chatting.chat.dialogue.messages()[0]["content"]

    run_chat(model, test)


@pytest.mark.parametrize("size", [(20, 6), (40, 10), (200, 60)])
def test_windows_of_any_size_work(model: Scripted, size: tuple[int, int]) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Hi")
        await chatting.press("f4")
        await chatting.press("escape")
        await chatting.ask("Again")
        assert len(chatting.entries) == 4

    run_chat(model, test, size=size)


def test_settings_in_the_panel_hold_for_the_next_answer(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.press("f4")
        await chatting.until(lambda: "Settings of this chat" in chatting.screen)
        await chatting.press(*"Be brief")
        await chatting.until(lambda: chatting.chat.settings.system == "Be brief")
        await chatting.press("escape")
        assert "Settings of this chat" not in chatting.screen
        await chatting.ask("Hi")
        assert chatting.chat.composer.area.has_focus

    run_chat(model, test)


def test_a_remapped_key_works_and_the_old_one_does_not(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        await chatting.ask("Hi")
        await chatting.press("ctrl+n")
        assert chatting.entries
        await chatting.press("f10")
        await chatting.until(lambda: not chatting.entries)

    run_chat(model, test, config=replace(Config(), keys={"chat.new": "f10"}))


def test_a_home_that_cannot_be_written_is_told_and_the_chat_goes_on(
    model: Scripted, home: Path
) -> None:
    (home / "data").write_text("a file where the folder should be")

    async def test(chatting: Chatting) -> None:
        assert "cannot be saved" in chatting.told
        await chatting.ask("Hi")
        assert "(not saved)" in chatting.screen
        await chatting.send("/save")
        await chatting.until(lambda: chatting.told.count("cannot be saved") == 2)
        assert chatting.said == ["Hi", "Hello there."]

    run_chat(model, test)


def test_a_newer_history_is_left_alone(model: Scripted) -> None:
    History.open().close()
    path = default_path()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9999")
    connection.close()
    before = path.read_bytes()

    async def test(chatting: Chatting) -> None:
        assert "newer version" in chatting.told
        await chatting.ask("Hi")

    run_chat(model, test)
    assert path.read_bytes() == before


def test_a_pasted_megabyte_goes_along_as_a_file(model: Scripted) -> None:
    text = "All work and no play. " * 45_000

    async def test(chatting: Chatting) -> None:
        chatting.app.post_message(events.Paste(text))
        await chatting.until(lambda: chatting.chat.composer.attachments)
        assert chatting.chat.composer.text == ""
        await chatting.ask("What is this?")
        # the model has no room for it, and says so
        assert "The prompt is" in chatting.told
        assert chatting.entries[0].attachments[0].text.strip() == text.strip()

    run_chat(model, test)


def test_a_model_removed_while_it_is_open_goes_on_answering(model: Scripted) -> None:
    async def test(chatting: Chatting) -> None:
        shutil.rmtree(chatting.app.seat.model.packed.folder)  # type: ignore[union-attr]
        await chatting.ask("Hi")
        assert chatting.said == ["Hi", "Hello there."]
        model.fails = lambda name: NotInstalledError(f"{name} is not installed.")
        await chatting.send("/model tiny")
        await chatting.until(lambda: "tiny is not installed." in chatting.told)
        await chatting.ask("Still there?")
        assert chatting.said[-1] == "Hello there."

    run_chat(model, test)
