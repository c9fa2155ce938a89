"""Conversations as files: out, and in again; and nothing in that is not a conversation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_local.errors import DiskSpaceError, UsageError
from stem_local.history import Attachment, Conversation, ConversationInfo, Entry, History
from stem_local.history.exchange import (
    fenced,
    from_json,
    read_file,
    to_json,
    to_markdown,
    write_file,
)
from stem_local.history.files import MAX_FILE
from stem_local.history.reading import MAX_TEXT


@pytest.fixture
def history() -> Iterator[History]:
    opened = History.in_memory()
    yield opened
    opened.close()


def comparable(history: History, conversation: int) -> list[Any]:
    """What a conversation says, with messages numbered from 1 instead of by id."""
    tree = history.tree(conversation)
    number = {entry.id: n for n, entry in enumerate(tree.entries, 1)}
    said = [
        (
            number[e.id],
            number.get(e.parent or 0),
            e.role,
            e.content,
            e.created,
            e.branch,
            e.attachments,
            "stopped" if e.state == "streaming" else e.state,
            e.model,
            e.stats,
            e.forgotten,
        )
        for e in tree.entries
    ]
    opened = [number[entry.id] for entry in history.get(conversation).entries]
    info = tree.info
    return [info.title, info.created, info.updated, info.messages, tree.settings, said, opened]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(0, 1e9) | texts


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Conversation, int]:
    entries: list[Entry] = []
    for number in range(1, draw(st.integers(1, 8)) + 1):
        parents = st.none() | st.sampled_from([e.id for e in entries] or [None])
        entries.append(
            Entry(
                id=number,
                parent=draw(parents),
                role=draw(st.sampled_from(["user", "assistant"])),
                content=draw(texts),
                created=draw(st.floats(0, 1e10)),
                attachments=tuple(
                    Attachment(name, text)
                    for name, text in draw(st.lists(st.tuples(texts, texts), max_size=2))
                ),
                state=draw(st.sampled_from(["whole", "stopped", "length", "context", "failed"])),
                model=draw(st.none() | texts),
                stats=draw(st.none() | st.dictionaries(texts, values, max_size=3)),
                forgotten=draw(st.integers(0, 9)),
            )
        )
    info = ConversationInfo(0, draw(texts), draw(st.floats(0, 1e10)), draw(st.floats(0, 1e10)), 0)
    made = Conversation(info, draw(st.dictionaries(texts, values, max_size=3)), tuple(entries))
    return made, draw(st.integers(1, len(entries)))


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_json_brings_everything_back(given: tuple[Conversation, int]) -> None:
    history = History.in_memory()
    first = history.insert(*given)
    second = from_json(history, to_json(history, first))
    ours, again = comparable(history, first), comparable(history, second)
    if ours[0] == "New chat" and given[0].info.title == "":
        ours[0] = again[0]
    assert again == ours
    assert to_markdown(history, first).startswith("# ")
    history.close()


def test_an_unfinished_answer_comes_back_as_a_stopped_one(history: History) -> None:
    conversation = history.create({})
    asked = history.add(conversation, None, "user", "q")
    history.add(conversation, asked.id, "assistant", "half", state="streaming")
    again = from_json(history, to_json(history, conversation))
    assert history.get(again).entries[-1].state == "stopped"


def test_markdown_shows_the_open_branch(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)
    entries = (
        Entry(1, None, "user", "first try", 0.0),
        Entry(
            2, None, "user", "Look:", 0.0, attachments=(Attachment("a`b.md", "```py\nx\n```\n"),)
        ),
        Entry(3, 2, "assistant", "It is\x1b[2J code.\n", 0.0, state="stopped", model="smollm2"),
        Entry(4, 3, "user", "And?", 0.0),
        Entry(5, 4, "assistant", "", 0.0, state="context", forgotten=2),
    )
    info = ConversationInfo(0, "Code", 86400.0, 86400.0, 5)
    conversation = history.insert(Conversation(info, {"system": "Be kind.\n"}, entries))
    assert to_markdown(history, conversation) == (
        "# Code\n\n*Begun on 1970-01-02 00:00*\n\n## System\n\nBe kind.\n\n"
        "## You (2 of 2)\n\n`a'b.md`:\n\n````\n```py\nx\n```\n````\n\nLook:\n\n"
        "## smollm2\n\nIt is[2J code.\n\n*(stopped)*\n\n## You\n\nAnd?\n\n"
        "## Assistant\n\n*(without the 2 oldest turns: the context was full)*\n\n"
        "*(cut off: the context was full)*\n"
    )


def test_exporting_what_is_not_there_is_a_usage_error(history: History) -> None:
    for export in (to_json, to_markdown):
        with pytest.raises(UsageError, match="no conversation 7"):
            export(history, 7)


@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_messages_of_other_programs_are_taken_in(history: History, wrapped: bool) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
        },
        {"role": "assistant", "content": "Hi.", "name": "x", "refusal": None},
    ]
    document = {"model": "gpt", "messages": messages} if wrapped else messages
    conversation = history.get(from_json(history, json.dumps(document)))
    assert conversation.settings == {"system": "Be brief.\n\nBe kind."}
    assert conversation.info.title == "Hello"
    assert [(e.role, e.content) for e in conversation.entries] == [
        ("user", "Hello"),
        ("assistant", "Hi."),
    ]


OURS: dict[str, Any] = {
    "format": "stem-local conversation",
    "version": 1,
    "title": "T",
    "messages": [{"id": 1, "role": "user", "content": "hello"}],
}


def ours(**changes: Any) -> dict[str, Any]:
    return {**OURS, **changes}


def message(**changes: Any) -> dict[str, Any]:
    return ours(messages=[{"id": 1, "role": "user", "content": "hello", **changes}])


def test_what_may_be_left_out_is_left_out(history: History) -> None:
    conversation = history.get(from_json(history, json.dumps(ours(later="unknown"))))
    (entry,) = conversation.entries
    assert (entry.content, entry.state, entry.parent) == ("hello", "whole", None)
    assert entry.created == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "a number of thousands of digits"),
        ('[{"role": "user", "content": NaN}]', "NaN is no number"),
        ("7", "a whole number, not an object"),
        ("[]", "no messages"),
        ("{}", '"messages" is missing'),
        ([1], "message 1 is a whole number"),
        ([{"role": "user"}], 'message 1 "content" is missing'),
        ([{"content": "x"}], 'message 1 "role" is missing'),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "parts that are not text"),
        ([{"role": "user", "content": [7]}], "parts that are not text"),
        ([{"role": "tool", "content": "x"}], "'tool' is no role"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}], "no role"),
        ({"messages": "x"}, '"messages" is a text, not a list'),
        ({"messages": [0] * 100_001}, "at most 100,000"),
        ({"format": "other", "messages": []}, "its format is 'other'"),
        ({"format": ["stem-local conversation"]}, "its format is"),
        (ours(version=2), "newer version"),
        (ours(version="1"), '"version" is a text'),
        (ours(version=True), '"version" is true or false'),
        (ours(messages=[]), "no messages"),
        (ours(open=2), "ends with message 2"),
        (ours(settings=[]), '"settings" is a list'),
        (ours(title=7), '"title" is a whole number'),
        (ours(created=-1), '"created" is -1'),
        (ours(created=1e300), '"created" is 1e'),
        (ours(messages=OURS["messages"] * 2), "comes twice"),
        (message(parent=1), "before its parent"),
        (message(parent=5), "before its parent"),
        (message(id=None), '"id" is missing'),
        (message(id=1.5), '"id" is a number'),
        (message(role="root"), "'root' is no role"),
        (message(state="?"), "'\\?' is no state"),
        (message(content=None), '"content" is missing'),
        (message(created="now"), '"created" is a text'),
        (message(created=True), '"created" is true or false'),
        (message(attachments=[1]), "not all objects"),
        (message(attachments=[{"name": "a"}]), '"text" is missing'),
        (message(stats=[1]), '"stats" is a list'),
        (message(model=3), '"model" is a whole number'),
        (message(forgotten=-1), '"forgotten" is -1'),
        (message(forgotten=10**30), '"forgotten" is 10+'),
    ],
)
def test_what_is_no_conversation_is_refused_and_leaves_nothing(
    history: History, document: Any, reason: str
) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(UsageError, match=reason):
        from_json(history, text)
    assert history.conversations() == []


def test_a_text_that_is_too_long_is_not_even_parsed(history: History) -> None:
    with pytest.raises(UsageError, match="too long"):
        from_json(history, "[" + " " * MAX_TEXT)


OPTIONAL = ["model", "stats", "attachments", "forgotten"]
json_values = st.recursive(
    values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*OURS, "open", "settings", "created"]), json_values),
    st.dictionaries(
        st.sampled_from(["id", "parent", "role", "content", "state", "created", *OPTIONAL]),
        json_values,
    ),
)
def test_no_document_breaks_the_history(top: dict[str, Any], inside: dict[str, Any]) -> None:
    history = History.in_memory()
    document = {**message(**inside), **top}
    try:
        conversation = from_json(history, json.dumps(document))
    except UsageError:
        assert history.conversations() == []
    else:
        assert from_json(history, to_json(history, conversation)) > conversation
    history.close()


def test_files_are_written_whole_and_not_over_others(tmp_path: Path) -> None:
    file = tmp_path / "chat.md"
    write_file(file, "one\r\nnaïve \ud83d\n")
    assert file.read_bytes() == "one\r\nnaïve ?\n".encode()
    with pytest.raises(UsageError, match="exists already"):
        write_file(file, "two")
    assert read_file(file).startswith("one")
    write_file(file, "two", overwrite=True)
    assert read_file(file) == "two"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_system_without_links_keeps_other_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chat.md"
    file.write_text("theirs")
    monkeypatch.setattr(Path, "hardlink_to", failing(PermissionError(1, "no links here")))
    with pytest.raises(UsageError, match="exists already"):
        write_file(file, "ours")
    assert file.read_text() == "theirs"
    file.unlink()
    write_file(file, "ours")
    assert file.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [file]


def failing(error: OSError) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_file_that_cannot_be_written_is_a_sentence_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_file(tmp_path / "nowhere" / "chat.md", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        write_file(tmp_path / "folder", "x", overwrite=True)
    old = tmp_path / "chat.md"
    old.write_text("old")
    monkeypatch.setattr("os.fsync", failing(OSError(28, "No space left on device")))
    with pytest.raises(DiskSpaceError, match="no room"):
        write_file(old, "new", overwrite=True)
    assert old.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chat.md", "folder"]


def test_only_text_files_of_a_bearable_size_are_read(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_bytes(b"\xef\xbb\xbf[]")
    assert read_file(file) == "[]"
    file.write_bytes(b"abc\xff")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 3\)"):
        read_file(file)
    with file.open("wb") as large:
        large.truncate(MAX_FILE + 1)
    with pytest.raises(UsageError, match="too many"):
        read_file(file)
    for missing in (tmp_path / "none", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="no file"):
            read_file(missing)


@settings(max_examples=40)
@given(st.text(alphabet="`a\n", max_size=30))
def test_no_text_ends_its_own_fence(text: str) -> None:
    _, _, opening, *inside, closing = fenced("name", text).split("\n")
    assert opening == closing
    assert not any(opening in line for line in inside)
