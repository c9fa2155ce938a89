"""Text files that a message brings along: read, bounded and checked."""

from __future__ import annotations

import stat
from pathlib import Path

from stem_local import units
from stem_local.errors import UsageError
from stem_local.history.entries import Attachment

MAX_FILE = 1_000_000
"""Bytes of a file; more than any context holds, so that the model is who refuses first."""

MAX_PASTE = 4_000_000
"""Characters of a pasted text that becomes an attachment."""


def read_text(path: str | Path) -> Attachment:
    """A text file as an attachment. Blocks; UsageError for what is no readable UTF-8 text."""
    file = Path(path)
    try:
        file = file.expanduser()
        status = file.stat()
        # opening a pipe or a device could wait forever, or never end
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not an ordinary file"
            raise UsageError(f"{file!s:.200} is {what}; name a text file.")
        with file.open("rb") as source:
            data = source.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise UsageError(f"There is no file {file!s:.200}.") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(getattr(error, "strerror", None) or error).removesuffix(".")
        raise UsageError(f"{file!s:.200} cannot be read: {reason}.") from None
    if len(data) > MAX_FILE:
        limit = units.size(MAX_FILE)
        raise UsageError(
            f"{file.name} is larger than {limit}, the most that a message takes of one file; "
            "attach the part that matters."
        )
    return Attachment(file.name, _decoded(file.name, data))


def pasted(text: str, number: int) -> Attachment:
    """A text that is too long to edit, as an attachment. UsageError if too long even for that."""
    if len(text) > MAX_PASTE:
        raise UsageError(
            f"The text has {len(text):,} characters and was left out; {MAX_PASTE:,} are the most "
            "that a message takes. Save it to a file where you copied it, and attach a part."
        )
    return Attachment(f"pasted-{number}.txt", text)


def _decoded(name: str, data: bytes) -> str:
    if b"\0" in data:
        raise UsageError(f"{name} is not a text file; only text can be attached.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start:,}); save it as UTF-8 and try again."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
