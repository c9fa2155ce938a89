"""The statements by which a tree of messages is read, grown and opened.

They run in the transaction of whoever calls them.
"""

from __future__ import annotations

import sqlite3
from itertools import pairwise

from stem_runtime.errors import UsageError

from . import rows
from .entries import Entry

CONVERSATIONS = "SELECT id, title, created, updated, messages, settings FROM conversations"
OPEN_BRANCH = f"""
    WITH RECURSIVE branch (id) AS (
        SELECT e.id FROM conversations c
        JOIN entries e ON e.id = c.open_root AND e.conversation = c.id AND e.parent IS NULL
        WHERE c.id = ?
        UNION ALL
        SELECT e.id FROM branch JOIN entries p ON p.id = branch.id
        JOIN entries e ON e.id = p.open_child AND e.parent = p.id
    )
    SELECT {rows.ENTRY_COLUMNS} FROM branch JOIN entries e ON e.id = branch.id ORDER BY e.id
"""
ALL_BRANCHES = f"SELECT {rows.ENTRY_COLUMNS} FROM entries e WHERE e.conversation = ? ORDER BY e.id"
ONE_ENTRY = f"SELECT {rows.ENTRY_COLUMNS} FROM entries e WHERE e.id = ?"
_PATH_UP = """
    WITH RECURSIVE path (id, parent, open_child) AS (
        SELECT id, parent, open_child FROM entries WHERE id = ?
        UNION ALL
        SELECT e.id, e.parent, e.open_child FROM path
        JOIN entries e ON e.id = path.parent AND e.id < path.id
    )
    SELECT id, parent, open_child FROM path
"""
_INSERT = """
    INSERT INTO entries (conversation, parent, role, state, created, forgotten, writer, model,
        stats, content, attachments)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def require(connection: sqlite3.Connection, conversation: int) -> sqlite3.Row:
    """The row of a conversation. Raises UsageError where there is none."""
    row: sqlite3.Row | None = connection.execute(
        f"{CONVERSATIONS} WHERE id = ?", (conversation,)
    ).fetchone()
    if row is None:
        raise UsageError(f"There is no conversation {conversation} in the history.")
    return row


def require_entry(
    connection: sqlite3.Connection, entry: int, conversation: int | None = None
) -> sqlite3.Row:
    """A message's id, parent and conversation, which must be that one if given.

    Raises UsageError where there is none.
    """
    row: sqlite3.Row | None = connection.execute(
        "SELECT id, parent, conversation FROM entries WHERE id = ?", (entry,)
    ).fetchone()
    if row is None or (conversation is not None and row["conversation"] != conversation):
        where = "the history" if conversation is None else f"conversation {conversation}"
        raise UsageError(f"There is no message {entry} in {where}.")
    return row


def sibling(connection: sqlite3.Connection, conversation: int, entry: int, step: int) -> int:
    """The version of a message `step` places after it. Raises UsageError where there is none."""
    parent = require_entry(connection, entry, conversation)["parent"]
    found = connection.execute(
        "SELECT id FROM entries WHERE parent IS ? AND conversation = ? ORDER BY id",
        (parent, conversation),
    )
    siblings = [int(row["id"]) for row in found]
    place = siblings.index(entry) + step
    if not 0 <= place < len(siblings):
        there = "further" if step > 0 else "earlier"
        raise UsageError(f"There is no {there} version of this message.")
    return siblings[place]


def insert_conversation(
    connection: sqlite3.Connection, created: float, updated: float, title: str, settings: str
) -> int:
    """Add a conversation without messages. Returns its id."""
    made = connection.execute(
        "INSERT INTO conversations (created, updated, title, settings) VALUES (?, ?, ?, ?)",
        (created, updated, title, settings),
    )
    return int(made.lastrowid or 0)


def insert_entry(
    connection: sqlite3.Connection,
    conversation: int,
    parent: int | None,
    entry: Entry,
    writer: str | None,
) -> int:
    """Add a message, its id and branch aside. Returns its id. Raises UsageError as `rows` does."""
    values = (
        conversation,
        parent,
        rows.checked(entry.role, rows.ROLES, "role of a message"),
        rows.checked(entry.state, rows.STATES, "state of a message"),
        entry.created,
        entry.forgotten,
        writer,
        None if entry.model is None else rows.stored_text(entry.model, "model's name"),
        None if entry.stats is None else rows.stored_fields(entry.stats, "figures"),
        rows.stored_text(entry.content),
        rows.stored_attachments(entry.attachments),
    )
    return int(connection.execute(_INSERT, values).lastrowid or 0)


def is_writing(connection: sqlite3.Connection, writer: str | None) -> bool:
    """Whether the writer of that name has unfinished answers."""
    query = "SELECT 1 FROM entries WHERE state = 'streaming' AND writer = ? LIMIT 1"
    return connection.execute(query, (writer,)).fetchone() is not None


def open_path(connection: sqlite3.Connection, conversation: int, leaf: int) -> None:
    """Open the branch that `leaf` is on, from the first message down to it."""
    path = connection.execute(_PATH_UP, (leaf,)).fetchall()
    for child, parent in pairwise(path):
        if parent["open_child"] != child["id"]:
            open_child(connection, conversation, parent["id"], child["id"])
    open_child(connection, conversation, None, path[-1]["id"])


def open_child(
    connection: sqlite3.Connection, conversation: int, parent: int | None, child: int
) -> None:
    """Make `child` the one of its siblings that is open."""
    if parent is None:
        connection.execute(
            "UPDATE conversations SET open_root = ? WHERE id = ?", (child, conversation)
        )
    else:
        connection.execute("UPDATE entries SET open_child = ? WHERE id = ?", (child, parent))
