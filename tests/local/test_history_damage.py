"""Kills, full disks, damaged and foreign files, older and newer versions, two processes at once."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_local.errors import (
    DamagedHistoryError,
    HistoryError,
    NewerHistoryError,
    StemError,
    UsageError,
)
from stem_local.history import History
from stem_local.history.migrations import APPLICATION_ID, MIGRATIONS
from stem_runtime import paths


@pytest.fixture
def path() -> Path:
    return paths.data_dir() / "history.db"


def fill(path: Path) -> int:
    """A history with a few conversations, branches and long messages; one of them with two."""
    with closing(History.open(path)) as history:
        for number in range(6):
            conversation = history.create({"system": "Be brief.", "n": number})
            asked = history.add(conversation, None, "user", f"question {number}")
            history.add(conversation, asked.id, "assistant", "first answer " * 700)
            history.add(conversation, asked.id, "assistant", f"second answer {number}")
    return conversation


WRITER = """
import itertools
from stem_local.history import History
history = History.open()
conversation = history.create({})
asked = history.add(conversation, None, "user", "tell me all")
answer = history.add(conversation, asked.id, "assistant", "", state="streaming")
text = ""
for number in itertools.count():
    text += f"word{number} "
    history.update(answer.id, content=text)
    print(number, flush=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def writer() -> Iterator[subprocess.Popen[str]]:
    """A process that streams an answer into the history for ever."""
    process = start(WRITER)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def read_until(process: subprocess.Popen[str], number: int) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= number:
            return int(line)
    raise AssertionError("the writer ended")


def test_a_killed_process_loses_nothing_it_had_saved(
    writer: subprocess.Popen[str], path: Path
) -> None:
    read_until(writer, 50)
    writer.kill()
    assert writer.stdout is not None
    said = [int(line) for line in writer.stdout]
    writer.wait()
    with closing(History.open()) as history:
        conversation = history.latest()
        assert conversation is not None
        asked, answer = history.get(conversation).entries
        assert asked.content == "tell me all"
        assert answer.state == "stopped"
        words = answer.content.split()
        assert words == [f"word{number}" for number in range(len(words))]
        assert len(words) > (said[-1] if said else 50)
        assert history.search(words[-1])[0].entry == answer.id
    assert [file.name for file in path.parent.iterdir()] == ["history.db"]


def test_an_answer_of_a_living_process_is_left_alone(writer: subprocess.Popen[str]) -> None:
    read_until(writer, 3)
    with closing(History.open()) as history:
        conversation = history.latest()
        assert conversation is not None
        before = history.get(conversation).entries[-1]
        assert before.state == "streaming"
        own = history.create({})
        for number in range(50):
            history.add(own, None, "user", f"meanwhile {number}")
        read_until(writer, len(before.content.split()) + 50)
        after = history.get(conversation).entries[-1]
        assert after.state == "streaming"
        assert after.content.startswith(before.content)
        assert after.content != before.content
        assert len(history.tree(own).entries) == 50


def test_a_conversation_deleted_elsewhere_is_a_usage_error_here(path: Path) -> None:
    with closing(History.open(path)) as ours, closing(History.open(path)) as theirs:
        conversation = ours.create({})
        entry = ours.add(conversation, None, "assistant", "gone soon", state="streaming")
        theirs.delete(conversation)
        with pytest.raises(UsageError, match="deleted"):
            ours.update(entry.id, content="still there?", state="streaming")
        assert list(path.parent.glob("*-writer-*")) == []


FILLER = """
import sys
from stem_local.history import History
print("ready", flush=True)
sys.stdin.readline()
history = History.open()
conversation = history.create({})
for number in range(25):
    history.add(conversation, None, "user", f"message {number}")
history.close()
"""


def test_processes_may_make_and_fill_a_history_at_once(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FILLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        process.communicate(b"go\n")
        assert process.returncode == 0
    with closing(History.open(path)) as history:
        assert [info.messages for info in history.conversations()] == [25] * 4


def test_many_threads_may_open_a_new_history_at_once(path: Path) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        try:
            barrier.wait()
            with closing(History.open(path)) as history:
                history.create({})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def everything(path: Path) -> None:
    """Use all there is of a history, and change it."""
    with closing(History.open(path)) as history:
        for info in history.conversations():
            history.get(info.id)
            history.tree(info.id)
        history.search("answer")
        history.search("->")
        for info in history.conversations():
            entries = history.tree(info.id).entries
            history.add(info.id, entries[-1].id if entries else None, "user", "more")
            for entry in entries:
                history.update(entry.id, content="changed")
        for info in history.conversations()[:2]:
            history.delete(info.id)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("filled") / "history.db"
    fill(path)
    return path.read_bytes()


def test_the_undamaged_file_serves_for_everything(filled: bytes, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(filled)
    everything(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_noticed_or_harmless(
    filled: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "history.db"
    at = data.draw(st.integers(0, len(filled) - 1) | st.integers(0, 200))
    junk = data.draw(st.binary(min_size=1, max_size=400))
    path.write_bytes((filled[:at] + junk + filled[at + len(junk) :])[: len(filled)])
    if data.draw(st.booleans()):
        os.truncate(path, data.draw(st.integers(0, len(filled))))
    try:
        everything(path)
    except StemError as error:
        assert str(path) in str(error) or isinstance(error, UsageError)
        damaged = path.read_bytes()
        assert History.set_aside(path).read_bytes() == damaged
        everything(path)
    shutil.rmtree(path.parent)


def cut_in_half(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def cut_to_a_header(whole: bytes) -> bytes:
    return whole[:100]


def lose_a_page(whole: bytes) -> bytes:
    return whole[:4096] + bytes(4096) + whole[8192:]


def be_something_else(whole: bytes) -> bytes:
    return b"\x89PNG" + whole[4:]


def be_a_text(whole: bytes) -> bytes:
    return b"These are not the conversations you are looking for. " * (len(whole) // 1000)


def misspell_its_tables(whole: bytes) -> bytes:
    return whole.replace(b"triggerwords_update", b"triggerwords\xff\xffpdate")


@pytest.mark.parametrize(
    "damage",
    [misspell_its_tables, cut_in_half, cut_to_a_header, lose_a_page, be_something_else, be_a_text],
)
def test_a_damaged_file_is_refused_set_aside_and_replaced(
    filled: bytes, path: Path, damage: Callable[[bytes], bytes]
) -> None:
    damaged = damage(filled)
    path.parent.mkdir()
    path.write_bytes(damaged)
    with pytest.raises(DamagedHistoryError) as caught:
        everything(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == damaged
    aside = History.set_aside(path)
    assert aside.name.startswith("history-damaged-2")
    assert aside.read_bytes() == damaged
    everything(path)


def page_of(path: Path, table: str) -> int:
    """Where in the file the first page of a table is."""
    with closing(sqlite3.connect(path)) as raw:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = raw.execute(query, (table,)).fetchone()
    return int(page - 1) * 4096


@pytest.mark.parametrize(
    "lost", ["words_data", "words_idx", "entries_by_parent", "entries_by_conversation"]
)
def test_all_conversations_survive_the_loss_of_an_index(path: Path, lost: str) -> None:
    last = fill(path)
    with closing(History.open(path)) as history:
        unfinished = history.get(last).entries[-1]
        history.add(last, unfinished.id, "user", "what is cut off?")
        expected = [history.tree(n) for n in range(1, last + 1)]
    with path.open("r+b") as file:
        file.seek(page_of(path, lost))
        file.write(b"\xff" * 4096)
    with pytest.raises(DamagedHistoryError):
        everything(path)
    before = path.read_bytes()
    assert History.set_aside(path).read_bytes() == before
    with closing(History.open(path)) as history:
        saved = [history.tree(n) for n in range(1, last + 1)]
        assert history.latest() == last
        assert len(history.search("second")) == 6
    everything(path)
    assert saved == expected


def test_what_is_left_of_a_file_that_was_cut_off_is_carried_over(path: Path) -> None:
    fill(path)
    whole = path.read_bytes()
    kept = []
    for share in (0.95, 0.8, 0.4, 0.02):
        path.write_bytes(whole[: int(len(whole) * share)])
        aside = History.set_aside(path)
        assert aside.stat().st_size == int(len(whole) * share)
        with closing(History.open(path)) as history:
            found = history.conversations()
            kept.append(sum(info.messages for info in found))
            for info in found:
                for entry in history.tree(info.id).entries:
                    assert entry.content.startswith(("question", "first answer", "second answer"))
        path.unlink()
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[1] > kept[3] == 0


def test_messages_that_cannot_be_read_are_left_out_of_what_is_carried_over(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("UPDATE entries SET role = 'root' WHERE id = 1")
        raw.execute("UPDATE entries SET state = 'streaming' WHERE id = 5")
        raw.execute("UPDATE conversations SET settings = '[' WHERE id = 3")
        raw.execute("DELETE FROM entries WHERE conversation = 4")
        raw.commit()
    History.set_aside(path)
    with closing(History.open(path)) as history:
        first, second, third, *_ = [history.tree(n) for n in range(1, 6)]
        assert [(e.role, e.parent) for e in first.entries] == [
            ("assistant", None),
            ("assistant", 1),
        ]
        assert [e.state for e in second.entries] == ["whole", "stopped", "whole"]
        assert (third.settings, third.info.title) == ({}, "question 2")
        with pytest.raises(UsageError):
            history.get(6)


def test_setting_aside_takes_the_log_along_and_overwrites_nothing(path: Path) -> None:
    path.parent.mkdir()
    kept = []
    for number in range(3):
        path.write_text(f"main {number}")
        path.with_name("history.db-wal").write_text(f"log {number}")
        kept.append(History.set_aside(path))
    for number, aside in enumerate(kept):
        assert aside.read_text() == f"main {number}"
        assert aside.with_name(aside.name + "-wal").read_text() == f"log {number}"
    assert len(list(path.parent.iterdir())) == 6
    with pytest.raises(HistoryError, match="cannot be moved"):
        History.set_aside(path)


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(DamagedHistoryError, match="not a database of STEM Local"):
        History.open(path)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_history(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    everything(path)


def test_a_newer_file_is_left_alone(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as later:
        later.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(NewerHistoryError, match="newer version") as caught:
        History.open(path)
    assert caught.value.exit_code not in (0, 1)
    assert path.read_bytes() == before


def old_file(path: Path, version: int) -> None:
    """A file as a program with only the first `version` migrations left it."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as old:
        for step in MIGRATIONS[:version]:
            step(old)
        if version:
            old.execute(f"PRAGMA user_version = {version}")
            old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            old.execute("INSERT INTO conversations (created, updated, open_root) VALUES (1, 2, 1)")
            old.execute(
                "INSERT INTO entries (conversation, role, state, created, content) "
                "VALUES (1, 'user', 'whole', 1.5, 'from long ago')"
            )
            old.execute(
                "INSERT INTO entries (conversation, role, state, created, content, parent, writer) "
                "VALUES (1, 'assistant', 'streaming', 1.5, 'half an answer', 1, ?)",
                ("0123456789abcdef",),
            )
            old.execute("UPDATE entries SET open_child = 2 WHERE id = 1")
            old.execute("UPDATE conversations SET messages = 2, title = 'Old'")
        old.commit()


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_every_older_version_is_brought_up_to_date(path: Path, version: int) -> None:
    old_file(path, version)
    with closing(History.open(path)) as history:
        if version:
            entry, cut_off = history.get(1).entries
            assert entry.content == "from long ago"
            assert cut_off.state == "stopped"
            assert [hit.entry for hit in history.search("long")] == [entry.id]
            assert [hit.entry for hit in history.search("half")] == [cut_off.id]
            with history._database.write() as connection:
                connection.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
        else:
            assert history.conversations() == []
    everything(path)


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_a_migration_that_fails_leaves_the_file_as_old_as_it_was(
    path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (done TEXT)")
        raise KeyboardInterrupt

    old_file(path, version)
    with monkeypatch.context() as patch:
        patch.setattr("stem_local.history.migrations.MIGRATIONS", [*MIGRATIONS[:-1], fail])
        with pytest.raises(KeyboardInterrupt):
            History.open(path)
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (version,)
        assert raw.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall() == []
    everything(path)


def test_a_full_disk_keeps_what_was_saved_and_goes_on_when_there_is_room(path: Path) -> None:
    with closing(History.open(path)) as history:
        conversation = history.create({})
        asked = history.add(conversation, None, "user", "first")
        answer = history.add(conversation, asked.id, "assistant", "", state="streaming")
        with history._database.write() as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(HistoryError, match="disk is full"):
            history.update(answer.id, content="x" * 100_000)
        with pytest.raises(HistoryError, match="disk is full"):
            history.add(conversation, asked.id, "user", "y" * 100_000)
        assert [e.content for e in history.get(conversation).entries] == ["first", ""]
        with history._database.write() as connection:
            connection.execute("PRAGMA max_page_count = 1000000")
        history.update(answer.id, content="x" * 100_000, state="whole")
        assert history.get(conversation).entries[-1].content == "x" * 100_000


def test_a_history_that_cannot_be_written_says_so(path: Path) -> None:
    fill(path)
    with closing(History.open(path)) as history:
        history._database._connection.execute("PRAGMA query_only = ON")
        assert len(history.conversations()) == 6
        with pytest.raises(HistoryError, match="--private"):
            history.create({})


def test_a_folder_that_cannot_be_made_says_so(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(HistoryError, match="--private"):
        History.open(path)


def test_a_folder_in_place_of_the_file_says_so(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(HistoryError, match="--private"):
        History.open(path)


@pytest.mark.parametrize("part", ["-wal", "-shm", "-journal"])
def test_a_log_that_cannot_be_opened_says_so(path: Path, part: str) -> None:
    path.parent.mkdir()
    path.with_name(path.name + part).mkdir()
    with pytest.raises(HistoryError, match="--private"):
        History.open(path)


def test_a_file_that_another_program_keeps_locked_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    monkeypatch.setattr("stem_local.history.database._BUSY_SECONDS", 0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryError, match="Another program"):
            History.open(path)
        other.execute("ROLLBACK")
    everything(path)


def tampered(path: Path, statement: str) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(statement)
        raw.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET role = 'root'",
        "UPDATE entries SET state = 'lost'",
        "UPDATE entries SET created = 'today'",
        "UPDATE entries SET created = 9e99",
        "UPDATE entries SET model = x'00'",
        "UPDATE entries SET stats = '[]'",
        "UPDATE entries SET stats = '{'",
        "UPDATE entries SET forgotten = 'two'",
        "UPDATE entries SET attachments = '[7]'",
        "UPDATE entries SET attachments = '[{}]'",
        "UPDATE entries SET attachments = replace(printf('%050000d', 0), '0', '[')",
        "UPDATE conversations SET settings = '7'",
        "UPDATE conversations SET title = x'ff'",
        "UPDATE conversations SET updated = -1",
        "UPDATE conversations SET messages = 'many'",
        "DROP TABLE words",
        "DROP TABLE entries",
    ],
)
def test_rows_that_cannot_be_are_damage(path: Path, statement: str) -> None:
    tampered(path, statement)
    with pytest.raises(DamagedHistoryError):
        everything(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET open_child = id",
        "UPDATE entries SET open_child = 1",
        "UPDATE conversations SET open_root = 2",
        "UPDATE conversations SET open_root = 99",
        "UPDATE entries SET writer = '../../etc/passwd', state = 'streaming'",
        "UPDATE entries SET writer = '0123456789abcdef', state = 'streaming'",
        "PRAGMA ignore_check_constraints = ON",
    ],
)
def test_odd_links_end_nothing(path: Path, statement: str) -> None:
    tampered(path, statement)
    everything(path)


def test_a_circle_of_parents_is_walked_once(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA ignore_check_constraints = ON")
        raw.execute("UPDATE entries SET parent = 3, open_child = 3 WHERE id = 1")
        raw.execute("UPDATE entries SET parent = 1, open_child = 1 WHERE id = 3")
        raw.commit()
    with closing(History.open(path)) as history:
        assert history.open_entry(3) == 1
        assert history.get(1).entries == ()
