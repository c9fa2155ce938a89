"""The file behind the history: opening it, transactions, and SQLite's errors in plain words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from stem_runtime.errors import StemError, UsageError

from ..errors import DamagedHistoryError, HistoryError
from . import migrations, rows
from .entries import TOO_LARGE

_BUSY_SECONDS = 10.0

# The last three are what damaged tables, rows and links look like to correct statements.
_DAMAGED = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_CONSTRAINT,
}
_UNWRITABLE = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

_PRAGMAS = (
    "foreign_keys = ON",
    # A killed process loses nothing; a power cut may cost the last moments, never the file.
    "synchronous = NORMAL",
    # What is deleted is overwritten, and what is sorted or merged never spills into /tmp.
    "secure_delete = ON",
    "temp_store = MEMORY",
    "cell_size_check = ON",
)


class Database:
    """One connection that threads take turns with. `path` None: in memory, nothing is written.

    Opening brings an older file up to date. Every error leaves as a StemError: HistoryError,
    DamagedHistoryError or NewerHistoryError, the last two with the file unchanged.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection = self._open()

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one moment of the file, whatever others write meanwhile."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are all kept, or, where anything is raised, none."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def forget_deleted(self) -> None:
        """Take what was deleted out of the write-ahead log too, where nobody is reading it."""
        with self._lock, self._explained():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def damaged(self, detail: object) -> DamagedHistoryError:
        return DamagedHistoryError(
            f"The saved conversations in {self.path or 'memory'} are damaged ({detail}). "
            "Move the file aside to begin anew (nothing is deleted), or put a backup in its place."
        )

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained(), _transaction(self._connection, begin):
            yield self._connection

    def _open(self) -> sqlite3.Connection:
        with self._explained():
            connection = sqlite3.connect(
                ":memory:" if self.path is None else _touched(self.path),
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        connection.text_factory = rows.decoded
        # Before anything that could write: a file that is not ours, or newer, stays as it is.
        with _transaction(connection, "BEGIN"):
            migrations.check(connection, self)
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        _log_ahead(connection)
        with _transaction(connection, "BEGIN IMMEDIATE"):
            migrations.migrate(connection, self)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error
        except UnicodeDecodeError as error:
            # Python fails like this where SQLite's own message quotes a damaged name.
            raise self.damaged(error.reason) from error
        except OverflowError as error:
            raise UsageError(TOO_LARGE) from error
        except OSError as error:
            raise self._unwritable(error.strerror or error) from error

    def _explain(self, error: sqlite3.Error) -> StemError:
        code = getattr(error, "sqlite_errorcode", -1) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return HistoryError(
                f"The disk is full: {self.path or 'memory'} could not take the last change. "
                "Make room and try again; what was saved before is intact."
            )
        if code in _LOCKED:
            return HistoryError(
                f"Another program has kept {self.path} locked for {_BUSY_SECONDS:.0f} seconds; "
                "close it and try again."
            )
        if code in _UNWRITABLE:
            return self._unwritable(error)
        if code in _DAMAGED and "no such module" not in str(error):
            return self.damaged(error)
        return HistoryError(
            f"Conversations in {self.path or 'memory'} cannot be read or written ({error}): see "
            "that its disk works and has room, or chat without saving (stem-chat --private)."
        )

    def _unwritable(self, reason: object) -> HistoryError:
        return HistoryError(
            f"Conversations cannot be saved in {self.path} ({reason}): make it writable, point "
            "STEM_HOME at another folder, or chat without saving (stem-chat --private)."
        )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite itself has rolled back after some errors, a full disk for one.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _touched(path: Path) -> Path:
    """Make sure of the file, for its owner's eyes only; SQLite gives its logs the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return path


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; file systems that cannot stay with a rollback journal."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            # SQLite does not wait here by itself when two processes make the file at once.
            if error.sqlite_errorcode & 0xFF not in _LOCKED or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
