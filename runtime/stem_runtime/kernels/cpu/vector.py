"""Kernels over float32 vectors: quantization, norms, activations, softmax, conversions.

Lengths are multiples of 16 unless said otherwise; buffers are padded with zeros up to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .simd import (
    F32,
    F64,
    I8,
    I32,
    I64,
    V16F32,
    V16I32,
    Builder,
    Value,
    call,
    concat,
    const,
    counted_loop,
    exp,
    fabs,
    float_to_half,
    fma,
    fmax,
    ir,
    kernel,
    load,
    offset,
    pointer,
    reduce_add,
    reduce_max,
    rint,
    splat,
    store,
)

SMALLEST_PEAK = float(np.float32(1e-30))

helper = numba.njit(
    error_model="numpy", fastmath={"contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""Compiles the plain Python between the intrinsics."""


@intrinsic
def float_of_bits(_context: Any, _bits: Any) -> Any:
    """The float64 whose bits are an int64, as float arguments travel."""

    def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Any:
        return b.bitcast(args[0], F64)

    return types.float64(types.int64), codegen


def _scalar(b: Builder, bits: Value) -> Value:
    """The float32 nearest to a float64 that travelled as int64 bits."""
    return b.fptrunc(b.bitcast(bits, F64), F32)


def _vector(b: Builder, base: Value, index: Value) -> Value:
    return load(b, offset(b, base, index, 64), V16F32)


def _emit_quantize(
    b: Builder, src: Value, q: Value, scale: Value, bias: Value, sums: Value
) -> None:
    halves = [load(b, b.add(src, const(I64, 64 * i)), V16F32) for i in (0, 1)]
    peak = reduce_max(b, fmax(b, fabs(b, halves[0]), fabs(b, halves[1])))
    # below this the inverse would overflow, and the group adds nothing to any output
    some = b.fcmp_ordered(">", peak, const(F32, SMALLEST_PEAK))
    peak = b.select(some, peak, const(F32, 0.0))
    inverse = b.select(some, b.fdiv(const(F32, 127.0), peak), const(F32, 0.0))
    factor = b.fdiv(peak, const(F32, 127.0))
    quants = [b.fptosi(rint(b, b.fmul(v, splat(b, inverse))), V16I32) for v in halves]
    total = reduce_add(b, b.add(*quants))
    store(b, b.trunc(concat(b, quants), ir.VectorType(I8, 32)), q)
    store(b, factor, scale)
    store(b, b.mul(total, const(I32, -8)), bias)
    store(b, b.fmul(factor, b.sitofp(total, F32)), sums)


def _emit_take_largest(b: Builder, x: Value, groups: Value, out: Value) -> None:
    start = [const(V16F32, -1.0), const(V16I32, 0)]
    with counted_loop(b, groups, start * 2) as (group, found, results):
        for half in (0, 1):  # neither waits for the other
            most, where = found[2 * half : 2 * half + 2]
            place = b.add(b.shl(group, const(I64, 1)), const(I64, half))
            size = fabs(b, _vector(b, x, place))
            more = b.fcmp_ordered(">", size, most)
            place = splat(b, b.trunc(place, I32))
            results += [b.select(more, size, most), b.select(more, place, where)]
    top = splat(b, reduce_max(b, fmax(b, results[0], results[2])))
    lanes, never = ir.Constant(V16I32, list(range(16))), const(V16I32, 2**31 - 1)
    columns = []
    for most, where in (results[:2], results[2:]):
        column = b.add(b.shl(where, const(V16I32, 4)), lanes)
        columns.append(b.select(b.fcmp_ordered("==", most, top), column, never))
    left = b.select(b.icmp_signed("<", *columns), *columns)
    place = call(b, "llvm.vector.reduce.smin.v16i32", I32, [left])
    taken = offset(b, x, b.zext(place, I64), 4)
    store(b, place, out)
    store(b, load(b, taken, F32), b.add(out, const(I64, 4)))
    store(b, const(F32, 0.0), taken)


take_largest = kernel(_emit_take_largest, 3)
"""(x, n/32, out): the leftmost of the largest |x|, int32 place and float32 value; then 0 in x."""

quantize_group = kernel(_emit_quantize, 5)
"""(src, q, scale, bias, sums): 32 float32 to int8, scale max|x|/127, -8*sum(q), scale*sum(q)."""


def _emit_rms_norm(
    b: Builder, x: Value, w: Value, out: Value, vectors: Value, inverse_n: Value, eps: Value
) -> None:
    with counted_loop(b, vectors, [const(V16F32, 0.0)]) as (i, (acc,), results):
        v = _vector(b, x, i)
        results.append(fma(b, v, v, acc))
    mean = b.fmul(reduce_add(b, results[0]), _scalar(b, inverse_n))
    root = call(b, "llvm.sqrt.f32", F32, [b.fadd(mean, _scalar(b, eps))])
    inverse = splat(b, b.fdiv(const(F32, 1.0), root))
    with counted_loop(b, vectors, []) as (i, _, _):
        v = b.fmul(_vector(b, x, i), inverse)
        store(b, b.fmul(v, _vector(b, w, i)), offset(b, out, i, 64))


rms_norm = kernel(_emit_rms_norm, 6)
"""(x, weight, out, n/16, bits of 1/length, bits of eps): root mean square norm; out may be x."""


def _emit_axpy(b: Builder, a: Value, x: Value, y: Value, vectors: Value) -> None:
    factor = splat(b, _scalar(b, a))
    with counted_loop(b, vectors, []) as (i, _, _):
        value = fma(b, factor, _vector(b, x, i), _vector(b, y, i))
        store(b, value, offset(b, y, i, 64))


