"""The sparse output head: a cheap look at every row of the vocabulary, then the rows that matter.

The final hidden state is turned into its principal axes, of which the first few carry nearly all
that tells tokens apart. Scores from those alone are close to the logits, so that only the rows
whose score comes within a margin of the best one are worth computing in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..formats.packed import PackedModel
from ..kernels.cpu.layout import ROW_GROUP_BYTES
from ..kernels.oracle import quantize_activations, without_outliers
from ..quant import (
    GROUP,
    TILE,
    PackedMatrix,
    PlainMatrix,
    dequantize_plain,
    groups_of,
    pack,
    tiles_shape,
    unpack,
    unpack_plain,
)
from ..quant.rounding import quantize

_BLOCK_ROWS = 4096

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HeadLook:
    """What the engine needs to decode with a sparse head.

    `rotation` int8 [dims, d_model] turns the head's input into principal axes; `look` int4
    [vocab, dims] scores every row from them, all of them too high or too low by as much. A row is
    computed in full when its score is at least the mark less `margin`; of more than `limit` such
    rows the best are, and the whole head where not even that tells them apart. `rows` uint8
    [vocab, groups, 34] is the int8 head row by row, since rows of its tiles do not lie alone: a
    float16 scale and 32 bytes of quants + 128 for each group of 32 columns.

    The mark is halfway between the best score and the best logit among the rows that score within
    `layout.NEAR` of it, less what `mean` adds to all: int8 [1, d_model], the mean of the rows. The
    best of many scores is too high, by more the less the look tells; one logit is not. Without
    `mean` the mark is the best score.
    """

    rotation: PackedMatrix
    look: PackedMatrix
    rows: U8
    margin: float
    limit: int
    mean: PackedMatrix | None = None

    @property
    def dims(self) -> int:
        return self.rotation.rows


def head_of(model: PackedModel) -> PackedMatrix:
    """The matrix [vocab, d_model] that makes logits, shared with the embedding or not."""
    return model.matrix("embed" if model.config.tied_head else "head")


def limits(vocab: int) -> list[int]:
    """Numbers of rows to stop at that are tried, an eighth of them at most, at least a tile."""
    return sorted({max(TILE, vocab // part) for part in (8, 16)})


def blocks(matrix: PackedMatrix) -> Iterator[tuple[int, PackedMatrix]]:
    """Cut a matrix into blocks of rows: (first row, matrix of the block), views without copies."""
    for start in range(0, matrix.rows, _BLOCK_ROWS):
        rows = min(_BLOCK_ROWS, matrix.rows - start)
        tiles = slice(start // TILE, (start + rows + TILE - 1) // TILE)
        yield (
            start,
            replace(
                matrix,
                rows=rows,
                quants=matrix.quants[tiles],
                scales=matrix.scales[tiles],
                minima=None if matrix.minima is None else matrix.minima[tiles],
            ),
        )


def row_major(head: PackedMatrix) -> U8:
    """The rows of an int8 matrix one after the other, bit for bit: uint8 [rows, groups, 34]."""
    if head.kind != "int8":
        raise ValueError(f"{head.name} is {head.kind}, not int8")
    groups = groups_of(head.cols)
    rows = np.empty((head.rows, groups, ROW_GROUP_BYTES), np.uint8)
    for start, block in blocks(head):
        plain, part = unpack_plain(block), rows[start : start + block.rows]
        scales = np.ascontiguousarray(plain.scales, "<f2").view(np.uint8)
        part[:, :, :2] = scales.reshape(-1, groups, 2)
        part[:, :, 2:] = plain.quants.reshape(-1, groups, GROUP)
    return rows


def principal_axes(hidden: F32, count: int) -> F32:
    """The first `count` principal axes of hidden states [n, d], as float32 [count, d].

    Of the second moment about zero, not about the mean: a logit is a product with the state itself.
    """
    wide = hidden.astype(np.float64)
    _, vectors = np.linalg.eigh(wide.T @ wide)
    return np.ascontiguousarray(vectors[:, ::-1][:, :count].T, np.float32)


class Looks:
    """Looks of every number of dimensions up to `len(axes)`, which share one rounding.

    Groups of 32 columns are rounded alone, so that fewer dimensions are a cut of more. Adding the
    same to all rows changes no choice between them, so their mean is taken away, which leaves int4
    less to round.
    """

    def __init__(self, head: PackedMatrix, axes: F32, spread: F32) -> None:
        """`axes` float32 [dims, d_model], dims a multiple of 32; `spread` float32 [dims] how large
        hidden states are along them.
        """
        self._head = head
        # the root is between what makes the rows alike and what makes their products alike
        least = np.float32(1e-3 * float(spread.max()) or 1)
        weights: F32 = np.sqrt(np.maximum(spread, least))
        self._rotation = quantize(axes / weights[:, None], "int8")
        turned = np.empty((head.rows, len(axes)), np.float32)
        total = np.zeros(head.cols)
        for start, block in blocks(head):
            rows = unpack(block)
            turned[start : start + block.rows] = rows @ axes.T
            total += rows.sum(axis=0, dtype=np.float64)
        mean = (total / head.rows).astype(np.float32)
        self._mean = quantize(mean[None], "int8")
        turned -= mean @ axes.T
        self._look = quantize(turned * weights, "int4")

    def make(self, dims: int, margin: float, limit: int, rows: U8) -> HeadLook:
        """The look of the first `dims` axes; `rows` as `row_major` makes them."""
        rotation = PlainMatrix("int8", self._rotation.quants[:dims], self._rotation.scales[:dims])
        look = PlainMatrix(
            "int4", self._look.quants[:, :dims], self._look.scales[:, : dims // GROUP]
        )
        return HeadLook(
            pack(rotation, "head.rotation", self._head.cols),
            pack(look, "head.look"),
            rows,
            margin,
            limit,
            pack(self._mean, "head.mean", self._head.cols),
        )

    @cached_property
    def values(self) -> tuple[F32, F32]:
        """The rotation [dims, d_model] and the look [vocab, dims] as they are after rounding."""
        rotation = dequantize_plain(self._rotation)[:, : self._head.cols]
        return rotation, dequantize_plain(self._look)

    @cached_property
    def mean(self) -> F32:
        """The mean of the head's rows, float32 [d_model], as it is after rounding."""
        return np.ascontiguousarray(dequantize_plain(self._mean)[0, : self._head.cols])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the head computed in full."""
        return groups_of(self._head.cols) * ROW_GROUP_BYTES

    def nbytes(self, dims: int) -> int:
        """Bytes that every token reads for a look of `dims` dimensions."""
        shapes = (
            tiles_shape(dims, self._head.cols, "int8"),
            tiles_shape(self._head.rows, dims, "int4"),
        )
        return sum(math.prod(shape) for shape in shapes)


def rounded(x: F32, outliers: int = 0) -> F32:
    """Float32 [n, d] as the kernels see it: all but `outliers` rounded to int8 in groups of 32."""
    rest, columns, values = without_outliers(x, outliers)
    quants, scales, _ = quantize_activations(rest)
    whole = (quants * scales[..., None]).reshape(len(x), -1)[:, : x.shape[1]].astype(np.float32)
    whole[np.arange(len(x))[:, None], columns] += values
    return np.ascontiguousarray(whole)
