"""Products with single neurons: a row of gate or up, and columns of the down projection.

The layouts are those of `sparsity/neurons.py`. Integer sums are the same as those over tiles, so
that skipping neurons changes results by no more than the order of the float sums.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import layout as L
from .isa import Isa
from .outliers import QUANT_OFFSET, half_at, outlier_at
from .simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    V16F32,
    V64I8,
    Builder,
    Value,
    call,
    concat,
    const,
    counted_loop,
    fma,
    half_to_float,
    kernel,
    lanes,
    load,
    offset,
    reduce_add,
    splat,
    store,
)


def _vec(kind: Any, count: int) -> Any:
    return ir.VectorType(kind, count)


def _pick(b: Builder, left: Value, right: Value, mask: list[int]) -> Value:
    return b.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(mask)), mask))


def _spread(b: Builder, few: Value, times: int) -> Value:
    """Each of a few values `times` times over, round and round until 16 lanes are full."""
    return _pick(b, few, few, [lane // times % few.type.count for lane in range(16)])


def _wide(b: Builder, acc: Value) -> Value:
    """Integer sums as 16 floats, the lanes that there are none for being zero."""
    if acc.type.count < 16:
        acc = concat(b, [acc, const(acc.type, 0)])
    return b.sitofp(acc, V16F32)


def row_kernel(isa: Isa, kind: int) -> Any:
    """Intrinsic (row, x, x_scales, x_bias, x_sums, pairs, apart, count, out): a row of gate or up.

    `pairs` is groups / 2 rounded up; the activations are one token's, with zeros up to as many
    groups, `count` of them `apart` as in `matmul.tile_kernel`. Writes a float32.
    """
    return kernel(lambda b, *args: _emit_row(b, isa, kind, *args), 9)


def _emit_row(
    b: Builder,
    isa: Isa,
    kind: int,
    row: Value,
    x: Value,
    x_scales: Value,
    x_bias: Value,
    x_sums: Value,
    pairs: Value,
    apart: Value,
    count: Value,
    out: Value,
) -> None:
    scales = offset(b, row, pairs, 64 if kind == L.INT8 else 32)
    minima = offset(b, scales, pairs, 4)

    def block(acc: Value, first: Value, groups: int) -> Value:
        """acc plus the groups from pair `first` on: 2, or 4 where they fill a register."""
        wide, times = 4 * 16 * groups // 4, 4
        if kind == L.INT8:
            wide, times = 64, 8
        few = _vec(I16, groups)
        half = half_to_float(
            b, _spread(b, load(b, offset(b, scales, first, 4), few), times), isa.native_half
        )
        factor = _spread(b, load(b, offset(b, x_scales, first, 8), _vec(F32, groups)), times)
        bias = load(b, offset(b, x_bias, first, 8), _vec(I32, groups))
        start = const(_vec(I32, wide // 4), 0)
        if kind == L.INT4:  # an int4 group's bias is split over four lanes
            start = lanes(b, _spread(b, b.ashr(bias, const(bias.type, 2)), 4), 0, wide // 4)
        elif kind == L.INT8 and isa.bias8:  # -8 times the sum becomes -128 times, over 8 lanes
            start = _spread(b, b.shl(bias, const(bias.type, 1)), 8)
        quants = load(b, offset(b, row, first, 64 if kind == L.INT8 else 32), _vec(I8, wide))
        at = offset(b, x, first, 64)
        if kind == L.INT8:
            dot = isa.dot8(b, start, quants, load(b, at, V64I8))
        else:
            ahead = load(b, at, quants.type)
            behind = load(b, b.add(at, const(I64, wide)), quants.type)
            even = [32 * (i // 16) + i % 16 for i in range(wide)]
            low = _pick(b, ahead, behind, even)
            high = _pick(b, ahead, behind, [i + 16 for i in even])
            dot = isa.dot4(b, start, b.and_(quants, const(quants.type, 15)), low)
            dot = isa.dot4(b, dot, b.lshr(quants, const(quants.type, 4)), high)
        acc = fma(b, _wide(b, dot), b.fmul(half, factor), acc)
        if kind == L.INT4_MINIMA:
            lowest = load(b, offset(b, minima, first, 4), few)
            total = _spread(b, load(b, offset(b, x_sums, first, 8), _vec(F32, groups)), 4)
            share = const(V16F32, groups / 16)  # as often as a value stands in the lanes
            value = half_to_float(b, _spread(b, lowest, 4), isa.native_half)
            acc = fma(b, b.fmul(value, share), total, acc)
        return acc

    zero = const(V16F32, 0.0)
    if kind == L.INT8:
        with counted_loop(b, pairs, [zero]) as (pair, (acc,), results):
            results.append(block(acc, pair, 2))
    else:
        with counted_loop(b, b.ashr(pairs, const(I64, 1)), [zero]) as (quad, (acc,), results):
            results.append(block(acc, b.shl(quad, const(I64, 1)), 4))
        last = b.sub(pairs, const(I64, 1))
        with counted_loop(b, b.and_(pairs, const(I64, 1)), results) as (_, (acc,), tail):
            tail.append(block(acc, last, 2))
        results = tail
    total = reduce_add(b, results[0])
    with counted_loop(b, count, [total]) as (rank, (acc,), sums):
        column, value = outlier_at(b, offset(b, apart, rank, L.OUTLIER_BYTES))
        weight = _weight(b, isa, kind, row, scales, minima, column)
        sums.append(b.fadd(acc, b.fmul(weight, value)))
    store(b, sums[0], out)


def _weight(
    b: Builder, isa: Isa, kind: int, row: Value, scales: Value, minima: Value, column: Value
) -> Value:
    """One weight of a row of gate or up, as a float32."""
    group, place = b.lshr(column, const(I64, 5)), b.and_(column, const(I64, 31))
    if kind == L.INT8:
        quant = b.zext(load(b, b.add(row, column), I8), I32)
    else:  # of a group, the first 16 are the low halves of its bytes
        byte = load(b, b.add(offset(b, row, group, 16), b.and_(place, const(I64, 15))), I8)
        high = b.trunc(b.shl(b.lshr(place, const(I64, 4)), const(I64, 2)), I32)
        quant = b.and_(b.lshr(b.zext(byte, I32), high), const(I32, 15))
    weight = b.sitofp(b.sub(quant, const(I32, QUANT_OFFSET[kind])), F32)
    weight = b.fmul(weight, half_at(b, isa, offset(b, scales, group, 2)))
    if kind != L.INT4_MINIMA:
        return weight
    return b.fadd(weight, half_at(b, isa, offset(b, minima, group, 2)))


def columns_kernel(isa: Isa, kind: int) -> Any:
    """Intrinsic (scales, columns, values, quads, scale, bias, sums, chunks, y).

    Adds some neurons of one group of 32 to y, float32 [64 * chunks]. `columns` int64 [4 * quads]
    are addresses, `values` int8 [4 * quads] the quantized hidden values; `scale`, `bias` and `sums`
    are the addresses of the group's words among the quantized activations.
    """
    return kernel(lambda b, *args: _emit_columns(b, isa, kind, *args), 9)


def _emit_columns(
    b: Builder,
    isa: Isa,
    kind: int,
    scales: Value,
    columns: Value,
    values: Value,
    quads: Value,
    scale: Value,
    bias: Value,
    sums: Value,
    chunks: Value,
    y: Value,
) -> None:
    minima = offset(b, scales, chunks, 128)
    factor = splat(b, load(b, scale, F32))
    total = splat(b, load(b, sums, F32)) if kind == L.INT4_MINIMA else None
    offsets = const(I32, 0)
    if kind == L.INT4:
        offsets = load(b, bias, I32)
    elif kind == L.INT8 and isa.bias8:
        offsets = b.shl(load(b, bias, I32), const(I32, 4))

    def chunk(outputs: int, at: Value, wide: int) -> None:
        """`wide` bytes of every column from byte `at` on; as many outputs, or twice as many."""
        per = 4 if kind == L.INT8 else 8
        start = [splat(b, offsets, wide // 4)] * per
        with counted_loop(b, quads, start) as (quad, accs, results):
            where = offset(b, columns, quad, 32)
            parts = [
                load(b, b.add(load(b, b.add(where, const(I64, 8 * k)), I64), at), _vec(I8, wide))
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
        if wide < 64:
            results = [concat(b, [results[i], results[i + 1]]) for i in range(0, per, 2)]
        first = b.mul(at, const(I64, outputs))
        for i, acc in enumerate(results):
            here = b.add(first, const(I64, 16 * i))
            half = half_to_float(
                b, load(b, offset(b, scales, here, 2), _vec(I16, 16)), isa.native_half
            )
            target = offset(b, y, here, 4)
            sum_ = fma(b, b.sitofp(acc, V16F32), b.fmul(half, factor), load(b, target, V16F32))
            if total is not None:
                least = load(b, offset(b, minima, here, 2), _vec(I16, 16))
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
        return _pick(b, left, right, mask)

    mixed = []
    for high in (0, 1):
        left, right = unpack(parts[0], parts[1], 1, high), unpack(parts[2], parts[3], 1, high)
        mixed += [unpack(left, right, 2, 0), unpack(left, right, 2, 1)]
    return mixed


def _emit_passing(b: Builder, values: Value, cutoff: Value, out: Value) -> None:
    limit = splat(b, b.fptrunc(b.bitcast(cutoff, ir.DoubleType()), F32))
    found = []
    for half in (0, 1):
        value = load(b, b.add(values, const(I64, 64 * half)), V16F32)
        found.append(b.bitcast(b.fcmp_ordered(">", value, limit), I16))
    mask = b.or_(b.zext(found[0], I32), b.shl(b.zext(found[1], I32), const(I32, 16)))
    store(b, mask, out)


passing = kernel(_emit_passing, 3)
"""(32 float32, bits of a cut-off, address of a uint32): a bit for each that is over it."""


def _emit_keep(b: Builder, values: Value, mask: Value) -> None:
    bits = b.bitcast(b.trunc(mask, I32), _vec(ir.IntType(1), 32))
    for half in (0, 1):
        at = b.add(values, const(I64, 64 * half))
        kept = lanes(b, bits, 16 * half, 16)
        store(b, b.select(kept, load(b, at, V16F32), const(V16F32, 0.0)), at)


keep_masked = kernel(_emit_keep, 2)
"""(32 float32, mask): those without a bit become zero."""


def _emit_weigh(b: Builder, values: Value, weights: Value, out: Value) -> None:
    for half in (0, 64):
        value = load(b, b.add(values, const(I64, half)), V16F32)
        weight = load(b, b.add(weights, const(I64, half)), V16F32)
        size = call(b, "llvm.fabs.v16f32", V16F32, [value])
        store(b, b.fmul(size, weight), b.add(out, const(I64, half)))


weigh = kernel(_emit_weigh, 3)
"""(32 float32, weights, out): |value| * weight."""


def _emit_total(b: Builder, values: Value, out: Value) -> None:
    parts = [load(b, b.add(values, const(I64, half)), V16F32) for half in (0, 64)]
    store(b, reduce_add(b, b.fadd(*parts)), out)


total = kernel(_emit_total, 2)
"""(32 float32, address of a float32): their sum."""
