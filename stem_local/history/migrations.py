"""The tables, as the steps by which they came about; a file remembers how many it has taken.

Each step runs once, in order, inside one transaction with all the others that a file still needs:
after a kill it is as old as it was or as new as it gets. Steps that were released never change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import NewerHistoryError

if TYPE_CHECKING:
    from .database import Database

APPLICATION_ID = 0x5354454D  # "STEM", so that another program's database is not taken for ours


def _tables(connection: sqlite3.Connection) -> None:
    # Long columns come last: SQLite reads a row from its beginning, and pages that hold only the
    # text of other messages are then never touched. A parent is older than its child, which is
    # what makes every walk up or down the tree end, even in a damaged file.
    for statement in (
        """
        CREATE TABLE conversations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            created REAL NOT NULL,
            updated REAL NOT NULL,
            messages INTEGER NOT NULL DEFAULT 0,
            open_root INTEGER,
            title TEXT NOT NULL DEFAULT '',
            settings TEXT NOT NULL DEFAULT '{}'
        )
        """,
        "CREATE INDEX conversations_by_time ON conversations (updated, id)",
        """
        CREATE TABLE entries (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            parent INTEGER REFERENCES entries (id) CHECK (parent < id),
            open_child INTEGER,
            role TEXT NOT NULL,
            state TEXT NOT NULL,
            created REAL NOT NULL,
            forgotten INTEGER NOT NULL DEFAULT 0,
            writer TEXT,
            model TEXT,
            stats TEXT,
            content TEXT NOT NULL,
            attachments TEXT NOT NULL DEFAULT '[]'
        )
        """,
        "CREATE INDEX entries_by_parent ON entries (parent, conversation)",
        "CREATE INDEX entries_by_conversation ON entries (conversation)",
        "CREATE INDEX entries_unfinished ON entries (writer) WHERE state = 'streaming'",
    ):
        connection.execute(statement)


def _search_index(connection: sqlite3.Connection) -> None:
    # An answer enters the index when it is finished: indexing it anew twice a second while it
    # streams would cost more than saving it.
    for statement in (
        """
        CREATE VIEW searchable (id, content) AS
            SELECT id, content FROM entries WHERE state <> 'streaming'
        """,
        """
        CREATE VIRTUAL TABLE words USING fts5 (
            content, content = 'searchable', content_rowid = 'id',
            tokenize = 'unicode61 remove_diacritics 2'
        )
        """,
        "INSERT INTO words (rowid, content) SELECT id, content FROM searchable",
        """
        CREATE TRIGGER words_insert AFTER INSERT ON entries WHEN new.state <> 'streaming' BEGIN
            INSERT INTO words (rowid, content) VALUES (new.id, new.content);
        END
        """,
        """
        CREATE TRIGGER words_delete AFTER DELETE ON entries WHEN old.state <> 'streaming' BEGIN
            INSERT INTO words (words, rowid, content) VALUES ('delete', old.id, old.content);
        END
        """,
        """
        CREATE TRIGGER words_update AFTER UPDATE OF state, content ON entries
        WHEN (old.state <> 'streaming' OR new.state <> 'streaming')
            AND (old.content <> new.content OR old.state = 'streaming' OR new.state = 'streaming')
        BEGIN
            INSERT INTO words (words, rowid, content)
                SELECT 'delete', old.id, old.content WHERE old.state <> 'streaming';
            INSERT INTO words (rowid, content)
                SELECT new.id, new.content WHERE new.state <> 'streaming';
        END
        """,
    ):
        connection.execute(statement)


MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = [_tables, _search_index]


def check(connection: sqlite3.Connection, database: Database) -> int:
    """How many steps the file has taken. Writes nothing.

    Raises NewerHistoryError for one from a later version of the program, DamagedHistoryError for
    one that is not a history at all.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or version or objects):
        raise database.damaged("it is not a database of STEM Local")
    if version > len(MIGRATIONS):
        raise NewerHistoryError(
            f"The conversations in {database.path} were saved by a newer version of STEM Local "
            f"(format {version}; this one knows {len(MIGRATIONS)}). Update STEM Local, or chat "
            "without saving (stem-chat --private)."
        )
    if version < 0 or bool(version) != bool(objects):
        raise database.damaged("its version and its tables disagree")
    return int(version)


def migrate(connection: sqlite3.Connection, database: Database) -> None:
    """Take the steps that the file has not taken yet. Call it in a transaction for writing."""
    version = check(connection, database)
    for step in MIGRATIONS[version:]:
        step(connection)
    if version < len(MIGRATIONS):
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
