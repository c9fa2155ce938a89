"""Conversations in the history: what is saved is what comes back, branch by branch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from stem_local.errors import HistoryError, UsageError
from stem_local.history import Attachment, Conversation, ConversationInfo, Entry, History
from stem_local.history.rows import MAX_ATTACHMENTS, MAX_CONTENT, TITLE_LENGTH
from stem_runtime import paths


@pytest.fixture
def history() -> Iterator[History]:
    opened = History.open()
    yield opened
    opened.close()


def talk(history: History, *texts: str) -> tuple[int, list[int]]:
    """A conversation of these messages in turn, and their ids."""
    conversation = history.create({})
    ids: list[int] = []
    for number, text in enumerate(texts):
        parent = ids[-1] if ids else None
        ids.append(history.add(conversation, parent, ("user", "assistant")[number % 2], text).id)
    return conversation, ids


def open_texts(history: History, conversation: int) -> list[str]:
    return [entry.content for entry in history.get(conversation).entries]


def test_the_file_is_in_the_data_folder_and_only_its_owner_reads_it(history: History) -> None:
    file = paths.data_dir() / "history.db"
    assert file.exists()
    assert file.stat().st_mode & 0o077 == 0
    assert not history.private


def test_a_conversation_comes_back_as_it_was_saved(history: History) -> None:
    conversation = history.create({"system": "Be brief.", "temperature": 0.5})
    note = Attachment("notes.txt", "línea\x00 one")
    asked = history.add(conversation, None, "user", "What is this?", attachments=[note])
    assert (asked.parent, asked.branch, asked.attachments) == (None, (1, 1), (note,))
    answer = history.add(
        conversation, asked.id, "assistant", "", state="streaming", model="smollm2"
    )
    history.update(answer.id, content="A no")
    history.update(answer.id, content="A note.", state="length", stats={"tokens": 3}, forgotten=2)
    history.close()

    again = History.open()
    saved = again.get(conversation)
    assert saved.settings == {"system": "Be brief.", "temperature": 0.5}
    assert saved.info.title == "What is this?"
    assert saved.info.messages == 2
    assert saved.entries[0] == asked
    assert saved.entries[1] == Entry(
        id=answer.id,
        parent=asked.id,
        role="assistant",
        content="A note.",
        created=answer.created,
        state="length",
        model="smollm2",
        stats={"tokens": 3},
        forgotten=2,
    )
    again.close()


def test_updates_change_only_what_they_are_given(history: History) -> None:
    _, (entry, *_) = talk(history, "one")
    history.update(entry, stats={"a": 1})
    history.update(entry, content="two")
    history.update(entry)
    (saved,) = history.get(1).entries
    assert (saved.content, saved.stats, saved.state) == ("two", {"a": 1}, "whole")


def test_titles_come_from_the_first_message_until_renamed(history: History) -> None:
    conversation = history.create({})
    assert history.get(conversation).info.title == "New chat"
    first = history.add(conversation, None, "user", "\n  Tell me\ta\x1b[31m story \nplease")
    assert history.get(conversation).info.title == "Tell me a [31m story"
    history.add(conversation, None, "user", "Tell me a joke")
    assert history.get(conversation).info.title == "Tell me a [31m story"
    history.rename(conversation, "  Stories\n")
    history.add(conversation, first.id, "assistant", "Once")
    assert history.get(conversation).info.title == "Stories"
    with pytest.raises(UsageError, match="title"):
        history.rename(conversation, " \n\x00")


def test_a_long_first_line_makes_a_short_title(history: History) -> None:
    conversation, _ = talk(history, "word " * 100)
    title = history.get(conversation).info.title
    assert len(title) <= TITLE_LENGTH
    assert title.endswith(("word…", "wor…"))


def test_an_attachment_alone_gives_its_name_as_title(history: History) -> None:
    conversation = history.create({})
    history.add(conversation, None, "user", " ", attachments=[Attachment("log.txt", "...")])
    assert history.get(conversation).info.title == "log.txt"


def test_conversations_are_listed_by_their_last_change(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1, 100))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    first, entries = talk(history, "first")
    second, _ = talk(history, "second")
    history.create({})
    assert [info.id for info in history.conversations()] == [second, first]
    history.update(entries[0], state="stopped")
    assert [info.id for info in history.conversations()] == [first, second]
    assert [info.id for info in history.conversations(limit=1)] == [first]
    assert [info.id for info in history.conversations(limit=5, offset=1)] == [second]
    assert history.latest() == first


def test_an_empty_history_has_no_latest(history: History) -> None:
    assert history.latest() is None
    assert history.conversations() == []
    assert history.search("anything") == []


def test_branches_are_left_and_found_again_as_they_were(history: History) -> None:
    conversation, (first, answer) = talk(history, "q", "a1")
    history.add(conversation, answer, "user", "follow-up")
    second = history.add(conversation, first, "assistant", "a2")
    assert second.branch == (2, 2)
    assert open_texts(history, conversation) == ["q", "a2"]
    history.branch(conversation, -1, second.id)
    assert open_texts(history, conversation) == ["q", "a1", "follow-up"]
    assert history.get(conversation).entries[1].branch == (1, 2)
    other = history.add(conversation, None, "user", "edited q")
    assert open_texts(history, conversation) == ["edited q"]
    history.branch(conversation, -1, other.id)
    assert open_texts(history, conversation) == ["q", "a1", "follow-up"]
    with pytest.raises(UsageError, match="no earlier version"):
        history.branch(conversation, -1, first)
    with pytest.raises(UsageError, match="no further version"):
        history.branch(conversation, 2, first)
    assert open_texts(history, conversation) == ["q", "a1", "follow-up"]


def test_a_message_of_a_closed_branch_can_be_opened(history: History) -> None:
    conversation, (first, answer) = talk(history, "q", "a1")
    history.add(conversation, answer, "user", "deep")
    history.add(conversation, None, "user", "edited q")
    assert history.open_entry(answer) == conversation
    assert open_texts(history, conversation) == ["q", "a1", "deep"]
    history.add(conversation, first, "assistant", "a2")
    assert open_texts(history, conversation) == ["q", "a2"]


def test_deleting_leaves_the_others_and_not_a_word_in_the_file(history: History) -> None:
    kept, _ = talk(history, "keep this")
    conversation, ids = talk(history, "xyzzysecret question", "plughsecret answer " * 3000)
    history.update(ids[1], content="frobozzsecret " * 3000)
    history.delete(conversation)
    assert [info.id for info in history.conversations()] == [kept]
    assert history.search("frobozzsecret") == []
    folder = paths.data_dir()
    left = b"".join(file.read_bytes() for file in folder.iterdir())
    assert b"keep this" in left
    assert b"secret" not in left
    for forbidden in (
        lambda: history.get(conversation),
        lambda: history.delete(conversation),
        lambda: history.rename(conversation, "x"),
        lambda: history.set_settings(conversation, {}),
        lambda: history.add(conversation, None, "user", "x"),
        lambda: history.update(ids[0], content="x"),
        lambda: history.branch(conversation, 1, ids[0]),
        lambda: history.open_entry(ids[0]),
    ):
        with pytest.raises(UsageError):
            forbidden()


def test_a_long_conversation_is_deleted(history: History) -> None:
    conversation = history.insert(chain(2000))
    history.delete(conversation)
    assert history.conversations() == []


def test_ids_of_deleted_conversations_are_not_used_again(history: History) -> None:
    conversation, _ = talk(history, "one")
    history.delete(conversation)
    assert talk(history, "two")[0] > conversation


def test_messages_cannot_be_put_into_another_conversation(history: History) -> None:
    first, entries = talk(history, "one")
    second, _ = talk(history, "two")
    with pytest.raises(UsageError, match="no message"):
        history.add(second, entries[0], "assistant", "x")
    with pytest.raises(UsageError, match="no message"):
        history.branch(second, 1, entries[0])
    assert history.get(first).info.messages == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"role": "system"},
        {"state": "lost"},
        {"content": "x" * (MAX_CONTENT + 1)},
        {"attachments": [Attachment("a", "")] * (MAX_ATTACHMENTS + 1)},
        {"attachments": [Attachment("a", "x" * (MAX_CONTENT + 1))]},
    ],
)
def test_what_cannot_be_a_message_is_refused(history: History, bad: dict[str, Any]) -> None:
    conversation = history.create({})
    with pytest.raises(UsageError):
        history.add(conversation, None, **{"role": "user", "content": "x", **bad})
    assert history.get(conversation).entries == ()


@pytest.mark.parametrize("number", [0, -1, 10**30])
def test_a_conversation_that_does_not_exist_is_a_usage_error(history: History, number: int) -> None:
    with pytest.raises(UsageError):
        history.get(number)


def test_settings_that_are_not_json_are_refused(history: History) -> None:
    with pytest.raises(UsageError, match="JSON"):
        history.create({"temperature": float("nan")})
    with pytest.raises(UsageError, match="JSON"):
        history.create({"path": Path()})
    with pytest.raises(UsageError, match="too long"):
        history.create({"system": "x" * 5_000_000})
    conversation = history.create({"a": 1})
    history.set_settings(conversation, {"b": [2]})
    assert history.get(conversation).settings == {"b": [2]}


def test_a_megabyte_message_and_strange_characters_survive(history: History) -> None:
    text = "naïve 日本語 🙂 \x00\x1b[2J\r\n" * 50_000
    conversation, _ = talk(history, text, "half a pair: \ud83d!")
    assert open_texts(history, conversation) == [text, "half a pair: ?!"]


def chain(length: int) -> Conversation:
    entries = tuple(
        Entry(n, n - 1 or None, "user" if n % 2 else "assistant", f"message {n}", 1000.0 + n)
        for n in range(1, length + 1)
    )
    return Conversation(ConversationInfo(0, "A long one", 1.0, 2.0, length), {"x": 1}, entries)


def test_a_whole_conversation_is_inserted_at_once(history: History) -> None:
    talk(history, "something before, so that numbers differ")
    conversation = history.insert(chain(2000))
    saved = history.get(conversation)
    assert saved.info == ConversationInfo(conversation, "A long one", 1.0, 2.0, 2000)
    assert [entry.content for entry in saved.entries] == [f"message {n}" for n in range(1, 2001)]
    assert history.tree(conversation) == saved


def test_inserting_all_or_nothing(history: History) -> None:
    good = chain(3)
    orphan = Entry(9, 8, "user", "whose?", 1.0)
    twice = good.entries[0]
    for entries in ((orphan,), (*good.entries, twice)):
        with pytest.raises(UsageError, match="twice, or before"):
            history.insert(Conversation(good.info, {}, entries))
    assert history.conversations() == []


def test_a_private_history_writes_nothing(home: Path) -> None:
    before = sorted(home.rglob("*"))
    history = History.in_memory()
    assert history.private
    conversation = history.create({})
    asked = history.add(conversation, None, "user", "hello there", state="whole")
    history.add(conversation, asked.id, "assistant", "", state="streaming")
    assert history.search("hello")[0].entry == asked.id
    history.delete(conversation)
    history.close()
    assert sorted(home.rglob("*")) == before


def test_closing_leaves_one_file_and_stops_what_was_under_way(history: History) -> None:
    conversation, (asked,) = talk(history, "q")
    history.add(conversation, asked, "assistant", "half an ans", state="streaming")
    history.close()
    history.close()
    assert [file.name for file in paths.data_dir().iterdir()] == ["history.db"]
    with pytest.raises(HistoryError):
        history.conversations()
    again = History.open()
    assert again.get(conversation).entries[-1].state == "stopped"
    assert again.search("half")[0].snippet == "\x02half\x03 an ans"
    again.close()


def test_closing_stops_what_was_under_way_for_others_at_once(history: History) -> None:
    ours = History.open()
    conversation = ours.create({})
    ours.add(conversation, None, "assistant", "half", state="streaming")
    assert history.get(conversation).entries[0].state == "streaming"
    ours.close()
    assert history.get(conversation).entries[0].state == "stopped"


def test_writing_leaves_a_mark_for_as_long_as_it_lasts(history: History) -> None:
    conversation = history.create({})
    first, second = (
        history.add(conversation, None, "assistant", "", state="streaming").id for _ in range(2)
    )
    assert len(marks()) == 1
    history.update(first, state="whole")
    assert len(marks()) == 1
    history.update(second, content="done", state="whole")
    assert marks() == []
    history.update(second, state="streaming")
    assert len(marks()) == 1
    history.delete(conversation)
    assert marks() == []


def marks() -> list[Path]:
    return list(paths.data_dir().glob("*-writer-*"))


def test_threads_share_a_history(history: History) -> None:
    conversations = [talk(history, "q", "")[0:2] for _ in range(4)]
    errors: list[BaseException] = []

    def write(conversation: int, entry: int) -> None:
        try:
            for number in range(40):
                history.update(entry, content=f"{conversation} says {number}")
                assert history.get(conversation).entries[1].content.startswith(str(conversation))
                history.search("says")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(c, ids[1])) for c, ids in conversations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for conversation, _ in conversations:
        assert open_texts(history, conversation) == ["q", f"{conversation} says 39"]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(max_size=200))
def test_any_text_survives(content: str, name: str) -> None:
    history = History.in_memory()
    conversation = history.create({"system": content})
    history.add(conversation, None, "user", content, attachments=[Attachment(name, content)])
    saved = history.get(conversation)
    assert saved.settings == {"system": content}
    assert saved.entries[0].content == content
    assert saved.entries[0].attachments[0].text == content
    assert saved.info.title.isprintable()
    history.close()


class Branches(RuleBasedStateMachine):
    """The tree against the plainest model of it: lists of children and which was open last."""

    entries = Bundle("entries")

    def __init__(self) -> None:
        super().__init__()
        self.history = History.in_memory()
        self.conversation = self.history.create({})
        self.children: dict[int | None, list[int]] = {None: []}
        self.open: dict[int | None, int] = {}
        self.parent: dict[int, int | None] = {}

    def opened(self, entry: int | None) -> None:
        while entry is not None:
            self.open[self.parent[entry]] = entry
            entry = self.parent[entry]

    @rule(target=entries, parent=st.none() | entries)
    def add(self, parent: int | None) -> int:
        made = self.history.add(self.conversation, parent, "user", "x")
        self.children[parent].append(made.id)
        self.children[made.id] = []
        self.parent[made.id] = parent
        self.opened(made.id)
        assert made.branch == (len(self.children[parent]),) * 2
        return made.id

    @rule(entry=entries, step=st.integers(-3, 3))
    def branch(self, entry: int, step: int) -> None:
        siblings = self.children[self.parent[entry]]
        place = siblings.index(entry) + step
        if 0 <= place < len(siblings):
            self.history.branch(self.conversation, step, entry)
            self.opened(siblings[place])
        else:
            with pytest.raises(UsageError):
                self.history.branch(self.conversation, step, entry)

    @rule(entry=entries)
    def open_entry(self, entry: int) -> None:
        self.history.open_entry(entry)
        self.opened(entry)

    @invariant()
    def shows_what_was_left_open(self) -> None:
        path, at = [], self.open.get(None)
        while at is not None:
            path.append(at)
            at = self.open.get(at)
        entries = self.history.get(self.conversation).entries
        assert [entry.id for entry in entries] == path
        for entry in entries:
            siblings = self.children[entry.parent]
            assert entry.branch == (siblings.index(entry.id) + 1, len(siblings))
        assert len(self.history.tree(self.conversation).entries) == len(self.parent)

    def teardown(self) -> None:
        self.history.close()


TestBranches = Branches.TestCase
TestBranches.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_an_outline_is_a_conversation_without_its_messages() -> None:
    history = History.in_memory()
    conversation = history.create({"model": "tiny"})
    history.add(conversation, None, "user", "Why is the sky blue?")
    whole, outline = history.get(conversation), history.outline(conversation)
    assert (outline.info, outline.settings) == (whole.info, whole.settings)
    assert outline.entries == ()
    with pytest.raises(UsageError):
        history.outline(conversation + 1)
    history.close()
