"""Typed, bounded reads from the settings that come with a model file (never trusted)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import FormatError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Fields:
    """One table of settings: a `config.json` object or the metadata of a GGUF file.

    `where` names the file and `prefix` is put before every name, so that errors give the
    key as it stands in the file. A field that is null counts as absent.
    """

    data: Mapping[str, Any]
    where: str
    prefix: str = ""

    def __contains__(self, name: str) -> bool:
        return self.data.get(self.prefix + name) is not None

    def raw(self, name: str) -> Any:
        return self.data.get(self.prefix + name)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An int within [low, high]. Raises FormatError; UnsupportedError for one per layer."""
        value = self._present(name, default)
        if isinstance(value, list):
            self.refuse(name, "one value for all layers")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.damaged(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number within [low, high]. Raises FormatError."""
        value = self._present(name, default)
        # An int too large for a float is out of any range we ask for: compare before converting.
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high or not math.isfinite(value):
            self.damaged(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._present(name, default)
        if not isinstance(value, bool):
            self.damaged(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._present(name, default)
        if not isinstance(value, str):
            self.damaged(name, "a string")
        return value

    def table(self, name: str) -> Fields | None:
        """A nested object, None where it is absent or empty."""
        value = self.raw(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            self.damaged(name, "an object")
        inner = f"{self.prefix}{name}."
        return Fields({f"{inner}{key}": v for key, v in value.items()}, self.where, inner)

    def accept(self, name: str, accepted: Collection[object], supported: str) -> None:
        """Refuse the file unless the field is absent or has one of the `accepted` values."""
        if name in self and self.raw(name) not in accepted:
            self.refuse(name, supported)

    def refuse(self, name: str, supported: str) -> NoReturn:
        raise UnsupportedError(
            f"{self.where}: {self.prefix}{name} is {self.raw(name)!r:.80}, which this version "
            f"cannot run; supported: {supported}."
        )

    def damaged(self, name: str, expected: str) -> NoReturn:
        found = f"found {self.raw(name)!r:.80}" if name in self else "but it is missing"
        raise FormatError(
            f"{self.where}: {self.prefix}{name} should be {expected}, {found}; "
            "get the file again from its source."
        )

    def _present(self, name: str, default: Any) -> Any:
        value = self.raw(name)
        return default if value is None else value
