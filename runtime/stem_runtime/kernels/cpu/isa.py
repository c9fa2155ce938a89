"""What each instruction set contributes: the 4-byte dot product, and how to convert halves.

Weights arrive as bytes, 4 consecutive inputs of a row to a lane; activations are signed bytes,
either the same 4 for all lanes or lane by lane. `dot4` takes weights of 0..15; `dot8` takes int8
weights stored with 128 added, and `bias8` says how much of that offset is still in its result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .simd import I8, I16, Builder, Value, call, concat, const, ir, lanes, splat

Piece = Callable[[Builder, Value, Value, Value], Value]
"""(builder, int32 [n], weight bytes [4n], activation bytes [4n]) -> int32 [n], one register."""


@dataclass(frozen=True, slots=True)
class Isa:
    """One kernel variant. `width` is the lanes of a register, `tokens` how many tokens share each
    load of a weight in prefill."""

    name: str
    width: int
    piece4: Piece
    piece8: Piece
    bias8: int
    tokens: int
    native_half: bool

    def dot4(self, b: Builder, acc: Value, w: Value, x: Value) -> Value:
        return self._dot(b, self.piece4, acc, w, x)

    def dot8(self, b: Builder, acc: Value, w: Value, x: Value) -> Value:
        return self._dot(b, self.piece8, acc, w, x)

    def _dot(self, b: Builder, piece: Piece, acc: Value, w: Value, x: Value) -> Value:
        """`x` is an int32 of 4 bytes for all lanes, or bytes for each lane like `w`."""
        width = min(self.width, acc.type.count)
        shared = isinstance(x.type, ir.IntType)
        if shared:
            x = b.bitcast(splat(b, x, width), ir.VectorType(I8, 4 * width))
        parts = []
        for start in range(0, acc.type.count, width):
            here = x if shared else lanes(b, x, 4 * start, 4 * width)
            part = lanes(b, w, 4 * start, 4 * width)
            parts.append(piece(b, lanes(b, acc, start, width), part, here))
        return concat(b, parts)


def _signed(b: Builder, w: Value) -> Value:
    return b.xor(w, const(w.type, -128))


def _dpbusd(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}"
    # operands of int32 are the older form, which later versions of LLVM still read
    return call(b, name, acc.type, [acc, b.bitcast(w, acc.type), b.bitcast(x, acc.type)])


def _madd(b: Builder, acc: Value, unsigned: Value, signed: Value) -> Value:
    wide = ir.VectorType(I16, 16)
    pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", wide, [unsigned, signed])
    quads = call(b, "llvm.x86.avx2.pmadd.wd", acc.type, [pairs, const(wide, 1)])
    return b.add(acc, quads)


def _madd_signed(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    # unsigned bytes up to 255 would saturate the 16-bit pair sums; magnitudes up to 128 do not
    signed = _signed(b, w)
    magnitude = call(b, "llvm.x86.avx2.psign.b", w.type, [signed, signed])
    return _madd(b, acc, magnitude, call(b, "llvm.x86.avx2.psign.b", w.type, [x, signed]))


def _sdot(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, [acc, w, x])


def _sdot_signed(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    return _sdot(b, acc, _signed(b, w), x)


def _multiply(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    """Four multiplications per lane in plain 32-bit arithmetic, for any LLVM target."""
    words, values = b.bitcast(w, acc.type), b.bitcast(x, acc.type)
    for byte in range(4):
        weight = b.and_(b.lshr(words, const(acc.type, 8 * byte)), const(acc.type, 0xFF))
        value = b.ashr(b.shl(values, const(acc.type, 24 - 8 * byte)), const(acc.type, 24))
        acc = b.add(acc, b.mul(weight, value))
    return acc


VARIANTS = {
    isa.name: isa
    for isa in (
        Isa("avx512vnni", 16, _dpbusd, _dpbusd, 128, 16, True),
        Isa("avx2vnni", 8, _dpbusd, _dpbusd, 128, 4, True),
        Isa("avx2", 8, _madd, _madd_signed, 0, 4, True),
        Isa("neon", 4, _sdot, _sdot_signed, 0, 4, True),
        Isa("portable", 16, _multiply, _multiply, 128, 4, False),
    )
}
