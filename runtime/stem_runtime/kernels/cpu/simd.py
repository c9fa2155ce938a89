"""LLVM vector building blocks: emitters that append IR, and the intrinsics that call them.

Vectors are 16 lanes wide everywhere; LLVM splits them where registers are narrower. Addresses are
plain int64, so that kernels can do arithmetic on them and keep tables of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16
I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32, F64, HALF = ir.FloatType(), ir.DoubleType(), ir.HalfType()
V64I8, V16I16, V16I32 = ir.VectorType(I8, 64), ir.VectorType(I16, 16), ir.VectorType(I32, 16)
V8F32, V8I32, V32I8 = ir.VectorType(F32, 8), ir.VectorType(I32, 8), ir.VectorType(I8, 32)
V16F32, V16HALF = ir.VectorType(F32, 16), ir.VectorType(HALF, 16)
Value = Any
Builder = Any


def const(kind: Any, value: float) -> Value:
    """A constant of a scalar type, or the same constant in every lane of a vector type."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, value)


def call(b: Builder, name: str, result: Any, args: Sequence[Value]) -> Value:
    """Call an LLVM intrinsic (or another external function), declaring it on first use."""
    function = b.module.globals.get(name)
    if function is None:
        signature = ir.FunctionType(result, [a.type for a in args])
        function = ir.Function(b.module, signature, name=name)
    return b.call(function, args)


def vec(kind: Any, count: int) -> Any:
    return ir.VectorType(kind, count)


def pick(b: Builder, left: Value, right: Value, mask: list[int]) -> Value:
    """The lanes of two vectors, one behind the other, that `mask` names."""
    return b.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(mask)), mask))


def pointer(b: Builder, address: Value, kind: Any) -> Value:
    return b.inttoptr(address, kind.as_pointer())


def load(b: Builder, address: Value, kind: Any) -> Value:
    value = b.load(pointer(b, address, kind))
    value.align = 1
    return value


def store(b: Builder, value: Value, address: Value) -> None:
    b.store(value, pointer(b, address, value.type)).align = 1


def offset(b: Builder, address: Value, index: Value, size: int) -> Value:
    return b.add(address, b.mul(index, const(I64, size)))


