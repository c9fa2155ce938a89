"""Groups of 32 neurons: which of their values pass a test, and what those come to."""

from __future__ import annotations

from llvmlite import ir

from .simd import (
    F32,
    I16,
    I32,
    I64,
    V16F32,
    Builder,
    Value,
    call,
    const,
    kernel,
    lanes,
    load,
    offset,
    pointer,
    reduce_add,
    splat,
    store,
    vec,
)


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
    bits = b.bitcast(b.trunc(mask, I32), vec(ir.IntType(1), 32))
    for half in (0, 1):
        at = b.add(values, const(I64, 64 * half))
        kept = lanes(b, bits, 16 * half, 16)
        store(b, b.select(kept, load(b, at, V16F32), const(V16F32, 0.0)), at)


keep_masked = kernel(_emit_keep, 2)
"""(32 float32, mask): those without a bit become zero."""


def _emit_spread(b: Builder, packed: Value, mask: Value, out: Value) -> None:
    bits = b.bitcast(b.trunc(mask, I32), vec(ir.IntType(1), 32))
    for half in (0, 1):
        here = pointer(b, packed, F32)
        kept = lanes(b, bits, 16 * half, 16)
        name = "llvm.masked.expandload.v16f32"
        value = call(b, name, V16F32, [here, kept, const(V16F32, 0.0)])
        store(b, value, b.add(out, const(I64, 64 * half)))
        count = call(b, "llvm.ctpop.i64", I64, [b.and_(mask, const(I64, 0xFFFF))])
        packed = offset(b, packed, count, 4)


spread = kernel(_emit_spread, 3)
"""(as many float32 as a mask has bits, mask, out): 32 of them, zeros where it has none."""


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