axpy = kernel(_emit_axpy, 4)
"""(bits of a, x, y, n/16): y += a * x."""


def _emit_to_half(native: bool) -> Callable[..., None]:
    def emit(b: Builder, x: Value, out: Value, vectors: Value) -> None:
        with counted_loop(b, vectors, []) as (i, _, _):
            store(b, float_to_half(b, _vector(b, x, i), native), offset(b, out, i, 32))

    return emit


def to_half_kernel(native: bool) -> Any:
    """Intrinsic (x, out, n/16): float32 to float16 bits, saturating."""
    return kernel(_emit_to_half(native), 3)


def _emit_exp(b: Builder, scores: Value, vectors: Value, peak: Value, total: Value) -> None:
    top = splat(b, load(b, peak, F32))
    with counted_loop(b, vectors, [const(V16F32, 0.0)]) as (i, (acc,), results):
        value = exp(b, b.fsub(_vector(b, scores, i), top))
        store(b, value, offset(b, scores, i, 64))
        results.append(b.fadd(acc, value))
    store(b, reduce_add(b, results[0]), total)


exp_scores = kernel(_emit_exp, 4)
"""(scores, n/16, address of their maximum, address for the sum): exp(score - maximum) in place."""


def _emit_max(b: Builder, scores: Value, vectors: Value, peak: Value) -> None:
    start = splat(b, load(b, peak, F32))
    with counted_loop(b, vectors, [start]) as (i, (acc,), results):
        results.append(fmax(b, _vector(b, scores, i), acc))
    store(b, reduce_max(b, results[0]), peak)


max_scores = kernel(_emit_max, 3)
"""(scores, n/16, address of the maximum so far, updated)."""


def _silu(b: Builder, g: Value, slope: float = 1.0) -> Value:
    """g * sigmoid(slope * g)."""
    denominator = exp(b, b.fmul(g, const(V16F32, -slope)))
    return b.fdiv(g, b.fadd(denominator, const(V16F32, 1.0)))


def _gelu_tanh(b: Builder, g: Value) -> Value:
    # 0.5 * (1 + tanh(z)) = sigmoid(2z), z = sqrt(2/pi) * (g + 0.044715 g^3)
    cubic = fma(b, b.fmul(g, g), const(V16F32, 0.044715), const(V16F32, 1.0))
    z = b.fmul(b.fmul(g, cubic), const(V16F32, -2 * 0.7978845608028654))
    return b.fdiv(g, b.fadd(exp(b, z), const(V16F32, 1.0)))


def _gelu(b: Builder, g: Value) -> Value:
    """Exact GELU with erf by Abramowitz and Stegun 7.1.26 (error below 1.5e-7)."""
    x = b.fmul(fabs(b, g), const(V16F32, 0.7071067811865476))
    one = const(V16F32, 1.0)
    t = b.fdiv(one, fma(b, x, const(V16F32, 0.3275911), one))
    y = const(V16F32, 1.061405429)
    for term in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        y = fma(b, y, t, const(V16F32, term))
    tail = b.fmul(b.fmul(y, t), exp(b, b.fneg(b.fmul(x, x))))
    half_tail = b.fmul(tail, const(V16F32, 0.5))
    positive = b.fcmp_ordered(">=", g, const(V16F32, 0.0))
    return b.fmul(g, b.select(positive, b.fsub(one, half_tail), half_tail))


def _relu(b: Builder, g: Value) -> Value:
    return fmax(b, g, const(V16F32, 0.0))


def _gated(function: Callable[[Builder, Value], Value]) -> Callable[..., Value]:
    return lambda b, g, u, _parameter: b.fmul(function(b, g), u)


def _fatrelu(b: Builder, g: Value, u: Value, threshold: Value) -> Value:
    kept = b.select(b.fcmp_ordered(">", g, threshold), g, const(V16F32, 0.0))
    return b.fmul(kept, u)


GATES: dict[str, Callable[..., Value]] = {
    "silu": _gated(_silu),
    "gelu": _gated(_gelu),
    "gelu_tanh": _gated(_gelu_tanh),
    "relu": _gated(_relu),
    "fatrelu": _fatrelu,
    "relu2": _gated(lambda b, g: b.fmul(_relu(b, g), _relu(b, g))),
    "drelu": lambda b, g, u, _parameter: b.fmul(_relu(b, g), _relu(b, u)),
}


def _gate_kernel(function: Callable[..., Value]) -> Any:
    def emit(b: Builder, gate: Value, up: Value, out: Value, vectors: Value, bits: Value) -> None:
        parameter = splat(b, _scalar(b, bits))
        with counted_loop(b, vectors, []) as (i, _, _):
            value = function(b, _vector(b, gate, i), _vector(b, up, i), parameter)
            store(b, value, offset(b, out, i, 64))

    return kernel(emit, 5)


gate_kernels = {name: _gate_kernel(function) for name, function in GATES.items()}
"""By activation: (gate, up, out, n/16, bits of the parameter): out = act(gate) * up."""


FETCH_AHEAD = 8192
"""Bytes behind a stream of weights or of the cache that are asked for while it is read.

The CPU asks for memory ahead, too, but starts anew with every page of 4 KB, and what it has asked
for does not cover a miss: on an Intel server core asking 2 KB ahead made decoding a fifth quicker,
6 to 12 KB a third.
"""


def fetch_lines(b: Builder, address: Value, nbytes: int) -> None:
    """Ask for memory that is read soon, into the second level of cache."""
    read, near, data = const(I32, 0), const(I32, 2), const(I32, 1)
    for line in range(0, nbytes, 64):
        here = pointer(b, b.add(address, const(I64, line)), I8)
        call(b, "llvm.prefetch.p0", ir.VoidType(), [here, read, near, data])
