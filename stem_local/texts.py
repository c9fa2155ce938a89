"""The user's own texts, to calibrate on and to measure with."""

from __future__ import annotations

from pathlib import Path

from stem_runtime.errors import UsageError
from stem_runtime.formats.header import read_text


def own_text(path: Path) -> str:
    """A text file, its lines ended by newlines whatever system wrote it, so that a text is the
    same tokens everywhere. Raises UsageError where there is nothing in it, and FormatError.
    """
    text = read_text(path)
    if not text.strip():
        raise UsageError(f"{path} has no text in it; leave it out or give another file.")
    return text.replace("\r\n", "\n")
