"""The history: every conversation, written as it happens.

A conversation is a tree of messages. Each message remembers which of its children was open last,
and a conversation which of its first messages; the open branch is what following them gives, and
every branch that is left stays as it was left.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stem_runtime.errors import StemError, UsageError

from . import rows, tree
from .aside import default_path, set_aside
from .database import Database
from .entries import Attachment, Conversation, ConversationInfo, Entry, Hit, Role, State
from .search import search
from .writers import Writer

_MERGED_PAGES = 200
# A conversation that nothing was said in yet is not worth a line, unless somebody named it.
_LISTED = "(open_root IS NOT NULL OR title <> '')"


class History:
    """Saved conversations. Threads may share one; processes may each open the same file.

    Every method leaves the file whole or unchanged, and raises HistoryError where it cannot be
    read or written, DamagedHistoryError where it is damaged.
    """

    def __init__(self, database: Database) -> None:
        """Use `open` or `in_memory`."""
        self._database = database
        self._writer = Writer(database.path)
        try:
            self._stop(self._writer.gone)
        except BaseException:
            database.close()
            raise

    @classmethod
    def open(cls, path: Path | None = None) -> History:
        """Open the user's history, or make it. Answers that a kill cut off become stopped ones.

        Raises DamagedHistoryError, NewerHistoryError (nothing was changed in either case), or
        HistoryError for one that cannot be read or written.
        """
        return cls(Database(path or default_path()))

    @classmethod
    def in_memory(cls) -> History:
        """A history of this process alone, which writes nothing anywhere."""
        return cls(Database(None))

    set_aside = staticmethod(set_aside)

    @property
    def private(self) -> bool:
        """Whether it ends with the process."""
        return self._database.path is None

    def create(self, settings: Mapping[str, Any]) -> int:
        """Begin a conversation. It is listed once something is said in it."""
        stored, now = rows.stored_fields(settings, "settings"), time.time()
        with self._database.write() as connection:
            return tree.insert_conversation(connection, now, now, "", stored)

    def get(self, conversation: int) -> Conversation:
        """A conversation with its open branch. Raises UsageError where there is none."""
        return self._load(conversation, tree.OPEN_BRANCH)

    def outline(self, conversation: int) -> Conversation:
        """A conversation without its messages, however many it has. Raises UsageError as `get`."""
        with self._database.read() as connection, self._checked():
            return rows.conversation(tree.require(connection, conversation), ())

    def tree(self, conversation: int) -> Conversation:
        """A conversation with every message of all its branches, parents before children."""
        return self._load(conversation, tree.ALL_BRANCHES)

    def latest(self) -> int | None:
        """The conversation that was changed last; None where there is none."""
        found = self.conversations(limit=1)
        return found[0].id if found else None

    def conversations(self, limit: int = 200, offset: int = 0) -> list[ConversationInfo]:
        """Conversations, the one changed last first."""
        query = f"{tree.CONVERSATIONS} WHERE {_LISTED} ORDER BY updated DESC, id DESC"
        with self._database.read() as connection, self._checked():
            found = connection.execute(f"{query} LIMIT ? OFFSET ?", (limit, offset)).fetchall()
            return [rows.info(row) for row in found]

    def search(self, query: str, limit: int = 50) -> list[Hit]:
        """Messages with all the words of `query`, any text; the last may be a beginning.

        "Words in quotes" are found as they stand. Conversations whose title matches come first,
        with their first message.
        """
        with self._database.read() as connection, self._checked():
            return search(connection, query, limit)

    def add(
        self,
        conversation: int,
        parent: int | None,
        role: Role,
        content: str,
        *,
        attachments: Sequence[Attachment] = (),
        state: State = "whole",
        model: str | None = None,
    ) -> Entry:
        """Save a message under `parent` (None: a first one), the end of the open branch now.

        Raises UsageError where the conversation or the parent is not there.
        """
        new = Entry(0, parent, role, content, time.time(), (1, 1), tuple(attachments), state, model)
        title = rows.title_of(content, attachments) if role == "user" else ""
        with self._database.write() as connection:
            tree.require(connection, conversation)
            if parent is not None:
                tree.require_entry(connection, parent, conversation)
            writer = self._writer.begin() if state == "streaming" else None
            made = tree.insert_entry(connection, conversation, parent, new, writer)
            tree.open_path(connection, conversation, made)
            connection.execute(
                "UPDATE conversations SET updated = ?, messages = messages + 1, "
                "title = CASE title WHEN '' THEN ? ELSE title END WHERE id = ?",
                (new.created, title, conversation),
            )
            with self._checked():
                return rows.entry(connection.execute(tree.ONE_ENTRY, (made,)).fetchone())

    def update(
        self,
        entry: int,
        *,
        content: str | None = None,
        state: State | None = None,
        stats: Mapping[str, Any] | None = None,
        forgotten: int | None = None,
        model: str | None = None,
    ) -> None:
        """Change what is given of a message; cheap enough for several times a second.

        Raises UsageError where the message is gone, with its conversation.
        """
        changes: dict[str, object] = {}
        if content is not None:
            changes["content"] = rows.stored_text(content)
        if state is not None:
            changes["state"] = rows.checked(state, rows.STATES, "state of a message")
        if stats is not None:
            changes["stats"] = rows.stored_fields(stats, "figures")
        if forgotten is not None:
            changes["forgotten"] = forgotten
        if model is not None:
            changes["model"] = model
        if not changes:
            return
        with self._database.write() as connection:
            if state is not None:
                changes["writer"] = self._writer.begin() if state == "streaming" else None
            assignments = ", ".join(f"{column} = ?" for column in changes)
            done = connection.execute(
                f"UPDATE entries SET {assignments} WHERE id = ?", (*changes.values(), entry)
            )
            if not done.rowcount:
                self._end_writing(connection)
                raise UsageError("That message is not in the history; was its chat deleted?")
            if state is not None and state != "streaming":
                connection.execute(
                    "UPDATE conversations SET updated = ? "
                    "WHERE id = (SELECT conversation FROM entries WHERE id = ?)",
                    (time.time(), entry),
                )
                self._end_writing(connection)

    def branch(self, conversation: int, step: int, entry: int) -> None:
        """Open the sibling `step` places after `entry` (before it: negative), as it was left.

        Raises UsageError where there is no such sibling.
        """
        with self._database.write() as connection:
            sibling = tree.sibling(connection, conversation, entry, step)
            tree.open_path(connection, conversation, sibling)

    def open_entry(self, entry: int) -> int:
        """Open the branch that a message is on, one that a search found say.

        Returns its conversation. Raises UsageError where the message is gone.
        """
        with self._database.write() as connection:
            conversation = int(tree.require_entry(connection, entry)["conversation"])
            tree.open_path(connection, conversation, entry)
            return conversation

    def rename(self, conversation: int, title: str) -> None:
        """Give a conversation a title. Raises UsageError for one of nothing but blanks."""
        cleaned = rows.clean_title(title)
        if not cleaned:
            raise UsageError("A title needs at least one character that can be seen.")
        self._change(conversation, "title", cleaned)

    def set_settings(self, conversation: int, settings: Mapping[str, Any]) -> None:
        """Keep a conversation's settings as they are now."""
        self._change(conversation, "settings", rows.stored_fields(settings, "settings"))

    def delete(self, conversation: int) -> None:
        """Delete a conversation, so that nothing of it can be found in the file either."""
        with self._database.write() as connection:
            tree.require(connection, conversation)
            connection.execute("DELETE FROM conversations WHERE id = ?", (conversation,))
            self._end_writing(connection)
        self._forget_words()
        self._database.forget_deleted()

    def insert(self, conversation: Conversation, end: int | None = None) -> int:
        """Save a whole conversation from elsewhere, all of it or nothing. Returns its id here.

        Its entries are as `tree` gives them, with ids of their own; `end` is the one that the open
        branch leads to (None: the last). Raises UsageError where they are no tree.
        """
        info, settings = conversation.info, rows.stored_fields(conversation.settings, "settings")
        with self._database.write() as connection:
            made = tree.insert_conversation(
                connection, info.created, info.updated, rows.clean_title(info.title), settings
            )
            writing = any(entry.state == "streaming" for entry in conversation.entries)
            writer = self._writer.begin() if writing else None
            ids: dict[int, int] = {}
            for entry in conversation.entries:
                if entry.id in ids or (entry.parent is not None and entry.parent not in ids):
                    raise UsageError(f"Message {entry.id} comes twice, or before its parent.")
                parent = None if entry.parent is None else ids[entry.parent]
                ids[entry.id] = new = tree.insert_entry(connection, made, parent, entry, writer)
                tree.open_child(connection, made, parent, new)
            if end is not None:
                if end not in ids:
                    raise UsageError(f"The open branch ends with message {end}, which is missing.")
                tree.open_path(connection, made, ids[end])
            connection.execute(
                "UPDATE conversations SET messages = ? WHERE id = ?", (len(ids), made)
            )
            return made

    def close(self) -> None:
        """Let the file go. An answer that this history was still writing stays as a stopped one."""
        # What cannot be marked now, on a full disk say, is marked when the file is next opened.
        with contextlib.suppress(StemError):
            self._stop(lambda writer: writer is not None and writer == self._writer.name)
        self._writer.end()
        self._database.close()

    def _forget_words(self) -> None:
        """Take deleted words out of the search index, where they stay as crossed out otherwise.

        The parts of the index are merged step by step, so that an answer can be saved in between.
        """
        pages, changed = -_MERGED_PAGES, 2
        # Below two changes a step found nothing more to merge; a negative number begins anew.
        while changed >= 2:
            with self._database.write() as connection:
                before = connection.total_changes
                connection.execute("INSERT INTO words (words, rank) VALUES ('merge', ?)", (pages,))
                changed = connection.total_changes - before
            pages = _MERGED_PAGES
            time.sleep(0.001)  # locks are not fair: who waits for this one gets a chance

    def _end_writing(self, connection: sqlite3.Connection) -> None:
        """Take this history's mark away once nothing of it is unfinished: a kill leaves none."""
        if not tree.is_writing(connection, self._writer.name):
            self._writer.end()

    def _stop(self, meant: Callable[[str | None], bool]) -> None:
        """Turn the unfinished answers of the writers that are meant into stopped ones."""
        with self._database.write() as connection:
            found = connection.execute(
                "SELECT DISTINCT writer FROM entries WHERE state = 'streaming'"
            )
            for writer in [row["writer"] for row in found]:
                if meant(writer):
                    connection.execute(
                        "UPDATE entries SET state = 'stopped', writer = NULL "
                        "WHERE state = 'streaming' AND writer IS ?",
                        (writer,),
                    )

    def _load(self, conversation: int, query: str) -> Conversation:
        with self._database.read() as connection, self._checked():
            row = tree.require(connection, conversation)
            return rows.conversation(row, connection.execute(query, (conversation,)).fetchall())

    def _change(self, conversation: int, column: str, value: str) -> None:
        with self._database.write() as connection:
            tree.require(connection, conversation)
            connection.execute(
                f"UPDATE conversations SET {column} = ? WHERE id = ?", (value, conversation)
            )

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        """Call what a row cannot hold unless somebody or something damaged it by its name."""
        try:
            yield
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise self._database.damaged(error) from error
