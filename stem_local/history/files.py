"""Files that conversations are exported to and imported from: whole or not at all, and bounded."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from stem_runtime.errors import UsageError

from ..errors import DiskSpaceError

MAX_FILE = 64_000_000
"""Bytes of the largest file that is read."""


def write_file(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a text as UTF-8, so that `path` is at every moment the old file or the new one.

    Raises UsageError where the file exists and `overwrite` is not set or where it cannot be
    written, DiskSpaceError where the disk is full.
    """
    temporary = path.with_name(f".stem-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        _give_name(temporary, path, overwrite)
    except FileExistsError as error:
        raise UsageError(
            f"{path} exists already; give another name, or say that it be replaced."
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskSpaceError(
                f"There is no room left for {path}; make some, or write it elsewhere."
            ) from error
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); give another file, in a folder that "
            "exists."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path: Path) -> str:
    """The text of a file. Raises UsageError for one that cannot be read, too large or not UTF-8."""
    try:
        if not path.is_file():
            raise UsageError(f"There is no file {path}.")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_FILE:
        raise UsageError(f"{path} has more than {MAX_FILE:,} bytes, too many for a conversation.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start:,}).") from error


def _give_name(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        # Unlike a rename, a link fails where somebody else has just made that file.
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        path.open("xb").close()
        temporary.replace(path)
