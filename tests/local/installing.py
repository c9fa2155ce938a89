"""Installed models as tests have them: tiny, with random weights."""

from __future__ import annotations

from pathlib import Path

from stem_local import store

from ..runtime.tiny import random_packed, tiny_config


def install(name: str, seed: int = 0) -> store.InstalledModel:
    """Install a model of that name; the same seed has the same weights."""

    def build(out: Path) -> None:
        random_packed(out, tiny_config(), seed)

    with store.locked(name):
        return store.install(name, build)
