"""Where things live on this machine. `STEM_HOME` moves everything under one folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

_APP = "stem-local"


def _under_home(part: str) -> Path | None:
    home = os.environ.get("STEM_HOME")
    return Path(home).expanduser() / part if home else None


def data_dir() -> Path:
    """Folder of installed models. Not created here."""
    return _under_home("data") or platformdirs.user_data_path(_APP, appauthor=False)


def cache_dir() -> Path:
    """Folder of things that can be made again, compiled kernels first. Not created here."""
    return _under_home("cache") or platformdirs.user_cache_path(_APP, appauthor=False)


def config_dir() -> Path:
    """Folder of the user's settings. Not created here."""
    return _under_home("config") or platformdirs.user_config_path(_APP, appauthor=False)
