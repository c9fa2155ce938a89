"""The files that the screens' looks are compared with."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

from .conftest import THEMES


def test_every_file_is_compared_with() -> None:
    """Syrupy tells of files left behind only where one process runs every test."""
    for path in (Path(__file__).parent / "__snapshots__").glob("*/*"):
        test, _, theme = path.stem.partition("[")
        module = import_module(f"{__package__}.{path.parent.name}")
        assert "snap_compare" in inspect.signature(getattr(module, test)).parameters, path
        assert theme.removesuffix("]") in THEMES, path
