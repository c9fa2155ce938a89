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
    """Intrinsic (scales, listed, places, start, values, quads, acts, chunks, y, after, following,
    next_quads).

    Adds neurons of one group of 32 to y, float32 [64 * chunks]. `listed` int32 [4 * quads] are
    neurons, whose columns lie `start` bytes behind the addresses in `places`, int64 [neurons];
    `values` int8 [4 * quads] are the quantized hidden values, `acts` the words of the group's
    activations. Meanwhile the next group's scales at `after` are asked for, and its columns:
    `following` int32 [4 * next_quads] are neurons, too.
    """
    return kernel(lambda b, *args: _emit_columns(b, isa, kind, *args), 12)


def _emit_columns(
    b: Builder,
    isa: Isa,
    kind: int,
    scales: Value,
    listed: Value,
    places: Value,
    start: Value,
    values: Value,
    quads: Value,
    acts: Value,
    chunks: Value,
    y: Value,
    after: Value,
    following: Value,
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

    def columns_at(neurons: Value, quad: Value, at: Value) -> list[Value]:
        """Addresses of byte `at` of four columns."""
        here = offset(b, neurons, quad, 16)
        found = []
        for k in range(4):
            neuron = b.zext(load(b, b.add(here, const(I64, 4 * k)), I32), I64)
            found.append(b.add(load(b, offset(b, places, neuron, 8), I64), at))
        return found

    def chunk(outputs: int, at: Value, wide: int) -> None:
        """`wide` bytes of every column from byte `at` on; as many outputs, or twice as many."""
        per = 4 if kind == L.INT8 else 8
        place, begin = b.add(start, at), [splat(b, offsets, wide // 4)] * per
        with counted_loop(b, quads, begin) as (quad, accs, results):
            parts = [load(b, here, vec(I8, wide)) for here in columns_at(listed, quad, place)]
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
            for here in columns_at(following, quad, place):
                fetch_lines(b, here, 64)
        if wide < 64:
            results = [concat(b, [results[i], results[i + 1]]) for i in range(0, per, 2)]
        first = b.mul(at, const(I64, outputs))
        each = 2 * outputs * wide
        fetch_lines(b, offset(b, after, first, 2), each)
        if kind == L.INT4_MINIMA:
            beyond = b.sub(minima, scales)
            fetch_lines(b, b.add(offset(b, after, first, 2), beyond), each)
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
