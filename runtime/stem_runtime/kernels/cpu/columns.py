"""Products with single neurons' columns of the down projection, added to an output.

The layout is that of `sparsity/neurons.py`.
"""

from __future__ import annotations

from typing import Any

from . import layout as L
from .isa import Isa
from .simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    V16F32,
    Builder,
    Value,
    concat,
    const,
    counted_loop,
    fma,
    half_to_float,
    kernel,
    load,
    offset,
    pick,
    splat,
    store,
    vec,
)
from .vector import fetch_lines


def columns_kernel(isa: Isa, kind: int) -> Any:
    """Intrinsic (scales, columns, values, quads, acts, chunks, y, next_scales, next, next_quads).

    Adds some neurons of one group of 32 to y, float32 [64 * chunks]. `columns` int64 [4 * quads]
    are addresses, `values` int8 [4 * quads] the quantized hidden values, `acts` the words of the
    group's activations. Meanwhile the scales and columns of the next group are asked for: `next`
    are int64 [4 * next_quads].
    """
    return kernel(lambda b, *args: _emit_columns(b, isa, kind, *args), 10)


def _emit_columns(
    b: Builder,
    isa: Isa,
    kind: int,
    scales: Value,
    columns: Value,
    values: Value,
    quads: Value,
    acts: Value,
    chunks: Value,
    y: Value,
    next_scales: Value,
    next_columns: Value,
    next_quads: Value,
) -> None:
    scale, bias, sums = (
        load(b, b.add(acts, const(I64, 8 * word)), I64) for word in (L.A_SCALES, L.A_BIAS, L.A_SUMS)
    )
    minima = offset(b, scales, chunks, 128)
    factor = splat(b, load(b, scale, F32))
    total = splat(b, load(b, sums, F32)) if kind == L.INT4_MINIMA else None
    offsets = const(I32, 0)
    if kind == L.INT4:
        offsets = load(b, bias, I32)
    elif kind == L.INT8 and isa.bias8:
        offsets = b.shl(load(b, bias, I32), const(I32, 4))

    def fetch(quad: Value, at: Value) -> None:
        """One line of each of four columns of the next group."""
        for k in range(4):
            where = b.add(offset(b, next_columns, quad, 32), const(I64, 8 * k))
            fetch_lines(b, b.add(load(b, where, I64), at), 64)

    def chunk(outputs: int, at: Value, wide: int) -> None:
        """`wide` bytes of every column from byte `at` on; as many outputs, or twice as many."""
        per = 4 if kind == L.INT8 else 8
        start = [splat(b, offsets, wide // 4)] * per
        with counted_loop(b, quads, start) as (quad, accs, results):
            where = offset(b, columns, quad, 32)
            parts = [
                load(b, b.add(load(b, b.add(where, const(I64, 8 * k)), I64), at), vec(I8, wide))
                for k in range(4)
            ]
            value = load(b, offset(b, values, quad, 4), I32)
            for v, mixed in enumerate(_interleave(b, parts)):
                if kind == L.INT8:
                    results.append(isa.dot8(b, accs[v], mixed, value))
                    continue
                low = b.and_(mixed, const(mixed.type, 15))
                results.append(isa.dot4(b, accs[2 * v], low, value))
                high = b.lshr(mixed, const(mixed.type, 4))
                results.append(isa.dot4(b, accs[2 * v + 1], high, value))
        with counted_loop(b, next_quads, []) as (quad, _, _):
            fetch(quad, at)
        if wide < 64:
            results = [concat(b, [results[i], results[i + 1]]) for i in range(0, per, 2)]
        first = b.mul(at, const(I64, outputs))
        each = 2 * outputs * wide
        fetch_lines(b, offset(b, next_scales, first, 2), each)
        if kind == L.INT4_MINIMA:
            beyond = b.sub(minima, scales)
            fetch_lines(b, b.add(offset(b, next_scales, first, 2), beyond), each)
        for i, acc in enumerate(results):
            here = b.add(first, const(I64, 16 * i))
            half = half_to_float(
                b, load(b, offset(b, scales, here, 2), vec(I16, 16)), isa.native_half
            )
            target = offset(b, y, here, 4)
            sum_ = fma(b, b.sitofp(acc, V16F32), b.fmul(half, factor), load(b, target, V16F32))
            if total is not None:
                least = load(b, offset(b, minima, here, 2), vec(I16, 16))
                sum_ = fma(b, half_to_float(b, least, isa.native_half), total, sum_)
            store(b, sum_, target)

    if kind == L.INT8:
        with counted_loop(b, chunks, []) as (index, _, _):
            chunk(1, b.shl(index, const(I64, 6)), 64)
        return
    full = b.ashr(chunks, const(I64, 1))
    with counted_loop(b, full, []) as (index, _, _):
        chunk(2, b.shl(index, const(I64, 6)), 64)
    with counted_loop(b, b.and_(chunks, const(I64, 1)), []):
        chunk(2, b.shl(full, const(I64, 6)), 32)


def _interleave(b: Builder, parts: list[Value]) -> list[Value]:
    """Four vectors of bytes to four of which each lane has a byte of every one, as x86 unpacks."""
    count = parts[0].type.count

    def unpack(left: Value, right: Value, size: int, high: int) -> Value:
        mask = []
        for lane in range(0, count, 16):
            for unit in range(8 // size):
                begin = lane + 8 * high + size * unit
                mask += [begin + i for i in range(size)]
                mask += [count + begin + i for i in range(size)]
        return pick(b, left, right, mask)

    mixed = []
    for high in (0, 1):
        left, right = unpack(parts[0], parts[1], 1, high), unpack(parts[2], parts[3], 1, high)
        mixed += [unpack(left, right, 2, 0), unpack(left, right, 2, 1)]
    return mixed
