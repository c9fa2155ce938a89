"""What can still be read of a damaged history, carried over into a new one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from stem_runtime.errors import UsageError

from ..errors import HistoryError
from . import rows
from .entries import Conversation, ConversationInfo, Entry
from .store import History
from .tree import CONVERSATIONS

MAX_ENTRIES = 2_000_000
"""How far ids are tried; a damaged file may claim any number."""

_MEMBERS = "SELECT id, conversation FROM entries"
_ENTRIES = f"SELECT {rows.ENTRY_FIELDS}, 1, 1 FROM entries e"
_UNREADABLE = (sqlite3.Error, LookupError, TypeError, ValueError, RecursionError)


def salvage(damaged: Path, path: Path) -> int:
    """Save in the history at `path` what can be read of a damaged one, which stays as it is.

    Returns how many conversations that were; where there are none, no file is made. What cannot
    be saved, because the disk is full say, is left out.
    """
    saved = 0
    with contextlib.ExitStack() as stack, contextlib.suppress(HistoryError, sqlite3.Error):
        history: History | None = None
        for conversation in _readable(damaged):
            if history is None:
                history = stack.enter_context(contextlib.closing(History.open(path)))
            with contextlib.suppress(UsageError):
                history.insert(conversation)
                saved += 1
    return saved


def _readable(path: Path) -> Iterator[Conversation]:
    """The conversations in a damaged file that have any messages left."""
    with _reading(path) as connection:
        members: dict[int, list[int]] = defaultdict(list)
        # Each by its id: going through the table would end at the first page that is lost.
        for ident in range(1, _last_id(connection) + 1):
            if row := _row(connection, _MEMBERS, ident):
                members[row["conversation"]].append(ident)
        for ident, entries in members.items():
            found = (_row(connection, _ENTRIES, entry) for entry in entries)
            if readable := _entries(found):
                yield _conversation(_row(connection, CONVERSATIONS, ident), readable)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    shared = path.with_name(path.name + "-shm")
    shared_before = shared.exists()
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        connection.row_factory = sqlite3.Row
        connection.text_factory = rows.decoded
        # SQLite then reads a file that was cut short as far as it goes.
        connection.execute("PRAGMA writable_schema = ON")
        yield connection
    finally:
        connection.close()
        # Reading makes this one, and unlike the log it holds nothing of anybody's.
        if not shared_before:
            shared.unlink(missing_ok=True)


def _last_id(connection: sqlite3.Connection) -> int:
    for query in (
        "SELECT seq FROM sqlite_sequence WHERE name = 'entries'",
        "SELECT max(id) FROM entries",
    ):
        with contextlib.suppress(*_UNREADABLE):
            return min(rows.number(connection.execute(query).fetchone()[0]), MAX_ENTRIES)
    return 0


def _row(connection: sqlite3.Connection, query: str, ident: int) -> sqlite3.Row | None:
    with contextlib.suppress(*_UNREADABLE):
        row: sqlite3.Row | None = connection.execute(f"{query} WHERE id = ?", (ident,)).fetchone()
        return row
    return None


def _entries(found: Iterator[sqlite3.Row | None]) -> tuple[Entry, ...]:
    """Messages that can be read; one whose parent cannot follows the one that came before it."""
    entries: dict[int, Entry] = {}
    before: int | None = None
    for row in found:
        with contextlib.suppress(*_UNREADABLE):
            if row is None:
                continue
            entry = rows.entry(row)
            known = entry.parent is None or entry.parent in entries
            entries[entry.id] = entry if known else replace(entry, parent=before)
            before = entry.id
    return tuple(entries.values())


def _conversation(row: sqlite3.Row | None, entries: tuple[Entry, ...]) -> Conversation:
    with contextlib.suppress(*_UNREADABLE):
        if row is not None:
            return Conversation(rows.info(row), rows.fields(row["settings"]), entries)
    first, last = entries[0], entries[-1]
    title = rows.title_of(first.content, first.attachments)
    return Conversation(ConversationInfo(0, title, first.created, last.created, 0), {}, entries)
