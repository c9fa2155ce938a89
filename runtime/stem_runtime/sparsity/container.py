"""The profile's file: a safetensors file of aligned tensors, one of them a table of settings."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..formats.header import (
    TensorEntry,
    load_file,
    map_file,
    parse_json,
    read_header,
    read_metadata,
    view,
)
from ..formats.packed import ALIGNMENT, PARTIAL
from ..quant import GROUP_BYTES, Kind, PackedMatrix, tiles_shape
from ..renaming import rename

TABLE = "profile.json"

MAX_TEXT = 200
"""Longest string of a table."""

_MAX_TABLE = 1 << 22
_MAPS = os.name != "nt"  # Windows replaces no file that is mapped, as one of a model in use is
_DTYPES = {"U8": "u1", "F32": "<f4", "I32": "<i4", "U32": "<u4"}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Container:
    """A profile's file, mapped into memory and checked as it is read. `table` is its settings.

    What was learned is compared with its checksums. Copies of weights are as long as these, which
    nobody reads at a start either: of them no byte is touched unless `whole` asks for it. Windows
    alone reads all of the file into memory.
    """

    path: Path
    table: dict[str, Any]
    whole: bool
    _data: Any
    _entries: dict[str, TensorEntry]
    _checksums: dict[str, Any]

    @classmethod
    def open(cls, path: Path, *, whole: bool = False) -> Self:
        """Raises FormatError for a file that is damaged or has no table."""
        data = map_file(path) if _MAPS else load_file(path)
        entries, checksums = read_header(data, str(path)), read_metadata(data, str(path))
        entry = entries.get(TABLE)
        if entry is None or entry.dtype != "U8" or entry.nbytes > _MAX_TABLE:
            raise FormatError(f"{path}: the table of settings is missing or too large.")
        file = cls(path, {}, whole, data, entries, checksums)
        text = file.array(TABLE, "U8", entry.shape).tobytes()
        return dataclasses.replace(file, table=parse_json(text, f"{path}: {TABLE}"))

    def has(self, name: str) -> bool:
        return name in self._entries

    def length(self, name: str) -> int:
        """A tensor's rows, 0 where there is none."""
        entry = self._entries.get(name)
        return entry.shape[0] if entry is not None and entry.shape else 0

    def array(
        self, name: str, dtype: str, shape: tuple[int, ...], *, copied: bool = False
    ) -> NDArray[Any]:
        """A read-only tensor of a known dtype (U8, U32, I32, F32) and shape; floats are finite.

        `copied` says that it holds a model's weights once more.
        """
        entry = self._entries.get(name)
        if entry is None or (entry.dtype, entry.shape) != (dtype, shape) or entry.start % ALIGNMENT:
            raise self.error(f"tensor {name!r} is not {dtype} {shape}")
        found = view(self._data, entry, _DTYPES[dtype])
        if (self.whole or not copied) and self._checksums.get(name) != _checksum(found):
            raise self.error(f"the bytes of tensor {name!r} are not those that were written")
        if dtype == "F32" and not np.isfinite(found).all():
            raise self.error(f"tensor {name!r} holds what is no number")
        return found

    def width(
        self, name: str, dtype: str, rows: int, most: int, *, copied: bool = False
    ) -> NDArray[Any]:
        """Like `array` for a tensor [rows, n] whose n is at most `most`."""
        entry = self._entries.get(name)
        if entry is None or len(entry.shape) != 2 or entry.shape[1] > most:
            raise self.error(f"tensor {name!r} is missing or too wide")
        return self.array(name, dtype, (rows, entry.shape[1]), copied=copied)

    def matrix(
        self,
        name: str,
        rows: int,
        cols: int,
        kinds: Sequence[Kind] = ("int8",),
        *,
        copied: bool = False,
    ) -> PackedMatrix:
        """A quantized matrix, of that of `kinds` which its bytes tell."""
        entry = self._entries.get(name)
        size = entry.shape[-1] if entry is not None and entry.shape else 0
        kind = next((kind for kind in kinds if GROUP_BYTES[kind] == size), None)
        if kind is None:
            raise self.error(f"tensor {name!r} is missing or not {' or '.join(kinds)}")
        tiles = self.array(name, "U8", tiles_shape(rows, cols, kind), copied=copied)
        found = PackedMatrix.of_tiles(name, rows, cols, kind, tiles)
        halves = (found.scales,) if found.minima is None else (found.scales, found.minima)
        if (self.whole or not copied) and not all(np.isfinite(part).all() for part in halves):
            raise self.error(f"tensor {name!r} has scales that are no numbers")
        return found

    def settings(self, kind: type[T], values: Any) -> T:
        """A flat dataclass of strings and numbers of at least 0, from the table."""
        kinds = {field.name: str(field.type) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        if not isinstance(values, dict) or set(values) != set(kinds):
            raise self.error(f"the table has not the fields of a {kind.__name__}")
        for name, value in values.items():
            self._check(name, kinds[name], value)
        return kind(**values)

    def error(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: {what}; calibrate the model again.")

    def _check(self, name: str, kind: str, value: Any) -> None:
        if kind == "str":
            fits = isinstance(value, str) and len(value) <= MAX_TEXT
        else:
            number = type(value) is int or (kind != "int" and type(value) is float)
            least = -1 if name == "perplexity_change" else 0
            fits = number and least <= value < 2**53 and math.isfinite(value)
        if not fits:
            raise self.error(f"{name} cannot be {value!r:.40}")


def write_container(path: Path, table: dict[str, Any], arrays: Arrays) -> None:
    """Write a profile's file, whole or not at all."""
    text = json.dumps(table, allow_nan=False).encode()
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            for part in laid_out({TABLE: np.frombuffer(text, np.uint8), **arrays}):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def laid_out(arrays: Arrays) -> list[bytes | memoryview]:
    """The parts of a safetensors file whose tensors start at multiples of 64 bytes.

    Their checksums are its metadata.
    """
    table: dict[str, Any] = {}
    checksums: dict[str, str] = {}
    parts: list[bytes | memoryview] = []
    end = 0
    for name, array in arrays.items():
        if gap := -end % ALIGNMENT:
            table[f"pad.{len(table)}"] = _entry("U8", (gap,), end, gap)
            parts.append(bytes(gap))
            end += gap
        table[name] = _entry(_NAMES[array.dtype], array.shape, end, array.nbytes)
        solid = np.ascontiguousarray(array)
        checksums[name] = _checksum(solid)
        parts.append(solid.data)
        end += array.nbytes
    text = json.dumps({"__metadata__": checksums, **table}).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return [len(text).to_bytes(8, "little"), text, *parts]


def _checksum(array: NDArray[Any]) -> str:
    """The CRC-32 of an array's bytes."""
    return f"{zlib.crc32(array.reshape(-1).view(np.uint8).data):08x}"


def _entry(dtype: str, shape: tuple[int, ...], start: int, nbytes: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + nbytes]}
