"""The packed layout: groups of 32 weights along a row, 16 rows interleaved.

A tile is 16 rows and a group is 32 columns. All that a (tile, group) needs lies together, so that
a product reads one stream of memory: 16 float16 scales, for int4m 16 float16 minima, and chunks of
64 bytes that hold four bytes for each of the 16 rows, so that a vector register of 16 lanes
accumulates 16 outputs at once:

- int4, quants [tiles, groups, 4, 64]: byte 4r+i of chunk c has column 8c+i of row r in its low
  nibble and column 8c+4+i in its high nibble. value = scale * (n - 8), or with minima
  scale * n + minimum.
- int8, quants [tiles, groups, 8, 64]: byte 4r+i of chunk c is column 4c+i of row r, plus 128.
  value = scale * (u - 128).

scales and minima are [tiles, groups, 16]; rows and groups that are only padding have zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..kernels.cpu import layout as kernel_layout

TILE = 16
GROUP = 32

Kind = Literal["int4", "int4m", "int8"]
CHUNKS: dict[Kind, int] = {"int4": 4, "int4m": 4, "int8": 8}
"""Chunks of 64 bytes in one (tile, group)."""

GROUP_BYTES: dict[Kind, int] = {
    "int4": kernel_layout.GROUP_BYTES[kernel_layout.INT4],
    "int4m": kernel_layout.GROUP_BYTES[kernel_layout.INT4_MINIMA],
    "int8": kernel_layout.GROUP_BYTES[kernel_layout.INT8],
}
"""Bytes of one (tile, group): scales, minima where there are any, quants."""

ZERO_QUANT: dict[Kind, int] = {"int4": 8, "int4m": 0, "int8": 128}
"""The stored quant that padding columns get."""

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class PlainMatrix:
    """Quantized rows in reading order, before interleaving.

    `quants` uint8 [rows, 32 * groups]: 0..15 for the int4 kinds, quant + 128 for int8.
    `scales` and `minima` float16 [rows, groups]; minima only for int4m.
    """

    kind: Kind
    quants: U8
    scales: F16
    minima: F16 | None = None


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """An interleaved matrix of (rows, cols); the arrays are as the module docstring describes.

    They are views into `tiles`, uint8 [tiles, groups, GROUP_BYTES[kind]]: its rows of groups may
    lie apart, the groups of a tile never.
    """

    name: str
    rows: int
    cols: int
    kind: Kind
    quants: U8
    scales: F16
    minima: F16 | None = None

    @classmethod
    def of_tiles(cls, name: str, rows: int, cols: int, kind: Kind, tiles: U8) -> PackedMatrix:
        """The matrix whose bytes are `tiles`."""
        head = GROUP_BYTES[kind] - 64 * CHUNKS[kind]
        return cls(
            name,
            rows,
            cols,
            kind,
            tiles[:, :, head:].reshape(*tiles.shape[:2], CHUNKS[kind], 64),
            tiles[:, :, :32].view("<f2"),
            tiles[:, :, 32:64].view("<f2") if kind == "int4m" else None,
        )

    def joined(self) -> U8:
        """A copy of the matrix's bytes, uint8 [tiles, groups, GROUP_BYTES[kind]]."""
        shape = self.scales.shape[:2]
        parts = (
            [self.scales, self.quants]
            if self.minima is None
            else [
                self.scales,
                self.minima,
                self.quants,
            ]
        )
        flat = [np.ascontiguousarray(part).view(np.uint8).reshape(*shape, -1) for part in parts]
        return np.concatenate(flat, axis=2)

    @property
    def nbytes(self) -> int:
        minima = 0 if self.minima is None else self.minima.nbytes
        return self.quants.nbytes + self.scales.nbytes + minima


