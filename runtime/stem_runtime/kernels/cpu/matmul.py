"""Packed matrix times quantized activations: one tile of 16 rows against a block of tokens.

With one token this is the matrix-vector product of decoding, with 2 or 4 that of decoding a draft,
with `isa.tokens` of them the inner kernel of prefill: weights are unpacked once and used for every
token of the block. The order of the float operations is the same in all, so they agree bit for bit.
"""

from __future__ import annotations

from typing import Any

from . import layout as L
from .isa import Isa
from .simd import (
    F32,
    I16,
    I32,
    I64,
    V8F32,
    V8I32,
    V16F32,
    V16I16,
    V16I32,
    V32I8,
    V64I8,
    Builder,
    Value,
    const,
    counted_loop,
    fma,
    half_to_float,
    i64_at,
    kernel,
    load,
    offset,
    reduce_add,
    splat,
    store,
)
from .vector import fetch_lines, helper

KINDS = (L.INT4, L.INT4_MINIMA, L.INT8)


def tile_kernel(isa: Isa, kind: int, tokens: int, ahead: int = 0) -> Any:
    """Intrinsic (tile, x, x_scales, x_bias, x_sums, groups, out, stride).

    Addresses of one tile of weights (see the packed format) and of a token block: x int8
    [groups, tokens, 32], x_scales float32 [groups, tokens], x_bias int32 (-8 * sum of the group)
    and x_sums float32 (scale * sum of the group) likewise. Writes float32 [16] per token at `out`,
    `stride` bytes apart. Asks for the memory that is `ahead` bytes behind what it reads, if any.
    """

    def emit(b: Builder, *args: Value) -> None:
        emit_tile(b, isa, kind, tokens, ahead, *args)

    return kernel(emit, 8)


def emit_tile(
    b: Builder,
    isa: Isa,
    kind: int,
    tokens: int,
    ahead: int,
    tile: Value,
    x: Value,
    x_scales: Value,
    x_bias: Value,
    x_sums: Value,
    groups: Value,
    out: Value,
    stride: Value,
) -> None:
    start = [const(V16F32, 0.0)] * tokens

    def halves(address: Value) -> Value:
        return half_to_float(b, load(b, address, V16I16), isa.native_half)

    with counted_loop(b, groups, start) as (group, accs, results):
        here = offset(b, tile, group, L.GROUP_BYTES[kind])
        if ahead:
            fetch_lines(b, b.add(here, const(I64, ahead)), L.GROUP_BYTES[kind])
        scale, minimum = halves(here), None
        if kind == L.INT4_MINIMA:
            minimum = halves(b.add(here, const(I64, 32)))
        weights = _unpack(b, kind, here)
        for token, acc in enumerate(accs):
            item = b.add(b.mul(group, const(I64, tokens)), const(I64, token))
            dot = _dot(b, isa, kind, weights, offset(b, x, item, 32), offset(b, x_bias, item, 4))
            x_scale = splat(b, load(b, offset(b, x_scales, item, 4), F32))
            acc = fma(b, b.sitofp(dot, V16F32), b.fmul(scale, x_scale), acc)
            if minimum is not None:
                acc = fma(b, minimum, splat(b, load(b, offset(b, x_sums, item, 4), F32)), acc)
            results.append(acc)
    for token, acc in enumerate(results):
        store(b, acc, b.add(out, b.mul(stride, const(I64, token))))


def _unpack(b: Builder, kind: int, address: Value) -> list[Value]:
    count = 8 if kind == L.INT8 else 4
    first = L.GROUP_BYTES[kind] - 64 * count
    chunks = [load(b, b.add(address, const(I64, first + 64 * c)), V64I8) for c in range(count)]
    if kind == L.INT8:
        return chunks
    weights = []
    for chunk in chunks:
        weights.append(b.and_(chunk, const(V64I8, 15)))
        weights.append(b.lshr(chunk, const(V64I8, 4)))
    return weights


def _dot(b: Builder, isa: Isa, kind: int, weights: list[Value], x: Value, bias: Value) -> Value:
    """Integer dot products of 16 rows with one token's group, the weights' offset removed."""
    acc = const(V16I32, 0)
    if kind == L.INT4 or (kind == L.INT8 and isa.bias8):
        acc = splat(b, load(b, bias, I32))
        if kind == L.INT8:
            acc = b.shl(acc, const(V16I32, 4))  # -8 * sum becomes -128 * sum
    dot = isa.dot8 if kind == L.INT8 else isa.dot4
    for c, weight in enumerate(weights):
        acc = dot(b, acc, weight, load(b, b.add(x, const(I64, 4 * c)), I32))
    return acc


def row_kernel(isa: Isa) -> Any:
    """Intrinsic (row, x, x_scales, x_sums, groups, out): one int8 row, stored by itself.

    The row is groups of a float16 scale and 32 bytes (quant + 128); the activations are those of
    one token. Writes a float32.
    """

    def emit(
        b: Builder, row: Value, x: Value, x_scales: Value, x_sums: Value, groups: Value, out: Value
    ) -> None:
        start = [const(V8F32, 0.0), const(F32, 0.0)]
        with counted_loop(b, groups, start) as (group, (acc, offsets), results):
            here = offset(b, row, group, L.ROW_GROUP_BYTES)
            wide = half_to_float(b, splat(b, load(b, here, I16)), isa.native_half)
            scale = b.extract_element(wide, const(I32, 0))
            quants = load(b, b.add(here, const(I64, 2)), V32I8)
            values = load(b, offset(b, x, group, 32), V32I8)
            dot = isa.dot8(b, const(V8I32, 0), quants, values)
            factor = b.fmul(scale, load(b, offset(b, x_scales, group, 4), F32))
            product = b.fmul(b.sitofp(dot, V8F32), splat(b, factor, 8))
            group_sum = load(b, offset(b, x_sums, group, 4), F32)
            results += [b.fadd(acc, product), b.fadd(offsets, b.fmul(scale, group_sum))]
        total = reduce_add(b, results[0])
        store(b, b.fsub(total, b.fmul(results[1], const(F32, float(isa.bias8)))), out)

    return kernel(emit, 6)


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
        out: int,
        stride: int,
    ) -> None:
        if kind == L.INT4:
            int4(tile, x, x_scales, x_bias, x_sums, groups, out, stride)
        elif kind == L.INT8:
            int8(tile, x, x_scales, x_bias, x_sums, groups, out, stride)
        else:
            int4_minima(tile, x, x_scales, x_bias, x_sums, groups, out, stride)

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
        if tokens == 1:
            one(kind, tile, x, xs, bias, sums, groups, out, stride)
        elif tokens == 2:
            two(kind, tile, x, xs, bias, sums, groups, out, stride)
        elif tokens == 4:
            four(kind, tile, x, xs, bias, sums, groups, out, stride)
        else:
            many(kind, tile, x, xs, bias, sums, groups, out, stride)

    return multiply
