"""The open conversation: what is saved of it and what the model is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stem_local.chat_settings import ChatSettings
from stem_local.errors import UsageError
from stem_local.history import Attachment, Entry, History
from stem_tui.dialogue import Dialogue

STATS = {"prompt_tokens": 12, "completion_tokens": 5, "tokens_per_second": 9.0}


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue(History.in_memory(), ChatSettings(), "tiny")


def answered(dialogue: Dialogue, text: str, answer: str, **changes: object) -> Entry:
    """A question and its answer."""
    dialogue.say(text)
    entry = replace(dialogue.answer(), content=answer, state="whole", **changes)  # type: ignore[arg-type]
    dialogue.put(entry)
    dialogue.save_last()
    return entry


def said(dialogue: Dialogue) -> list[str]:
    return [entry.content for entry in dialogue.entries]


def test_nothing_is_saved_before_something_is_said(dialogue: Dialogue) -> None:
    assert dialogue.id is None
    assert dialogue.history.conversations() == []
    dialogue.say("Why is the sky blue?")
    (info,) = dialogue.history.conversations()
    assert (info.id, info.title) == (dialogue.id, dialogue.title)


def test_it_opens_as_it_was_left(dialogue: Dialogue) -> None:
    dialogue.settings = ChatSettings(temperature=0.3, sparsity=0.5)
    answered(dialogue, "One?", "Two.", stats=STATS)
    assert dialogue.id is not None
    again = Dialogue.open(dialogue.history, dialogue.id, ChatSettings())
    assert again.entries == dialogue.entries
    assert (again.settings, again.model) == (dialogue.settings, "tiny")
    assert again.title == dialogue.title
    assert again.context_used == 17


def test_regenerating_and_editing_make_branches(dialogue: Dialogue) -> None:
    first = answered(dialogue, "One?", "Two.")
    dialogue.cut(first)
    second = dialogue.answer()
    assert second.branch == (2, 2)
    dialogue.put(replace(second, content="Three."))
    dialogue.save_last()
    dialogue.step(second.id, -1)
    assert said(dialogue) == ["One?", "Two."]
    with pytest.raises(UsageError, match="earlier"):
        dialogue.step(first.id, -1)
    dialogue.cut(dialogue.entries[0])
    dialogue.say("Four?")
    assert said(dialogue) == ["Four?"]
    assert dialogue.entries[0].branch == (2, 2)


def test_an_answer_is_shown_with_what_it_answers(dialogue: Dialogue) -> None:
    answered(dialogue, "One?", "Two.")
    dialogue.say("Three?", [Attachment("notes.txt", "some\n```\nnotes")])
    assert dialogue.messages() == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "notes.txt:\n\n````\nsome\n```\nnotes\n````\n\nThree?"},
    ]


def test_messages_take_turns_where_an_answer_is_missing(dialogue: Dialogue) -> None:
    answered(dialogue, "One?", "", stats={"error": "no"})
    dialogue.say("Two?")
    dialogue.answer()
    assert dialogue.messages() == [{"role": "user", "content": "One?\n\nTwo?"}]
    assert dialogue.figures is None
    assert dialogue.context_used == 0


def test_forgotten_turns_stay_forgotten_on_their_branch(dialogue: Dialogue) -> None:
    answered(dialogue, "One?", "Two.")
    last = answered(dialogue, "Three?", "Four.", forgotten=1)
    assert dialogue.forgotten == 1
    dialogue.cut(last)
    assert dialogue.forgotten == 0


def test_it_moves_to_another_history_with_its_branch(dialogue: Dialogue) -> None:
    answered(dialogue, "One?", "Two.", stats=STATS)
    old = dialogue.history
    dialogue.move(History.in_memory())
    assert said(dialogue) == ["One?", "Two."]
    answered(dialogue, "Three?", "Four.")
    assert dialogue.id is not None
    assert len(dialogue.history.get(dialogue.id).entries) == 4
    assert len(old.get(old.latest() or 0).entries) == 2


def test_an_empty_one_moves_as_nothing(dialogue: Dialogue) -> None:
    dialogue.move(History.in_memory())
    assert dialogue.id is None


def test_what_is_not_on_the_branch_is_refused(dialogue: Dialogue) -> None:
    with pytest.raises(UsageError, match="no message"):
        dialogue.last("user")
    with pytest.raises(UsageError, match="not on the open branch"):
        dialogue.entry(7)
    with pytest.raises(UsageError, match="still being opened"):
        Dialogue(None, ChatSettings()).say("Hi")
