"""Packed matrix times quantized activations: one tile of 16 rows against a block of tokens.

With one token this is the matrix-vector product of decoding, with 2 or 4 that of decoding a draft,
with `isa.tokens` of them the inner kernel of prefill: weights are unpacked once and used for every
token of the block. The order of the float operations is the same in all, so they agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from . import layout as L
from .activations import outlier
from .isa import Isa
from .outliers import column_of_tile, first_quant, outlier_at
from .simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    Builder,
    Value,
    const,
    counted_loop,
    fma,
    half_to_float,
    i64_at,
    ir,
    kernel,
    load,
    offset,
    splat,
    store,
)
from .vector import FETCH_AHEAD, fetch_lines, helper

KINDS = (L.INT4, L.INT4_MINIMA, L.INT8)


def tile_kernel(isa: Isa, kind: int, tokens: int) -> Any:
    """Intrinsic (tile, x, x_scales, x_bias, x_sums, groups, apart, count, out, stride).

    Addresses of one tile of weights (see the packed format) and of a token block: x int8
    [groups, tokens, 32], x_scales float32 [groups, tokens], x_bias int32 (-8 * sum of the group)
    and x_sums float32 (scale * sum of the group) likewise; apart [count, tokens] are elements of x
    that stayed floats, each an int32 column and a float32 value. Writes float32 [16] per token at
    `out`, `stride` bytes apart. Asks for the memory that is FETCH_AHEAD bytes behind what it reads.
    """

    def emit(b: Builder, *args: Value) -> None:
        inputs = _Inputs(*args)
        for first in range(0, LANES, isa.rows(tokens)):
            _emit_rows(b, isa, kind, tokens, first, inputs)

    return kernel(emit, 10)


class _Inputs(NamedTuple):
    """See `tile_kernel`."""

    tile: Value
    x: Value
    x_scales: Value
    x_bias: Value
    x_sums: Value
    groups: Value
    apart: Value
    count: Value
    out: Value
    stride: Value


def _emit_rows(b: Builder, isa: Isa, kind: int, tokens: int, first: int, inputs: _Inputs) -> None:
    """As many rows of the tile, from `first` on, as have their sums in registers together."""
    rows = isa.rows(tokens)
    floats = ir.VectorType(F32, rows)

    def halves(address: Value) -> Value:
        bits = load(b, b.add(address, const(I64, 2 * first)), ir.VectorType(I16, rows))
        return half_to_float(b, bits, isa.native_half)

    with counted_loop(b, inputs.count, [const(floats, 0.0)] * tokens) as (rank, accs, sums):
        for t, acc in enumerate(accs):
            item = b.add(b.mul(rank, const(I64, tokens)), const(I64, t))
            column, value = outlier_at(b, offset(b, inputs.apart, item, L.OUTLIER_BYTES))
            x_value = splat(b, value, rows)
            here = offset(b, inputs.tile, b.lshr(column, const(I64, 5)), L.GROUP_BYTES[kind])
            quants = b.sitofp(column_of_tile(b, kind, here, column, first, rows), floats)
            acc = fma(b, quants, b.fmul(halves(here), x_value), acc)
            if kind == L.INT4_MINIMA:
                acc = fma(b, halves(b.add(here, const(I64, 32))), x_value, acc)
            sums.append(acc)
    with counted_loop(b, inputs.groups, sums) as (group, accs, results):
        here = offset(b, inputs.tile, group, L.GROUP_BYTES[kind])
        if first == 0:
            fetch_lines(b, b.add(here, const(I64, FETCH_AHEAD)), L.GROUP_BYTES[kind])
        scale, minimum = halves(here), None
        if kind == L.INT4_MINIMA:
            minimum = halves(b.add(here, const(I64, 32)))
        step = isa.together(tokens)
        for t in range(0, tokens, step):
            items = [
                b.add(b.mul(group, const(I64, tokens)), const(I64, t + i)) for i in range(step)
            ]
            weights = _unpack(b, kind, here, first, rows)
            dots = _dots(b, isa, kind, weights, rows, inputs, items)
            for item, dot, acc in zip(items, dots, accs[t : t + step], strict=True):
                x_scale = splat(b, load(b, offset(b, inputs.x_scales, item, 4), F32), rows)
                acc = fma(b, b.sitofp(dot, floats), b.fmul(scale, x_scale), acc)
                if minimum is not None:
                    x_sum = splat(b, load(b, offset(b, inputs.x_sums, item, 4), F32), rows)
                    acc = fma(b, minimum, x_sum, acc)
                results.append(acc)
    out = b.add(inputs.out, const(I64, 4 * first))
    for token, acc in enumerate(results):
        store(b, acc, b.add(out, b.mul(inputs.stride, const(I64, token))))


def _unpack(b: Builder, kind: int, address: Value, first: int, rows: int) -> Iterator[Value]:
    """Bytes of 4 columns of the rows, for each 4 of the group's 32."""
    count, start = 8 if kind == L.INT8 else 4, first_quant(kind) + 4 * first
    part = ir.VectorType(I8, 4 * rows)
    for c in range(count):
        chunk = load(b, b.add(address, const(I64, start + 64 * c)), part)
        if kind == L.INT8:
            yield chunk
        else:
            yield b.and_(chunk, const(part, 15))
            yield b.lshr(chunk, const(part, 4))


