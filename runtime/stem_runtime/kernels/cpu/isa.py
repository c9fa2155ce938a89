"""What each instruction set contributes: the 4-byte dot product, and how to convert halves.

Weights arrive as bytes, 4 consecutive inputs of a row to a lane; activations are signed bytes,
either the same 4 for all lanes or lane by lane. `dot4` takes weights of 0..15; `dot8` takes int8
weights stored with 128 added, and `bias8` says how much of that offset is still in its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .simd import (
    I8,
    I16,
    I32,
    I64,
    LANES,
    V8I32,
    Builder,
    Value,
    call,
    concat,
    const,
    ir,
    lanes,
    load,
    splat,
)

Piece = Callable[[Builder, Value, Value, Value], Value]
"""(builder, int32 [n], weight bytes [4n], activation bytes [4n]) -> int32 [n], one register."""


_PAIRS, _QUADS = ir.VectorType(I16, 16), ir.VectorType(I32, 8)


@dataclass(frozen=True, slots=True)
class Isa:
    """One kernel variant. `width` is the lanes of a register, `tokens` how many tokens share each
    load of a weight in prefill, `block_rows` how many rows of a tile a block of tokens goes
    through at once, so that sums stay in registers. `by_lane`: the product takes 4 bytes for all
    lanes from any lane of a register. `pairs4`: `piece4` as sums of two bytes' products, which
    are exact in 16 bits for the 32 columns of a group.
    """

    name: str
    width: int
    piece4: Piece
    piece8: Piece
    bias8: int
    tokens: int
    block_rows: int
    native_half: bool
    by_lane: bool = False
    pairs4: Piece | None = None

    def rows(self, tokens: int) -> int:
        """How many rows of a tile a block of tokens goes through at once."""
        return LANES if tokens == 1 else self.block_rows

    def together(self, tokens: int) -> int:
        """How many tokens get a weight before the next one: all, unless weights fill registers."""
        return 1 if self.block_rows == LANES else tokens

    def inputs(self, b: Builder, address: Value) -> list[Value]:
        """A group of activations, 4 bytes in an int32 each."""
        if self.by_lane:
            words = load(b, address, V8I32)
            return [b.extract_element(words, const(I32, i)) for i in range(8)]
        return [load(b, b.add(address, const(I64, 4 * i)), I32) for i in range(8)]

    def dots4(
        self, b: Builder, starts: list[Value], weights: Iterable[Value], inputs: list[list[Value]]
    ) -> list[Value]:
        """`dot4` of a group: weights by 4 columns; for each token a start and its `inputs`."""
        piece = self.pairs4
        if piece is None:
            return _all(b, self.dot4, starts, weights, inputs)
        pairs = ir.VectorType(I16, 2 * starts[0].type.count)

        def add(b: Builder, acc: Value, w: Value, x: Value) -> Value:
            return self._dot(b, piece, acc, w, x)

        sums = _all(b, add, [const(pairs, 0)] * len(starts), weights, inputs)
        return [_join_pairs(b, start, pair) for start, pair in zip(starts, sums, strict=True)]

    def dots8(
        self, b: Builder, starts: list[Value], weights: Iterable[Value], inputs: list[list[Value]]
    ) -> list[Value]:
        """`dot8` of a group, likewise."""
        return _all(b, self.dot8, starts, weights, inputs)

    def dot4(self, b: Builder, acc: Value, w: Value, x: Value) -> Value:
        return self._dot(b, self.piece4, acc, w, x)

    def dot8(self, b: Builder, acc: Value, w: Value, x: Value) -> Value:
        return self._dot(b, self.piece8, acc, w, x)

    def _dot(self, b: Builder, piece: Piece, acc: Value, w: Value, x: Value) -> Value:
        """`x` is an int32 of 4 bytes for all lanes, or bytes for each lane like `w`."""
        rows = w.type.count // 4
        width = min(self.width, rows)
        shared = isinstance(x.type, ir.IntType)
        if shared:
            x = b.bitcast(splat(b, x, width), ir.VectorType(I8, 4 * width))
        parts, each = [], acc.type.count // rows
        for start in range(0, rows, width):
            here = x if shared else lanes(b, x, 4 * start, 4 * width)
            part = lanes(b, w, 4 * start, 4 * width)
            parts.append(piece(b, lanes(b, acc, each * start, each * width), part, here))
        return concat(b, parts)


def _all(
    b: Builder,
    dot: Piece,
    sums: list[Value],
    weights: Iterable[Value],
    inputs: list[list[Value]],
) -> list[Value]:
    for column, weight in enumerate(weights):
        sums = [dot(b, acc, weight, x[column]) for acc, x in zip(sums, inputs, strict=True)]
    return sums


def _signed(b: Builder, w: Value) -> Value:
    return b.xor(w, const(w.type, -128))


def _dpbusd(b: Builder, acc: Value, w: Value, x: Value) -> Value:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}"
    # operands of int32 are the older form, which later versions of LLVM still read
    return call(b, name, acc.type, [acc, b.bitcast(w, acc.type), b.bitcast(x, acc.type)])


def _madd(b: Builder, acc: Value, unsigned: Value, signed: Value) -> Value:
    return _join_pairs(b, acc, _madd_pairs(b, const(_PAIRS, 0), unsigned, signed))


def _madd_pairs(b: Builder, acc: Value, unsigned: Value, signed: Value) -> Value:
    return b.add(acc, call(b, "llvm.x86.avx2.pmadd.ub.sw", _PAIRS, [unsigned, signed]))


def _join_pairs(b: Builder, acc: Value, pairs: Value) -> Value:
    quads = []
    for start in range(0, pairs.type.count, _PAIRS.count):
        part = lanes(b, pairs, start, _PAIRS.count)
        quads.append(call(b, "llvm.x86.avx2.pmadd.wd", _QUADS, [part, const(_PAIRS, 1)]))
    return b.add(acc, concat(b, quads))


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
        Isa("avx512vnni", 16, _dpbusd, _dpbusd, 128, 16, 16, True),
        Isa("avx2vnni", 8, _dpbusd, _dpbusd, 128, 4, 8, True),
        Isa("avx2", 8, _madd, _madd_signed, 0, 4, 8, True, pairs4=_madd_pairs),
        Isa("neon", 4, _sdot, _sdot_signed, 0, 4, 8, True, by_lane=True),
        Isa("portable", 16, _multiply, _multiply, 128, 4, 8, False),
    )
}
