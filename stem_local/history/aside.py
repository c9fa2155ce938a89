"""Moving a damaged history out of the way, so that a new one can take over."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from stem_runtime import paths

from ..errors import HistoryError

# The log goes first: one that stayed behind would be read into the file that is made next.
_PARTS = ("-wal", "-shm", "")


def default_path() -> Path:
    """The user's history."""
    return paths.data_dir() / "history.db"


def set_aside(path: Path | None = None) -> Path:
    """Rename a history's file, the user's own, with its logs, after the day and time.

    Nothing is deleted, and what can still be read of it is carried over into a new file, where
    History.open finds it. Returns the path of the old one. Call it with no History of that path
    open. Raises HistoryError where it cannot be moved.
    """
    path = path or default_path()
    target = _unused(path)
    try:
        for part in _PARTS:
            old = path.with_name(path.name + part)
            if part == "" or old.exists():
                old.rename(target.with_name(target.name + part))
    except OSError as error:
        raise HistoryError(
            f"{path} cannot be moved aside ({error.strerror}): close other windows that have it "
            "open, or move it yourself."
        ) from error
    from .salvage import salvage  # it needs what is defined beside set_aside

    salvage(target, path)
    return target


def _unused(path: Path) -> Path:
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    for number in itertools.count(1):
        again = "" if number == 1 else f"-{number}"
        target = path.with_name(f"{path.stem}-damaged-{stamp}{again}{path.suffix}")
        if not any(target.with_name(target.name + part).exists() for part in _PARTS):
            return target
    raise AssertionError
