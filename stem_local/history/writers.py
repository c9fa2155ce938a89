"""Which processes are still writing an answer: each holds a lock meanwhile, which ends with it."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NAME = re.compile(r"[0-9a-f]{16}")


class Writer:
    """This history's name as a writer, which other processes can tell is alive.

    The operating system gives the lock back when a process ends, however it ends; a number of a
    process or a time would say less, since both can belong to another by now, or to a laptop that
    slept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock: BaseFileLock | None = None
        self.name: str | None = None

    def begin(self) -> str | None:
        """The name to write into unfinished answers; None where locks are not to be had."""
        if self._path is not None and self.name is None:
            import filelock  # here, because a screen that only reads should not pay for it

            name = secrets.token_hex(8)
            lock = filelock.FileLock(self._file(name), thread_local=False)
            try:
                lock.acquire(timeout=0)
            except (OSError, NotImplementedError):
                return None
            self._lock, self.name = lock, name
        return self.name

    def gone(self, name: str | None) -> bool:
        """Whether another writer, of that name, has ended. Sweeps away what it left."""
        if name is None or self._path is None or not _NAME.fullmatch(name):
            return True
        file = self._file(name)
        if not file.exists():
            return True
        import filelock

        try:
            with filelock.FileLock(file, timeout=0, thread_local=False):
                pass
            file.unlink(missing_ok=True)
        except filelock.Timeout:
            return False
        except (OSError, NotImplementedError):
            return True
        return True

    def end(self) -> None:
        """Let go of the name. Call it when nothing of it is left unfinished."""
        if self._lock is not None and self.name is not None:
            self._lock.release()
            self._file(self.name).unlink(missing_ok=True)
        self._lock = self.name = None

    def _file(self, name: str) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}-writer-{name}")
