"""Bounded reading of JSON files and of safetensors headers that may be damaged or hostile."""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError

DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per element of the safetensors dtypes that a header may hold."""

_MAX_HEADER = 100_000_000  # the bound that the safetensors format itself sets
_MAX_TEXT = 64_000_000
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors file; `start` and `nbytes` count from the file's first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file read-only. Raises FormatError where it is missing, empty or unreadable."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise FormatError(f"{path}: the file is empty; fetch it again.") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}).") from None


def load_file(path: Path) -> mmap.mmap:
    """A whole file as `map_file` gives it, in memory that is not bound to it."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(-1, os.fstat(file.fileno()).st_size)
            file.readinto(data)
            return data
    except ValueError:
        raise FormatError(f"{path}: the file is empty; fetch it again.") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}).") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 file of at most 64 MB. Raises FormatError naming the file."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_TEXT + 1)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if len(text) > _MAX_TEXT:
        raise FormatError(f"{path}: larger than the {_MAX_TEXT} bytes that are read as text.")
    try:
        return text.decode("utf-8-sig")  # editors on Windows begin a file with a mark
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not UTF-8 text.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 64 MB. Raises FormatError naming the file."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object without repeated keys. Raises FormatError with `where` in front."""
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        # of a number of thousands of digits Python also says which of its functions to call
        reason = str(error).partition(";")[0]
        raise FormatError(f"{where}: not valid JSON ({reason:.120}).") from None
    if not isinstance(data, dict):
        raise FormatError(f"{where}: should hold a JSON object, found {type(data).__name__}.")
    return data


def read_header(data: mmap.mmap, where: str) -> dict[str, TensorEntry]:
    """Read and check the tensor table of a mapped safetensors file, in file order.

    Every tensor lies within the file, has the size that its dtype and shape ask for, and shares
    no byte with another. Raises FormatError otherwise.
    """
    table, size = _table(data, where)
    table.pop(_METADATA, None)
    entries = {
        name: _entry(name, value, 8 + size, len(data), where) for name, value in table.items()
    }
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    end = 8 + size
    for name, entry in ordered.items():
        if entry.start < end:
            raise FormatError(f"{where}: tensor {name!r} overlaps the one before it.")
        end = entry.start + entry.nbytes
    return ordered


def read_metadata(data: mmap.mmap, where: str) -> dict[str, Any]:
    """What a mapped safetensors file says besides its tensors. Raises FormatError."""
    found = _table(data, where)[0].get(_METADATA, {})
    return found if isinstance(found, dict) else {}


def view(data: mmap.mmap, entry: TensorEntry, dtype: str) -> NDArray[Any]:
    """A read-only array over the mapped bytes, as `dtype` (a NumPy code) and the entry's shape."""
    raw = np.frombuffer(data, np.uint8, entry.nbytes, entry.start)
    raw.flags.writeable = False
    return raw.view(dtype).reshape(entry.shape)


def _table(data: mmap.mmap, where: str) -> tuple[dict[str, Any], int]:
    """The header as it stands, and its size in bytes."""
    if len(data) < 8:
        raise FormatError(f"{where}: {len(data)} bytes are too few for a safetensors file.")
    size = int.from_bytes(data[:8], "little")
    if size > min(_MAX_HEADER, len(data) - 8):
        raise FormatError(
            f"{where}: the header claims {size} bytes of a {len(data)} byte file; "
            "it is truncated or not safetensors."
        )
    return parse_json(data[8 : 8 + size], f"{where}: header"), size


def _entry(name: str, value: Any, base: int, total: int, where: str) -> TensorEntry:
    field = f"{where}: tensor {name[:80]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{field} should have dtype, shape and data_offsets.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{field} has the unknown dtype {dtype!r:.40}.")
    if not _are_sizes(shape) or len(shape) > 8:
        raise FormatError(f"{field} has the impossible shape {shape!r:.60}.")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{field} has impossible data_offsets {offsets!r:.60}.")
    nbytes = offsets[1] - offsets[0]
    if base + offsets[1] > total:
        raise FormatError(
            f"{field} ends at byte {base + offsets[1]} of a {total} byte file; "
            "the file is truncated, fetch it again."
        )
    if nbytes != math.prod(shape) * DTYPES[dtype]:
        raise FormatError(f"{field} of {dtype} {shape} cannot take {nbytes} bytes.")
    return TensorEntry(dtype, tuple(shape), base + offsets[0], nbytes)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**48 for v in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    return table
