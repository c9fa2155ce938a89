"""Packed matrix times quantized activations: one tile of 16 rows against a block of tokens.

With one token this is the matrix-vector product of decoding, with `isa.tokens` of them the inner
kernel of prefill: weights are unpacked once and used for every token of the block. The order of
the float operations is the same in both, so they agree bit for bit.
"""

from __future__ import annotations

from typing import Any

from . import layout as L
from .isa import Isa
from .simd import (
    I32,
    I64,
    V16F32,
    V16I16,
    V16I32,
    V64I8,
    F32,
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
    splat,
    store,
)
from .vector import helper

KINDS = INT4, INT4_MINIMA, INT8 = 0, 1, 2


def tile_kernel(isa: Isa, kind: int, tokens: int) -> Any:
    """Intrinsic (quants, scales, minima, x, x_scales, x_bias, x_sums, groups, out, stride).

    Addresses of one tile's quants/scales/minima (see the packed format) and of a token block:
    x int8 [groups, tokens, 32], x_scales float32 [groups, tokens], x_bias int32 (-8 * sum of the
    group) and x_sums float32 (scale * sum of the group) likewise. Writes float32 [16] per token
    at `out`, `stride` bytes apart.
    """

    def emit(b: Builder, *args: Value) -> None:
        emit_tile(b, isa, kind, tokens, *args)

    return kernel(emit, 10)


def emit_tile(
    b: Builder,
    isa: Isa,
    kind: int,
    tokens: int,
    quants: Value,
    scales: Value,
    minima: Value,
    x: Value,
    x_scales: Value,
    x_bias: Value,
    x_sums: Value,
    groups: Value,
    out: Value,
    stride: Value,
) -> None:
    start = [const(V16F32, 0.0)] * tokens
    with counted_loop(b, groups, start) as (group, accs, results):
        weights = _unpack(b, kind, offset(b, quants, group, 512 if kind == INT8 else 256))
        scale = half_to_float(b, load(b, offset(b, scales, group, 32), V16I16), isa.native_half)
        minimum = None
        if kind == INT4_MINIMA:
            bits = load(b, offset(b, minima, group, 32), V16I16)
            minimum = half_to_float(b, bits, isa.native_half)
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
    chunks = [
        load(b, b.add(address, const(I64, 64 * c)), V64I8) for c in range(8 if kind == INT8 else 4)
    ]
    if kind == INT8:
        return chunks
    weights = []
    for chunk in chunks:
        weights.append(b.and_(chunk, const(V64I8, 15)))
        weights.append(b.lshr(chunk, const(V64I8, 4)))
    return weights


def _dot(b: Builder, isa: Isa, kind: int, weights: list[Value], x: Value, bias: Value) -> Value:
    """Integer dot products of 16 rows with one token's group, the weights' offset removed."""
    acc = const(V16I32, 0)
    if kind == INT4 or (kind == INT8 and isa.bias8):
        acc = splat(b, load(b, bias, I32))
        if kind == INT8:
            acc = b.shl(acc, const(V16I32, 4))  # -8 * sum becomes -128 * sum
    dot = isa.dot8 if kind == INT8 else isa.dot4
    for c, weight in enumerate(weights):
        acc = dot(b, acc, weight, load(b, b.add(x, const(I64, 4 * c)), I32))
    return acc



def _function(intrinsic: Any) -> Any:
    @helper
    def run(
        quants: int,
        scales: int,
        minima: int,
        x: int,
        x_scales: int,
        x_bias: int,
        x_sums: int,
        groups: int,
        out: int,
        stride: int,
    ) -> None:
        intrinsic(quants, scales, minima, x, x_scales, x_bias, x_sums, groups, out, stride)

    return run


def build(isa: Isa) -> Any:
    """Return multiply(matrix, tile, acts, block, tokens, out, stride): see its docstring."""
    # a function per shape, so that each unrolled body exists once
    one4, one4m, one8 = (_function(tile_kernel(isa, kind, 1)) for kind in KINDS)
    many4, many4m, many8 = (_function(tile_kernel(isa, kind, isa.tokens)) for kind in KINDS)

    @helper
    def multiply(
        matrix: int, tile: int, acts: int, block: int, tokens: int, out: int, stride: int
    ) -> None:
        """16 rows of a matrix times a block of 1 or isa.tokens quantized tokens.

        `matrix` and `acts` are addresses of matrix and activations words; float32 [16] per token
        go to `out`, `stride` bytes apart.
        """
        m, a = i64_at(matrix), i64_at(acts)
        groups, kind = m[L.GROUPS], m[L.KIND]
        item = block * groups * tokens
        x, xs = a[L.A_QUANTS] + 32 * item, a[L.A_SCALES] + 4 * item
        bias, sums = a[L.A_BIAS] + 4 * item, a[L.A_SUMS] + 4 * item
        q = m[L.QUANTS] + tile * groups * (512 if kind == INT8 else 256)
        d, low = m[L.SCALES] + tile * groups * 32, m[L.MINIMA] + tile * groups * 32
        if tokens == 1:
            if kind == INT4:
                one4(q, d, low, x, xs, bias, sums, groups, out, stride)
            elif kind == INT8:
                one8(q, d, low, x, xs, bias, sums, groups, out, stride)
            else:
                one4m(q, d, low, x, xs, bias, sums, groups, out, stride)
        elif kind == INT4:
            many4(q, d, low, x, xs, bias, sums, groups, out, stride)
        elif kind == INT8:
            many8(q, d, low, x, xs, bias, sums, groups, out, stride)
        else:
            many4m(q, d, low, x, xs, bias, sums, groups, out, stride)

    return multiply