def tiles_of(rows: int) -> int:
    return -(-rows // TILE)


def groups_of(cols: int) -> int:
    return -(-cols // GROUP)


def tiles_shape(rows: int, cols: int, kind: Kind) -> tuple[int, int, int]:
    """Shape of the bytes that hold a matrix of (rows, cols)."""
    return tiles_of(rows), groups_of(cols), GROUP_BYTES[kind]


def pack(plain: PlainMatrix, name: str = "", cols: int | None = None) -> PackedMatrix:
    """Interleave `plain`; `cols` is the true width where the last group is partly padding."""
    rows, width = plain.quants.shape
    if width % GROUP or plain.scales.shape != (rows, width // GROUP):
        raise ValueError(f"quants {plain.quants.shape} and scales {plain.scales.shape} disagree")
    quants = _pad_rows(plain.quants, ZERO_QUANT[plain.kind])
    words = np.ascontiguousarray(quants).view(np.uint32)
    if plain.kind != "int8":
        pairs = words.reshape(-1, 2)
        words = pairs[:, 0] | (pairs[:, 1] << np.uint32(4))
    groups = width // GROUP
    lanes = words.reshape(-1, TILE, groups * CHUNKS[plain.kind])
    tiles = np.empty((len(lanes), groups, GROUP_BYTES[plain.kind]), np.uint8)
    matrix = PackedMatrix.of_tiles(name, rows, cols or width, plain.kind, tiles)
    chunks = np.ascontiguousarray(lanes.transpose(0, 2, 1)).view(np.uint8)
    matrix.quants[:] = chunks.reshape(matrix.quants.shape)
    matrix.scales[:] = _interleave(plain.scales)
    if matrix.minima is not None and plain.minima is not None:
        matrix.minima[:] = _interleave(plain.minima)
    return matrix


def pack_int4(quants: U8, scales: F16, minima: F16 | None = None, name: str = "") -> PackedMatrix:
    """Interleave nibbles uint8 [rows, 32 * groups] with float16 [rows, groups] scales, minima."""
    kind: Kind = "int4" if minima is None else "int4m"
    return pack(PlainMatrix(kind, quants, scales, minima), name)


def pack_int8(quants: NDArray[np.int8], scales: F16, name: str = "") -> PackedMatrix:
    """Interleave int8 [rows, 32 * groups] with float16 [rows, groups] scales."""
    return pack(PlainMatrix("int8", quants.view(np.uint8) ^ np.uint8(128), scales), name)


def unpack_plain(matrix: PackedMatrix) -> PlainMatrix:
    """The inverse of `pack`: rows in reading order, padding rows gone, padding columns kept."""
    tiles, groups = matrix.quants.shape[:2]
    lanes = np.ascontiguousarray(matrix.quants).view(np.uint32)
    lanes = lanes.reshape(tiles, groups * CHUNKS[matrix.kind], TILE)
    words = np.ascontiguousarray(lanes.transpose(0, 2, 1)).view(np.uint8)
    if matrix.kind == "int8":
        quants = words
    else:
        quads = words.view(np.uint32).reshape(-1, 1)
        low = np.uint32(0x0F0F0F0F)
        quants = np.concatenate([quads & low, (quads >> np.uint32(4)) & low], axis=1).view(np.uint8)
    return PlainMatrix(
        matrix.kind,
        quants.reshape(tiles * TILE, groups * GROUP)[: matrix.rows],
        _deinterleave(matrix.scales, matrix.rows),
        None if matrix.minima is None else _deinterleave(matrix.minima, matrix.rows),
    )


def dequantize_plain(plain: PlainMatrix) -> F32:
    """float32 [rows, 32 * groups]. With minima a product and a sum, each rounded to float32."""
    rows, width = plain.quants.shape
    grouped = plain.quants.reshape(rows, width // GROUP, GROUP).astype(np.float32)
    if plain.kind != "int4m":
        grouped -= ZERO_QUANT[plain.kind]
    grouped *= plain.scales[:, :, None].astype(np.float32)
    if plain.minima is not None:
        grouped += plain.minima[:, :, None].astype(np.float32)
    return grouped.reshape(rows, width)


def unpack(matrix: PackedMatrix) -> F32:
    """Dequantize to float32 [rows, cols]."""
    return dequantize_plain(unpack_plain(matrix))[:, : matrix.cols]


def _pad_rows(array: NDArray[T], value: int) -> NDArray[T]:
    missing = -array.shape[0] % TILE
    if not missing:
        return array
    filler = np.full((missing, array.shape[1]), value, array.dtype)
    return np.concatenate([array, filler])


def _interleave(values: F16) -> F16:
    padded = _pad_rows(values, 0).reshape(-1, TILE, values.shape[1])
    return np.ascontiguousarray(padded.transpose(0, 2, 1)).astype(np.float16, copy=False)


def _deinterleave(values: F16, rows: int) -> F16:
    groups = values.shape[1]
    return np.ascontiguousarray(values.transpose(0, 2, 1)).reshape(-1, groups)[:rows]
