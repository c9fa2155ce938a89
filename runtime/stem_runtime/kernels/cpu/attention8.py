"""Attention over the int8 cache: integer products of queries with keys, of weights with values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import layout as L
from .cache8 import GROUP_BYTES, QUANT_BYTES, SCALE_BYTES, quants_of
from .isa import Isa
from .matmul import tile_kernel
from .simd import (
    F32,
    I8,
    I32,
    I64,
    V16F32,
    V16I16,
    V16I32,
    V64I8,
    Builder,
    Value,
    const,
    counted_loop,
    fma,
    fmax,
    half_to_float,
    ir,
    kernel,
    load,
    offset,
    reduce_add,
    reduce_max,
    splat,
    store,
)
from .vector import FETCH_AHEAD, SMALLEST_PEAK, fetch_lines, helper, quantize_group

ROW_BYTES = 4 * 16 * L.ATTENTION_BLOCKS
LARGEST = 2**14 - 1
V16I8 = ir.VectorType(I8, 16)


def value_rows(isa: Isa) -> int:
    """How many rows share a load of the values: the sums of each take 4 vectors of 64 bytes."""
    return 4 if isa.width == 16 else 1


def value_kernel(isa: Isa, rows: int) -> Any:
    """Intrinsic (p, p_stride, scales, values, blocks, acc, acc_stride, memory).

    acc[row, :32] += sum over positions of p[row, position] * values[position, :], p >= 0. p, acc
    float32; scales, values: of a group of 32 dimensions from the first block on; strides in bytes.
    p times the scales is rounded to 14 bits of its largest, in two parts of 7 that are `memory`'s
    ROW_BYTES for each row, so that the sums are exact products of integers.
    """

    def emit(
        b: Builder,
        p: Value,
        p_stride: Value,
        scales: Value,
        values: Value,
        blocks: Value,
        acc: Value,
        acc_stride: Value,
        memory: Value,
    ) -> None:
        lines = [b.add(p, b.mul(p_stride, const(I64, row))) for row in range(rows)]
        parts = [b.add(memory, const(I64, ROW_BYTES * row)) for row in range(rows)]

        def weights(i: Value) -> list[Value]:
            bits = load(b, offset(b, scales, i, SCALE_BYTES), V16I16)
            scale = half_to_float(b, bits, isa.native_half)
            return [b.fmul(load(b, offset(b, line, i, 64), V16F32), scale) for line in lines]

        with counted_loop(b, blocks, [const(V16F32, 0.0)] * rows) as (i, peaks, results):
            found = weights(i)
            results += [fmax(b, w, peak) for w, peak in zip(found, peaks, strict=True)]
        tops = [reduce_max(b, peak) for peak in results]
        some = [b.fcmp_ordered(">", top, const(F32, SMALLEST_PEAK)) for top in tops]
        factors = [
            splat(b, b.select(is_some, b.fdiv(const(F32, LARGEST), top), const(F32, 0.0)))
            for top, is_some in zip(tops, some, strict=True)
        ]
        with counted_loop(b, blocks, [const(V16I32, 0)] * rows) as (i, sums, totals):
            for row, weight in enumerate(weights(i)):
                # all are positive, so that cutting off after adding a half rounds
                quants = b.fptosi(fma(b, weight, factors[row], const(V16F32, 0.5)), V16I32)
                here = offset(b, parts[row], i, 32)
                store(b, b.trunc(b.lshr(quants, const(V16I32, 7)), V16I8), here)
                low = b.trunc(b.and_(quants, const(V16I32, 127)), V16I8)
                store(b, low, b.add(here, const(I64, 16)))
                totals.append(b.add(sums[row], quants))
        start = [const(V16I32, 0)] * (4 * rows)
        with counted_loop(b, blocks, start) as (i, accs, results):
            block = offset(b, values, i, QUANT_BYTES)
            fetch_lines(b, b.add(block, const(I64, FETCH_AHEAD)), QUANT_BYTES)
            here = [offset(b, part, i, 32) for part in parts]
            results += accs
            for quad in range(4):
                for half in range(2):
                    place = b.add(block, const(I64, 128 * quad + 64 * half))
                    quants = load(b, place, V64I8)
                    for row in range(rows):
                        for part in range(2):
                            x = load(b, b.add(here[row], const(I64, 16 * part + 4 * quad)), I32)
                            n = 4 * row + 2 * half + part
                            results[n] = isa.dot8(b, results[n], quants, x)
        for row in range(rows):
            factor = splat(b, b.fmul(tops[row], const(F32, 1 / LARGEST)))
            extra = b.mul(reduce_add(b, totals[row]), const(I32, isa.bias8))
            for half in range(2):
                high, low = results[4 * row + 2 * half :][:2]
                total = b.sub(b.add(b.shl(high, const(V16I32, 7)), low), splat(b, extra))
                cell = b.add(b.add(acc, b.mul(acc_stride, const(I64, row))), const(I64, 64 * half))
                store(b, fma(b, b.sitofp(total, V16F32), factor, load(b, cell, V16F32)), cell)

    return kernel(emit, 8)


def build(isa: Isa) -> SimpleNamespace:
    """The helpers that `attend` calls where the cache is int8."""
    quantize_rows, scores_of = _build_scores(isa)
    return SimpleNamespace(
        quantize_rows=quantize_rows,
        scores_of=scores_of,
        add_values=_build_values(isa),
    )


def _build_scores(isa: Isa) -> tuple[Any, Any]:
    tokens = isa.tokens
    tile, tile4, tile3, tile2, tile1 = (_tile(isa, rows) for rows in (tokens, 4, 3, 2, 1))

    @helper
    def at_once(rows: int) -> int:
        """How many of the rows that are left share each load of the keys."""
        return tokens if rows >= tokens else min(rows, 4)

    @helper
    def quantize_rows(q: int, rows: int, groups: int, memory: int) -> None:
        """Quantize float32 [rows, 32 * groups] at `memory`, by what `at_once` takes together.

        It has room for rows * (32 + 12) * groups bytes.
        """
        scales, stride, row = memory + 32 * rows * groups, 4 * rows * groups, 0
        while row < rows:
            count = at_once(rows - row)
            for lane in range(count):
                for group in range(groups):
                    item = row * groups + group * count + lane
                    source, place = q + 128 * ((row + lane) * groups + group), scales + 4 * item
                    target = memory + 32 * item
                    quantize_group(source, target, place, place + stride, place + 2 * stride)
            row += count

    @helper
    def scores_of(memory: int, rows: int, keys: int, groups: int, out: int) -> None:
        """Scores of one block of keys for all rows that `quantize_rows` left at `memory`."""
        scales, stride, row = memory + 32 * rows * groups, 4 * rows * groups, 0
        while row < rows:
            item, target = row * groups, out + ROW_BYTES * row
            x, xs = memory + 32 * item, scales + 4 * item
            bias, sums = xs + stride, xs + 2 * stride
            count = at_once(rows - row)
            if count == tokens:
                tile(keys, x, xs, bias, sums, groups, target, ROW_BYTES)
            elif count == 4:
                tile4(keys, x, xs, bias, sums, groups, target, ROW_BYTES)
            elif count == 3:
                tile3(keys, x, xs, bias, sums, groups, target, ROW_BYTES)
            elif count == 2:
                tile2(keys, x, xs, bias, sums, groups, target, ROW_BYTES)
            else:
                tile1(keys, x, xs, bias, sums, groups, target, ROW_BYTES)
            row += count

    return quantize_rows, scores_of


def _build_values(isa: Isa) -> Any:
    most = value_rows(isa)
    kernels = [_value(isa, rows) for rows in range(1, most + 1)]
    value1, value2, value3, value4 = (kernels[min(rows, most - 1)] for rows in range(4))

    @helper
    def add_values(
        p: int,
        rows: int,
        values: int,
        first: int,
        blocks: int,
        groups: int,
        acc: int,
        memory: int,
    ) -> None:
        """acc += p times the values of a chunk from its block `first` on.

        `memory` is 4 * ROW_BYTES of the caller's.
        """
        row, stride = 0, 128 * groups
        while row < rows:
            step = min(rows - row, most)
            source = p + ROW_BYTES * row
            for group in range(groups):
                whole = values + L.ATTENTION_BLOCKS * GROUP_BYTES * group
                s, v = whole + SCALE_BYTES * first, quants_of(whole) + QUANT_BYTES * first
                y = acc + stride * row + 128 * group
                if step == 4:
                    value4(source, ROW_BYTES, s, v, blocks, y, stride, memory)
                elif step == 3:
                    value3(source, ROW_BYTES, s, v, blocks, y, stride, memory)
                elif step == 2:
                    value2(source, ROW_BYTES, s, v, blocks, y, stride, memory)
                else:
                    value1(source, ROW_BYTES, s, v, blocks, y, stride, memory)
            row += step

    return add_values


def _tile(isa: Isa, tokens: int) -> Any:
    intrinsic = tile_kernel(isa, L.INT8, tokens)

    @helper
    def tile(k: int, x: int, xs: int, bias: int, sums: int, groups: int, out: int, s: int) -> None:
        intrinsic(k, x, xs, bias, sums, groups, 0, 0, out, s)

    return tile


def _value(isa: Isa, rows: int) -> Any:
    intrinsic = value_kernel(isa, rows)

    @helper
    def value(p: int, ps: int, s: int, v: int, n: int, acc: int, acc_s: int, memory: int) -> None:
        intrinsic(p, ps, s, v, n, acc, acc_s, memory)

    return value
