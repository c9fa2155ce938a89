from __future__ import annotations

from pathlib import Path

import pytest

from stem_local.chat import Message, split_turns
from stem_local.model import Model
from stem_runtime.errors import ContextFullError, UsageError
from tests.local.fakes import FakeEngine, fake_model

Made = tuple[Model, FakeEngine]


@pytest.fixture
def hello(tmp_path: Path) -> Made:
    return fake_model(tmp_path, reply="Hello.")


def contents(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages]


def test_turns_are_remembered_and_not_read_again(hello: Made) -> None:
    model, engine = hello
    chat = model.chat(system="Be kind.", temperature=0)
    first = chat.send("One")
    engine.evaluated = 0
    second = chat.send("Two")
    assert contents(chat.messages) == ["Be kind.", "One", "Hello.", "Two", "Hello."]
    assert second.text == "Hello."
    before = first.stats.prompt_tokens + first.stats.completion_tokens
    assert second.stats.reused_tokens == before
    stats = second.stats
    read = stats.prompt_tokens + stats.decode_steps + stats.drafted_tokens
    assert engine.evaluated == read - before


def test_sessions_share_the_model_and_keep_apart(hello: Made) -> None:
    model, engine = hello
    chats = [model.chat(temperature=0), model.chat(temperature=0)]
    for text in ("One", "Two"):
        for chat in chats:
            chat.send(text)
    assert contents(chats[0].messages) == contents(chats[1].messages)
    assert engine.caches == 1


def test_options_of_a_session_hold_until_overridden(hello: Made) -> None:
    chat = hello[0].chat(temperature=0, max_tokens=2)
    assert chat.send("One").text == "He"
    assert chat.send("Two", max_tokens=3).text == "Hel"


def test_a_session_can_go_on_from_messages(hello: Made) -> None:
    given: list[Message] = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Hello."},
    ]
    chat = hello[0].chat(messages=given, temperature=0)
    chat.send("Two")
    assert contents(chat.messages) == ["One", "Hello.", "Two", "Hello."]
    assert len(given) == 2
    with pytest.raises(UsageError, match=r"messages\[0\]"):
        hello[0].chat(messages=[{"role": "user"}])


def test_messages_that_were_edited_are_checked(hello: Made) -> None:
    chat = hello[0].chat(temperature=0)
    for wrong in ("Hi", {"content": "Hi"}):
        chat.messages = [wrong]  # type: ignore[list-item]
        with pytest.raises(UsageError, match=r"messages\[0\] must have role and content"):
            chat.send("One")


def test_clear_keeps_the_system_message(hello: Made) -> None:
    chat = hello[0].chat(system="Be kind.", temperature=0)
    chat.send("One")
    chat.clear()
    assert contents(chat.messages) == ["Be kind."]


def test_a_cancelled_answer_is_kept_as_far_as_it_came(hello: Made) -> None:
    chat = hello[0].chat(temperature=0)
    said = ""

    def enough() -> bool:
        return len(said) >= 2

    for chunk in chat.stream("One", cancel=enough):
        said += chunk.text
    assert chunk.finish_reason == "cancelled"
    assert contents(chat.messages) == ["One", said]


def test_a_closed_stream_keeps_what_was_said(hello: Made) -> None:
    chat = hello[0].chat(temperature=0)
    stream = chat.stream("One")
    assert next(stream).text == "H"
    del stream
    assert contents(chat.messages) == ["One", "H"]


def test_a_turn_without_an_answer_leaves_no_trace(hello: Made) -> None:
    model, engine = hello
    chat = model.chat(temperature=0)
    assert chat.send("One", cancel=lambda: True).finish_reason == "cancelled"
    chat.stream("Never read")
    with pytest.raises(ContextFullError):
        chat.send("x" * 300)
    assert chat.messages == []
    assert engine.evaluated == 0


def test_split_turns() -> None:
    def message(role: str) -> Message:
        return {"role": role, "content": role}

    roles = ["system", "user", "assistant", "tool", "assistant", "user"]
    head, turns = split_turns([message(role) for role in roles])
    assert contents(head) == ["system"]
    assert [contents(turn) for turn in turns] == [
        ["user", "assistant", "tool", "assistant"],
        ["user"],
    ]
    assert split_turns([]) == ([], [])


def conversation(turns: int) -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": "Be kind."}]
    for number in range(turns):
        messages += [
            {"role": "user", "content": f"Question {number}"},
            {"role": "assistant", "content": f"Answer {number}"},
        ]
    return [*messages, {"role": "user", "content": "The last one"}]


def test_stop_is_the_policy_unless_told(hello: Made) -> None:
    with pytest.raises(ContextFullError, match="drop_oldest"):
        hello[0].generate(conversation(10))


def test_drop_oldest_keeps_the_system_message_and_the_newest_turns(hello: Made) -> None:
    model, _ = hello
    everything = conversation(10)
    kept = [everything[0], *everything[-3:]]
    alone = model.generate(kept, temperature=0)
    model.generate("Something else", max_tokens=1)
    completion = model.generate(
        everything, temperature=0, context_policy="drop_oldest", max_tokens=20
    )
    assert completion.text == "Hello."
    assert completion.dropped_turns == 9
    assert completion.stats.prompt_tokens == alone.stats.prompt_tokens <= model.context // 2


def test_drop_oldest_drops_nothing_that_fits(hello: Made) -> None:
    completion = hello[0].generate(
        conversation(1), temperature=0, context_policy="drop_oldest", max_tokens=20
    )
    assert completion.dropped_turns == 0


def test_drop_oldest_never_drops_the_question(hello: Made) -> None:
    model, _ = hello
    earlier = conversation(3)[:-1]
    messages = [*earlier, {"role": "user", "content": "x" * 120}]
    completion = model.generate(messages, context_policy="drop_oldest", temperature=0)
    assert completion.dropped_turns == 3
    messages = [*earlier, {"role": "user", "content": "x" * 300}]
    with pytest.raises(ContextFullError, match="shorten the prompt"):
        model.generate(messages, context_policy="drop_oldest")


def test_a_long_session_drops_in_steps_and_reuses_between_them(hello: Made) -> None:
    model, _ = hello
    chat = model.chat(temperature=0, context_policy="drop_oldest", max_tokens=20)
    dropped: list[int] = []
    reused: list[int] = []
    for number in range(20):
        completion = chat.send(f"Question {number}")
        dropped.append(completion.dropped_turns)
        reused.append(completion.stats.reused_tokens)
    assert dropped == sorted(dropped)
    assert dropped[-1] > 10
    moves = len(set(dropped)) - 1
    assert 0 < moves <= 10
    # every turn that drops nothing goes on from where the last one ended
    starts = [r for r, a, b in zip(reused[1:], dropped, dropped[1:], strict=False) if a == b]
    assert min(starts) > 30
    assert len(chat.messages) == 40
