"""What each instruction set contributes: the 4-byte dot product, and how to convert halves.

Weights arrive as 64 bytes: 16 rows of 4 consecutive inputs. Activations are signed bytes, 4 of
them broadcast to all rows. `dot4` takes weights of 0..15; `dot8` takes int8 weights stored with
128 added, and `bias8` says how much of that offset is still in its result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .simd import I8, I16, V16I32, V64I8, Builder, Value, call, concat, const, ir, lanes, splat

Dot = Callable[[Builder, Value, Value, Value], Value]


@dataclass(frozen=True, slots=True)
class Isa:
    """One kernel variant. `tokens` is how many tokens share each load of a weight in prefill."""

    name: str
    dot4: Dot
    dot8: Dot
    bias8: int
    tokens: int
    native_half: bool


def _pieces(b: Builder, width: int, acc: Value, w: Value, x: Value, dot: Dot) -> Value:
    """Apply a narrower dot product to each `width` rows of the 16."""
    spread = b.bitcast(splat(b, x, width), ir.VectorType(I8, 4 * width))
    parts = []
    for start in range(0, 16, width):
        rows = lanes(b, acc, start, width)
        parts.append(dot(b, rows, lanes(b, w, 4 * start, 4 * width), spread))
    return concat(b, parts)


def _signed(b: Builder, w: Value) -> Value:
    return b.xor(w, const(w.type, -128))


def _vnni512(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    spread = b.bitcast(splat(b, x), V64I8)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", V16I32, [acc, w, spread])


def _vnni256(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    def dot(b: Builder, acc: Value, w: Value, x: Value) -> Value:
        return call(b, "llvm.x86.avx512.vpdpbusd.256", acc.type, [acc, w, x])

    return _pieces(b, 8, acc, w, x, dot)


def _madd256(b: Builder, acc: Value, unsigned: Value, signed: Value) -> Value:
    wide = ir.VectorType(I16, 16)
    pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", wide, [unsigned, signed])
    quads = call(b, "llvm.x86.avx2.pmadd.wd", acc.type, [pairs, const(wide, 1)])
    return b.add(acc, quads)


def _avx2_dot4(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    return _pieces(b, 8, acc, w, x, _madd256)


def _avx2_dot8(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    def dot(b: Builder, acc: Value, w: Value, x: Value) -> Value:
        # unsigned bytes up to 255 would saturate the 16-bit pair sums; magnitudes up to 128 do not
        signed = _signed(b, w)
        magnitude = call(b, "llvm.x86.avx2.psign.b", w.type, [signed, signed])
        return _madd256(b, acc, magnitude, call(b, "llvm.x86.avx2.psign.b", w.type, [x, signed]))

    return _pieces(b, 8, acc, w, x, dot)


def _neon_sdot(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, [acc, w, x])


def _neon_dot4(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    return _pieces(b, 4, acc, w, x, _neon_sdot)


def _neon_dot8(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    return _pieces(b, 4, acc, _signed(b, w), x, _neon_sdot)


def _portable(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    """Four multiplications per row in plain 32-bit arithmetic, for any LLVM target."""
    words, spread = b.bitcast(w, V16I32), splat(b, x)
    for byte in range(4):
        weight = b.and_(b.lshr(words, const(V16I32, 8 * byte)), const(V16I32, 0xFF))
        value = b.ashr(b.shl(spread, const(V16I32, 24 - 8 * byte)), const(V16I32, 24))
        acc = b.add(acc, b.mul(weight, value))
    return acc


VARIANTS = {
    isa.name: isa
    for isa in (
        Isa("avx512vnni", _vnni512, _vnni512, 128, 16, True),
        Isa("avx2vnni", _vnni256, _vnni256, 128, 4, True),
        Isa("avx2", _avx2_dot4, _avx2_dot8, 0, 4, True),
        Isa("neon", _neon_dot4, _neon_dot8, 0, 4, True),
        Isa("portable", _portable, _portable, 128, 4, False),
    )
}