def splat(b: Builder, scalar: Value, lanes: int = LANES) -> Value:
    kind = ir.VectorType(scalar.type, lanes)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, const(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), None)
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def lanes(b: Builder, vector: Value, start: int, count: int) -> Value:
    mask = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def concat(b: Builder, parts: list[Value]) -> Value:
    """Join equally long vectors; their number is a power of two."""
    while len(parts) > 1:
        n = parts[0].type.count
        mask = ir.Constant(ir.VectorType(I32, 2 * n), list(range(2 * n)))
        parts = [
            b.shuffle_vector(left, right, mask)
            for left, right in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once where the CPU can, twice where that would be a library call."""
    return call(b, f"llvm.fmuladd.v{x.type.count}f32", x.type, [x, y, z])


def fmax(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def fmin(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def fabs(b: Builder, x: Value) -> Value:
    return call(b, "llvm.fabs.v16f32", V16F32, [x])


def reduce_add(b: Builder, x: Value) -> Value:
    if x.type == V16I32:
        return call(b, "llvm.vector.reduce.add.v16i32", I32, [x])
    # pairwise, so that the order (and the result) is the same on every machine
    return _halve(b, x, b.fadd)


def reduce_rows(b: Builder, sums: list[Value]) -> Value:
    """The sum of each vector, one to a lane, added in pairs as `reduce_add` does."""
    width = sums[0].type.count
    while width > 1:
        half = width // 2
        pairs = list(zip(sums[::2], sums[1::2])) or [(sums[0], sums[0])]  # noqa: B905
        count = sum(v.type.count for v in sums[:2]) // 2
        low = [width * (i // half) + i % half for i in range(count)]
        high = [i + half for i in low]
        sums = [b.fadd(pick(b, x, y, low), pick(b, x, y, high)) for x, y in pairs]
        width = half
    return sums[0]


def gather(b: Builder, addresses: list[Value], kind: Any) -> Value:
    """A vector of what lies at some addresses."""
    found = ir.Constant(vec(kind, len(addresses)), ir.Undefined)
    for i, address in enumerate(addresses):
        found = b.insert_element(found, load(b, address, kind), const(I32, i))
    return found


def reduce_max(b: Builder, x: Value) -> Value:
    # LLVM's own reduction minds NaNs, and goes from lane to lane for that
    return _halve(b, x, lambda low, high: fmax(b, low, high))


def _halve(b: Builder, x: Value, join: Callable[[Value, Value], Value]) -> Value:
    """Join the halves of a vector until one lane is left."""
    while x.type.count > 1:
        half = x.type.count // 2
        x = join(lanes(b, x, 0, half), lanes(b, x, half, half))
    return b.extract_element(x, const(I32, 0))


def rint(b: Builder, x: Value) -> Value:
    """Round to the nearest integer, ties to even, for |x| < 2**22, without a library call."""
    magic = const(x.type, 12582912.0)
    return b.fsub(b.fadd(x, magic), magic)


def exp(b: Builder, x: Value) -> Value:
    """e**x to about 2 ulp; inputs are clamped to [-87, 88]."""
    x = fmin(b, fmax(b, x, const(V16F32, -87.0)), const(V16F32, 88.0))
    n = rint(b, b.fmul(x, const(V16F32, 1.4426950408889634)))
    r = fma(b, n, const(V16F32, -0.693145751953125), x)
    r = fma(b, n, const(V16F32, -1.428606765330187e-06), r)
    y = const(V16F32, 1.0 / 720.0)
    for term in (1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0):
        y = fma(b, y, r, const(V16F32, term))
    power = b.shl(b.add(b.fptosi(n, V16I32), const(V16I32, 127)), const(V16I32, 23))
    return b.fmul(y, b.bitcast(power, V16F32))


def half_to_float(b: Builder, bits: Value, native: bool) -> Value:
    """float16 bits (i16) to float32; `native` where the CPU converts by itself."""
    n = bits.type.count
    floats, words = ir.VectorType(F32, n), ir.VectorType(I32, n)
    if native:
        return b.fpext(b.bitcast(bits, ir.VectorType(HALF, n)), floats)
    wide = b.zext(bits, words)
    magnitude = b.shl(b.and_(wide, const(words, 0x7FFF)), const(words, 13))
    scaled = b.fmul(b.bitcast(magnitude, floats), const(floats, 2.0**112))
    sign = b.shl(b.and_(wide, const(words, 0x8000)), const(words, 16))
    return b.bitcast(b.or_(b.bitcast(scaled, words), sign), floats)


def float_to_half(b: Builder, x: Value, native: bool) -> Value:
    """float32 to float16 bits, nearest even, clamped to the largest finite half."""
    x = fmin(b, fmax(b, x, const(V16F32, -65504.0)), const(V16F32, 65504.0))
    if native:
        return b.bitcast(b.fptrunc(x, V16HALF), V16I16)
    bits = b.bitcast(x, V16I32)
    sign = b.and_(b.lshr(bits, const(V16I32, 16)), const(V16I32, 0x8000))
    size = fabs(b, x)
    # where halves are subnormal they are 2**-24 apart, as floats are from 0.5 on
    half = const(V16F32, 0.5)
    small = b.sub(b.bitcast(b.fadd(size, half), V16I32), b.bitcast(half, V16I32))
    bits = b.sub(b.bitcast(size, V16I32), const(V16I32, 112 << 23))
    odd = b.and_(b.lshr(bits, const(V16I32, 13)), const(V16I32, 1))
    usual = b.lshr(b.add(b.add(bits, const(V16I32, 0xFFF)), odd), const(V16I32, 13))
    is_small = b.fcmp_ordered("<", size, const(V16F32, 2.0**-14))
    return b.trunc(b.or_(b.select(is_small, small, usual), sign), V16I16)


@contextmanager
def counted_loop(
    b: Builder, count: Value, carried: Sequence[Value]
) -> Iterator[tuple[Value, list[Value], list[Value]]]:
    """Loop `count` times with loop-carried values. Yields (index, values, results).

    The body replaces the contents of `results` (initially empty) with the next values; after the
    block `results` holds the final ones.
    """
    before = b.block
    body, done = b.append_basic_block("loop"), b.append_basic_block("done")
    b.cbranch(b.icmp_signed(">", count, const(I64, 0)), body, done)
    b.position_at_end(body)
    index = b.phi(I64)
    index.add_incoming(const(I64, 0), before)
    values = [b.phi(value.type) for value in carried]
    for phi, value in zip(values, carried, strict=True):
        phi.add_incoming(value, before)
    results: list[Value] = []
    yield index, values, results
    after = b.block
    following = b.add(index, const(I64, 1))
    index.add_incoming(following, after)
    for phi, value in zip(values, results, strict=True):
        phi.add_incoming(value, after)
    b.cbranch(b.icmp_signed("<", following, count), body, done)
    b.position_at_end(done)
    finals = [b.phi(value.type) for value in carried]
    for final, start, value in zip(finals, carried, results, strict=True):
        final.add_incoming(start, before)
        final.add_incoming(value, after)
    results[:] = finals


def kernel(emit: Callable[..., None], arguments: int) -> Any:
    """Wrap `emit(builder, *addresses_and_sizes)` as a numba intrinsic of int64s without result."""
    signature = types.void(*[types.int64] * arguments)

    def typed(_context: Any, *_args: Any) -> Any:
        def codegen(context: Any, builder: Builder, _signature: Any, args: Any) -> Any:
            emit(builder, *args)
            return context.get_dummy_value()

        return signature, codegen

    # numba counts the parameters of the function's own signature
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["context", *(f"a{i}" for i in range(arguments))]
    typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, plain) for name in names]
    )
    return intrinsic(typed)


def _cast(kind: Any, element: Any) -> Any:
    @intrinsic
    def at(_context: Any, _address: Any) -> Any:
        def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Any:
            return pointer(b, args[0], element)

        return types.CPointer(kind)(types.int64), codegen

    return at


f32_at = _cast(types.float32, F32)
f64_at = _cast(types.float64, F64)
i32_at = _cast(types.int32, I32)
i64_at = _cast(types.int64, I64)
u8_at = _cast(types.uint8, I8)
u16_at = _cast(types.uint16, I16)
u32_at = _cast(types.uint32, I32)


def _of_bits(result: Any, emit: Callable[[Builder, Value], Value]) -> Any:
    """Intrinsic of one int64 or float64."""

    @intrinsic
    def run(_context: Any, value: Any) -> Any:
        def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Any:
            return emit(b, args[0])

        return result(value), codegen

    return run


popcount = _of_bits(types.int64, lambda b, mask: call(b, "llvm.ctpop.i64", I64, [mask]))
"""How many bits are set."""

lowest = _of_bits(
    types.int64,
    lambda b, mask: call(b, "llvm.cttz.i64", I64, [mask, const(ir.IntType(1), 0)]),
)
"""The place of the lowest bit that is set."""

bits_of_float = _of_bits(types.int64, lambda b, value: b.bitcast(value, I64))
"""The bits of a float64, as float arguments travel."""


@intrinsic
def address_of(_context: Any, _pointer: Any) -> Any:
    """The int64 address of a pointer to int64."""

    def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Any:
        return b.ptrtoint(args[0], I64)

    return types.int64(types.CPointer(types.int64)), codegen
