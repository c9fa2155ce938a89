"""Products with single rows of an int8 head, which lie anywhere in a copy of it."""

from __future__ import annotations

from typing import Any

from . import layout as L
from .isa import Isa
from .outliers import QUANT_OFFSET, outlier_at
from .simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    V8F32,
    V8I32,
    V32I8,
    Builder,
    Value,
    const,
    counted_loop,
    fma,
    gather,
    half_to_float,
    kernel,
    load,
    offset,
    reduce_rows,
    splat,
    store,
    vec,
)
from .vector import fetch_lines

TOGETHER = 4
"""Rows that share a load of the input; a list of rows is read as many at a time."""

AHEAD = 32
"""By how many rows memory is asked for early: they lie anywhere, and no prefetcher finds them."""


def head_rows_kernel(isa: Isa) -> Any:
    """Intrinsic (base, listed, count, acts, groups, out): int8 rows by themselves.

    `listed` int32 [count] are rows of `base`, each groups of a float16 scale and 32 bytes (quant +
    128); `acts` the words of one token's activations. Row n's product goes to float32 n of `out`.
    """
    return kernel(lambda b, *args: _emit(b, isa, *args), 6)


def _emit(
    b: Builder,
    isa: Isa,
    base: Value,
    listed: Value,
    count: Value,
    acts: Value,
    groups: Value,
    out: Value,
) -> None:
    x, x_scales, x_bias, outliers, apart = (
        load(b, b.add(acts, const(I64, 8 * word)), I64)
        for word in (L.A_QUANTS, L.A_SCALES, L.A_BIAS, L.A_OUTLIERS, L.A_APART)
    )
    nbytes, last = b.mul(groups, const(I64, L.ROW_GROUP_BYTES)), b.sub(count, const(I64, 1))
    end = b.sub(nbytes, const(I64, 1))

    def row(index: Value) -> tuple[Value, Value]:
        """A row of the list, its last one for those behind it, and where that lies."""
        index = b.select(b.icmp_signed("<", index, last), index, last)
        number = b.zext(load(b, offset(b, listed, index, 4), I32), I64)
        return number, b.add(base, b.mul(number, nbytes))

    turns = b.ashr(b.add(count, const(I64, TOGETHER - 1)), const(I64, 2))
    with counted_loop(b, turns, []) as (turn, _, _):
        places = [b.add(b.shl(turn, const(I64, 2)), const(I64, i)) for i in range(TOGETHER)]
        numbers, rows = zip(*(row(place) for place in places), strict=True)
        ahead = [row(b.add(place, const(I64, AHEAD)))[1] for place in places]
        with counted_loop(b, groups, [const(V8F32, 0.0)] * TOGETHER) as (group, sofar, sums):
            for there in ahead:  # a row has fewer lines than groups, and starts within one
                line = b.shl(group, const(I64, 6))
                line = b.select(b.icmp_signed("<", line, end), line, end)
                fetch_lines(b, b.add(there, line), 64)
            scale = splat(b, load(b, offset(b, x_scales, group, 4), F32), 8)
            begin = const(V8I32, 0)
            if isa.bias8:  # -8 times the sum becomes -128 times, over 8 lanes
                bias = b.shl(load(b, offset(b, x_bias, group, 4), I32), const(I32, 1))
                begin = splat(b, bias, 8)
            inputs = load(b, offset(b, x, group, 32), V32I8)
            for place, acc in zip(rows, sofar, strict=True):
                here = offset(b, place, group, L.ROW_GROUP_BYTES)
                half = half_to_float(b, splat(b, load(b, here, I16), 8), isa.native_half)
                dot = isa.dot8(b, begin, load(b, b.add(here, const(I64, 2)), V32I8), inputs)
                sums.append(fma(b, b.sitofp(dot, V8F32), b.fmul(half, scale), acc))
        with counted_loop(b, apart, [reduce_rows(b, sums)]) as (rank, (total,), totals):
            column, value = outlier_at(b, offset(b, outliers, rank, L.OUTLIER_BYTES))
            weights = _weights(b, isa, list(rows), column)
            totals.append(b.fadd(total, b.fmul(weights, splat(b, value, TOGETHER))))
        for i, number in enumerate(numbers):
            store(b, b.extract_element(totals[0], const(I32, i)), offset(b, out, number, 4))


def _weights(b: Builder, isa: Isa, rows: list[Value], column: Value) -> Value:
    """One weight of each row, as float32."""
    words = vec(I32, len(rows))
    groups = [offset(b, row, b.lshr(column, const(I64, 5)), L.ROW_GROUP_BYTES) for row in rows]
    place = b.add(b.and_(column, const(I64, 31)), const(I64, 2))
    quants = b.zext(gather(b, [b.add(group, place) for group in groups], I8), words)
    quants = b.sub(quants, const(words, QUANT_OFFSET[L.INT8]))
    scales = half_to_float(b, gather(b, groups, I16), isa.native_half)
    return b.fmul(b.sitofp(quants, vec(F32, len(rows))), scales)
