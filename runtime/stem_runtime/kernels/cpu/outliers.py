"""Elements of an input that stay floats: where they are kept, and the weights they multiply."""

from __future__ import annotations

from . import layout as L
from .simd import (
    F32,
    I32,
    I64,
    Builder,
    Value,
    const,
    ir,
    load,
    offset,
    splat,
)

QUANT_OFFSET = (8, 0, 128)
"""What is added to quants as they are stored, by kind."""


def outlier_at(b: Builder, address: Value) -> tuple[Value, Value]:
    """Column (int64) and value (float32) of one of them."""
    return b.zext(load(b, address, I32), I64), load(b, b.add(address, const(I64, 4)), F32)


def first_quant(kind: int) -> int:
    """Bytes of a (tile, group) before its quants."""
    return L.GROUP_BYTES[kind] - (512 if kind == L.INT8 else 256)


def column_of_tile(
    b: Builder, kind: int, group: Value, column: Value, first: int, rows: int
) -> Value:
    """Quants of one column of a tile's rows from `first` on, int32, their offset removed.

    `group` is the address of the (tile, group) that the column is in.
    """
    chunk, shift = b.and_(b.lshr(column, const(I64, 2)), const(I64, 7)), const(I64, 0)
    if kind != L.INT8:  # two chunks share bytes
        shift = b.shl(b.and_(chunk, const(I64, 1)), const(I64, 2))
        chunk = b.lshr(chunk, const(I64, 1))
    shift = b.add(shift, b.shl(b.and_(column, const(I64, 3)), const(I64, 3)))
    words, start = ir.VectorType(I32, rows), first_quant(kind) + 4 * first
    packed = load(b, b.add(offset(b, group, chunk, 64), const(I64, start)), words)
    shifted = b.lshr(packed, splat(b, b.trunc(shift, I32), rows))
    quants = b.and_(shifted, const(words, 255 if kind == L.INT8 else 15))
    return b.sub(quants, const(words, QUANT_OFFSET[kind]))
