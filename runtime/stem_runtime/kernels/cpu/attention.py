"""Attention over the fp16 cache: scores by blocks of 16 positions, values row by row.

Keys lie transposed in blocks of 16 positions, [block, head_dim, 16], so that a score needs no sum
across lanes; values are rows [position, head_dim]. Several query rows (the heads that share a
key head, and in prefill several tokens) use each load.
"""

from __future__ import annotations

from typing import Any

from .simd import (
    F32,
    I32,
    I64,
    V16F32,
    V16I16,
    Builder,
    Value,
    const,
    counted_loop,
    exp,
    fabs,
    fma,
    half_to_float,
    kernel,
    load,
    offset,
    splat,
    store,
)
from .vector import FETCH_AHEAD, fetch_lines


def score_kernel(rows: int, native_half: bool) -> Any:
    """Intrinsic (q, q_stride, keys, head_dim, out, out_stride).

    q: `rows` float32 vectors, strides in bytes; keys: one block, float16 [head_dim, 16]; writes
    16 scores per row. head_dim is a multiple of 16.
    """
    # two sums hide some of an addition's latency; their number is the same for all `rows`, so that
    # a query's scores are the same bits in whatever company it comes
    unroll = 2

    def emit(
        b: Builder, q: Value, stride: Value, keys: Value, dim: Value, out: Value, out_stride: Value
    ) -> None:
        starts = [b.add(q, b.mul(stride, const(I64, row))) for row in range(rows)]
        zeros = [const(V16F32, 0.0)] * (rows * unroll)
        steps = b.sdiv(dim, const(I64, unroll))
        with counted_loop(b, steps, zeros) as (i, accs, results):
            for part in range(unroll):
                d = b.add(b.mul(i, const(I64, unroll)), const(I64, part))
                place = offset(b, keys, d, 32)
                if part == 0:
                    fetch_lines(b, b.add(place, const(I64, FETCH_AHEAD)), 64)
                key = half_to_float(b, load(b, place, V16I16), native_half)
                for row in range(rows):
                    value = splat(b, load(b, offset(b, starts[row], d, 4), F32))
                    results.append(fma(b, value, key, accs[part * rows + row]))
        for row in range(rows):
            sums = results[row::rows]
            while len(sums) > 1:
                sums = [b.fadd(x, y) for x, y in zip(sums[::2], sums[1::2], strict=True)]
            store(b, sums[0], b.add(out, b.mul(out_stride, const(I64, row))))

    return kernel(emit, 6)


def value_kernel(rows: int, vectors: int, native_half: bool) -> Any:
    """Intrinsic (p, p_stride, values, v_stride, positions, acc, acc_stride).

    acc[row, :16*vectors] += sum over positions of p[row, position] * values[position, :].
    p, acc float32; values float16 bits; strides in bytes.
    """

    def emit(
        b: Builder,
        p: Value,
        p_stride: Value,
        values: Value,
        v_stride: Value,
        positions: Value,
        acc: Value,
        acc_stride: Value,
    ) -> None:
        weights = [b.add(p, b.mul(p_stride, const(I64, row))) for row in range(rows)]
        cells = [
            b.add(b.add(acc, b.mul(acc_stride, const(I64, row))), const(I64, 64 * column))
            for row in range(rows)
            for column in range(vectors)
        ]
        with counted_loop(b, positions, [load(b, c, V16F32) for c in cells]) as (i, accs, results):
            line = b.add(values, b.mul(i, v_stride))
            fetch_lines(b, b.add(line, const(I64, FETCH_AHEAD)), 32 * vectors)
            loaded = [
                half_to_float(b, load(b, b.add(line, const(I64, 32 * c)), V16I16), native_half)
                for c in range(vectors)
            ]
            for row in range(rows):
                weight = splat(b, load(b, offset(b, weights[row], i, 4), F32))
                for column in range(vectors):
                    acc_now = accs[row * vectors + column]
                    results.append(fma(b, weight, loaded[column], acc_now))
        for cell, value in zip(cells, results, strict=True):
            store(b, value, cell)

    return kernel(emit, 7)


def _emit_join(
    b: Builder, stats: Value, acc: Value, more_stats: Value, more: Value, vectors: Value
) -> None:
    places = [(stats, b.add(stats, const(I64, 4))), (more_stats, b.add(more_stats, const(I64, 4)))]
    (peak, total), (new_peak, new_total) = (
        [splat(b, load(b, place, F32)) for place in pair] for pair in places
    )
    one = const(V16F32, 1.0)
    less = exp(b, b.fneg(fabs(b, b.fsub(peak, new_peak))))
    higher = b.fcmp_ordered(">", new_peak, peak)
    past, new = b.select(higher, less, one), b.select(higher, one, less)
    joined = [b.select(higher, new_peak, peak), fma(b, new_total, new, b.fmul(total, past))]
    for value, place in zip(joined, places[0], strict=True):
        store(b, b.extract_element(value, const(I32, 0)), place)
    with counted_loop(b, vectors, []) as (i, _, _):
        place = offset(b, acc, i, 64)
        kept = b.fmul(load(b, place, V16F32), past)
        store(b, fma(b, load(b, offset(b, more, i, 64), V16F32), new, kept), place)


join_sums = kernel(_emit_join, 5)
"""(maximum and sum, weighted values, maximum and sum of others, those, n/16): all in the first."""
