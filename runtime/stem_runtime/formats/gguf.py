"""Reading GGUF files, versions 2 and 3, without trusting a single count or offset in them.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is mapped; only the
header is read. Everything that a damaged or hostile header could inflate has a bound.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..quant.ggml import BLOCKS, BlockType
from .header import map_file
from .raw import RawTensor

_MAX_STRING = 1 << 24  # chat templates are the longest; real ones stay under 100 KB
_MAX_KEY = 1 << 16
_MAX_ITEMS = (
    1 << 22
)  # in all arrays together; a vocabulary of 262,144 with merges takes 1.3 million
_MAX_ENTRIES = 1 << 16  # metadata keys, and tensors
_MAX_HEADER = 1 << 28  # bytes; the largest vocabularies take under 16 MB

_TENSOR_TYPES: dict[int, BlockType] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16",
}  # fmt: skip

_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufFile:
    """`metadata` as plain Python values and lists; tensors by name, over the mapped file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, RawTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file and map its tensors.

    Raises FormatError for a damaged file and UnsupportedError for a version, byte order, tensor
    type or split that is not supported.
    """
    cursor = _Cursor(map_file(path), str(path))
    tensor_count, key_count = _preamble(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text("metadata key", _MAX_KEY)
        if key in metadata:
            raise cursor.damaged(f"metadata key {key!r:.80} appears twice")
        metadata[key] = cursor.value(key)
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedError(
            f"{path}: this is one part of a split model (split.count); "
            "merge the parts with llama.cpp's gguf-split --merge first."
        )
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in {1 << n for n in range(3, 17)}:
        raise cursor.damaged(f"general.alignment {alignment!r:.40} is not a power of two from 8")
    entries = [cursor.tensor() for _ in range(tensor_count)]
    base = -(-cursor.at // alignment) * alignment
    return GgufFile(path, metadata, _place(cursor, entries, base, alignment))


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    if cursor.take(4, "magic") != b"GGUF":
        raise cursor.damaged("it does not start with GGUF, so it is not a GGUF file")
    version = cursor.number("<u4", "version")
    if version not in (2, 3):
        what = f"GGUF version {version}"
        if version & 0xFFFF == 0:
            what = "a big-endian GGUF file"
        raise UnsupportedError(
            f"{cursor.where}: {what} is not supported; versions 2 and 3, little-endian, are."
        )
    counts = cursor.number("<u8", "tensor_count"), cursor.number("<u8", "metadata_kv_count")
    if max(counts) > _MAX_ENTRIES:
        raise cursor.damaged(f"it claims {counts[0]} tensors and {counts[1]} metadata keys")
    return counts


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    kind: BlockType
    shape: tuple[int, ...]
    offset: int
    row_bytes: int
    rows: int


@dataclass(slots=True)
class _Cursor:
    """Reads forward through the header; every read checks the end of the file first."""

    data: mmap.mmap
    where: str
    at: int = 0
    items: int = 0

    def damaged(self, what: str) -> FormatError:
        return FormatError(f"{self.where}: {what}; fetch the file again.")

    def take(self, size: int, field: str) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise self.damaged(f"the file ends inside {field}, at byte {len(self.data)}")
        if end > _MAX_HEADER:
            raise self.damaged(f"the header is still going on at {field}, at byte {end}")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, code: str, field: str) -> Any:
        dtype = np.dtype(code)
        return np.frombuffer(self.take(dtype.itemsize, field), dtype)[0].item()

    def text(self, field: str, limit: int) -> str:
        (size,) = struct.unpack("<Q", self.take(8, field))
        if size > limit:
            raise self.damaged(f"{field} claims a string of {size} bytes")
        try:
            return self.take(size, field).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{field} is not valid UTF-8") from None

    def value(self, key: str) -> Any:
        field = f"metadata {key[:80]!r}"
        return self._typed(self.number("<u4", field), field)

    def _typed(self, code: int, field: str) -> Any:
        if code == _STRING:
            return self.text(field, _MAX_STRING)
        if code == _ARRAY:
            return self._array(field)
        if code not in _SCALARS:
            raise self.damaged(f"{field} has the unknown value type {code}")
        return self.number(_SCALARS[code], field)

    def _array(self, field: str) -> list[Any]:
        code, count = struct.unpack("<IQ", self.take(12, field))
        self.items += count
        if self.items > _MAX_ITEMS:
            raise self.damaged(f"{field} claims {count} items, more than any known model has")
        if code == _STRING:
            return [self.text(field, _MAX_STRING) for _ in range(count)]
        if code not in _SCALARS:
            raise UnsupportedError(
                f"{self.where}: {field} is an array of value type {code}; "
                "arrays of numbers, booleans and strings are supported."
            )
        dtype = np.dtype(_SCALARS[code])
        values: list[Any] = np.frombuffer(self.take(count * dtype.itemsize, field), dtype).tolist()
        return values

    def tensor(self) -> _Entry:
        name = self.text("a tensor name", _MAX_KEY)
        field = f"tensor {name[:80]!r}"
        dimensions = self.number("<u4", field)
        if dimensions > 4:
            raise self.damaged(f"{field} claims {dimensions} dimensions; GGUF has at most 4")
        dims = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions, field))
        code, offset = struct.unpack("<IQ", self.take(12, field))
        if code not in _TENSOR_TYPES:
            raise UnsupportedError(
                f"{self.where}: {field} has the tensor type {code}; "
                f"supported are {', '.join(BLOCKS)}."
            )
        kind = _TENSOR_TYPES[code]
        elements, size = BLOCKS[kind]
        width, *outer = dims or (1,)
        rows = 1
        for dim in outer:
            rows *= dim
        if not 0 < width < 2**40 or not 0 < rows < 2**40 or width % elements:
            raise self.damaged(f"{field} of {kind} has the impossible dimensions {dims}")
        return _Entry(name, kind, dims[::-1], offset, width // elements * size, rows)


def _place(
    cursor: _Cursor, entries: list[_Entry], base: int, alignment: int
) -> dict[str, RawTensor]:
    """Map each tensor once all are known to lie in the file, aligned, apart and named once."""
    tensors: dict[str, RawTensor] = {}
    end = base
    for entry in sorted(entries, key=lambda entry: entry.offset):
        field = f"tensor {entry.name[:80]!r}"
        start, size = base + entry.offset, entry.rows * entry.row_bytes
        if entry.offset % alignment:
            raise cursor.damaged(f"{field} is not aligned to {alignment} bytes")
        if start < end:
            raise cursor.damaged(f"{field} overlaps the one before it")
        end = start + size
        if end > len(cursor.data):
            raise cursor.damaged(
                f"{field} ends at byte {end} of a file of {len(cursor.data)}, so it is truncated"
            )
        if entry.name in tensors:
            raise cursor.damaged(f"{field} appears twice")
        raw = np.frombuffer(cursor.data, np.uint8, size, start)
        rows = raw.reshape(entry.rows, entry.row_bytes)
        tensors[entry.name] = RawTensor(entry.name, entry.kind, entry.shape, rows)
    return tensors
