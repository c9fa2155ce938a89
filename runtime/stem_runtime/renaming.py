"""The rename that puts a finished file or folder into its place."""

from __future__ import annotations

import os
import time
from pathlib import Path

_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()
"""Seconds between tries. Windows renames nothing that somebody reads, as virus scanners do with
every file that was just written."""


def rename(old: Path, new: Path) -> None:
    """Give `old` the name `new`, in place of the file that had it. Raises OSError."""
    for seconds in _WAITS:
        try:
            old.replace(new)
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    old.replace(new)