def _dots(
    b: Builder,
    isa: Isa,
    kind: int,
    weights: Iterable[Value],
    rows: int,
    inputs: _Inputs,
    items: list[Value],
) -> list[Value]:
    """Integer dot products of rows with the group of each token, the weights' offset removed."""
    words = ir.VectorType(I32, rows)
    starts = []
    for item in items:
        start = const(words, 0)
        if kind == L.INT4 or (kind == L.INT8 and isa.bias8):
            start = splat(b, load(b, offset(b, inputs.x_bias, item, 4), I32), rows)
            if kind == L.INT8:
                start = b.shl(start, const(words, 4))  # -8 * sum becomes -128 * sum
        starts.append(start)
    quants = [isa.inputs(b, offset(b, inputs.x, item, 32)) for item in items]
    dots = isa.dots8 if kind == L.INT8 else isa.dots4
    return dots(b, starts, weights, quants)


def _by_kind(isa: Isa, tokens: int) -> Any:
    # a function per width, so that each unrolled body exists once
    int4, int4_minima, int8 = (tile_kernel(isa, kind, tokens) for kind in KINDS)

    @helper
    def run(
        kind: int,
        tile: int,
        x: int,
        x_scales: int,
        x_bias: int,
        x_sums: int,
        groups: int,
        apart: int,
        count: int,
        out: int,
        stride: int,
    ) -> None:
        if kind == L.INT4:
            int4(tile, x, x_scales, x_bias, x_sums, groups, apart, count, out, stride)
        elif kind == L.INT8:
            int8(tile, x, x_scales, x_bias, x_sums, groups, apart, count, out, stride)
        else:
            int4_minima(tile, x, x_scales, x_bias, x_sums, groups, apart, count, out, stride)

    return run


def build(isa: Isa) -> Any:
    """Return multiply(matrix, tile, acts, block, tokens, out, stride): see its docstring."""
    widths = {tokens: _by_kind(isa, tokens) for tokens in {*L.STEP_WIDTHS, isa.tokens}}
    one, two, four, many = widths[1], widths[2], widths[4], widths[isa.tokens]

    @helper
    def multiply(
        matrix: int, index: int, acts: int, block: int, tokens: int, out: int, stride: int
    ) -> None:
        """Tile `index` of a matrix times a block of 1, 2, 4 or isa.tokens quantized tokens.

        `matrix` and `acts` are addresses of matrix and activations words; float32 [16] per token
        go to `out`, `stride` bytes apart.
        """
        m, a = i64_at(matrix), i64_at(acts)
        groups, kind = m[L.GROUPS], m[L.KIND]
        item = block * groups * tokens
        x, xs = a[L.A_QUANTS] + 32 * item, a[L.A_SCALES] + 4 * item
        bias, sums = a[L.A_BIAS] + 4 * item, a[L.A_SUMS] + 4 * item
        tile = m[L.TILE] + index * m[L.TILE_BYTES]
        apart, count = outlier(a, block, 0, 0, tokens), a[L.A_APART]
        if tokens == 1:
            one(kind, tile, x, xs, bias, sums, groups, apart, count, out, stride)
        elif tokens == 2:
            two(kind, tile, x, xs, bias, sums, groups, apart, count, out, stride)
        elif tokens == 4:
            four(kind, tile, x, xs, bias, sums, groups, apart, count, out, stride)
        else:
            many(kind, tile, x, xs, bias, sums, groups, apart, count, out, stride)

    return multiply
