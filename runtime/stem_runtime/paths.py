"""Where things live on this machine. `STEM_HOME` moves everything under one folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from .errors import UsageError

_APP = "stem-local"


def expand(path: str | Path) -> Path:
    """A path as people type it, where `~` is a home folder. Raises UsageError for one of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: it is not known where that home folder is.") from error


def _under_home(part: str) -> Path | None:
    home = os.environ.get("STEM_HOME")
    return expand(home) / part if home else None


def data_dir() -> Path:
    """Folder of installed models. Not created here."""
    return _under_home("data") or platformdirs.user_data_path(_APP, appauthor=False)


def cache_dir() -> Path:
    """Folder of things that can be made again, compiled kernels first. Not created here."""
    return _under_home("cache") or platformdirs.user_cache_path(_APP, appauthor=False)


def config_dir() -> Path:
    """Folder of the user's settings. Not created here."""
    return _under_home("config") or platformdirs.user_config_path(_APP, appauthor=False)
