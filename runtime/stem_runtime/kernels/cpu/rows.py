"""Products with single neurons' rows of gate or up.

The layout is that of `sparsity/neurons.py`. Integer sums are the same as those over tiles, so that
skipping neurons changes results by no more than the order of the float sums.
"""

from __future__ import annotations

from typing import Any

from . import layout as L
from .isa import Isa
from .outliers import QUANT_OFFSET, outlier_at
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
    concat,
    const,
    counted_loop,
    fma,
    gather,
    half_to_float,
    kernel,
    lanes,
    load,
    offset,
    pick,
    reduce_rows,
    splat,
    store,
    vec,
)
from .vector import fetch_lines

QUANT_BYTES = {L.INT4: 32, L.INT4_MINIMA: 32, L.INT8: 64}
"""Of a row, for two groups."""


def together(isa: Isa) -> int:
    """How many rows share a load of the input: as many as leave its sums in registers."""
    return isa.width // 4


def rows_kernel(isa: Isa, kind: int) -> Any:
    """Intrinsic (listed, quads, places, start, lines, acts, pairs, out): rows of gate or up.

    `listed` int32 [4 * quads + ROWS_AHEAD] are neurons. The row of neuron n lies `start` bytes
    behind the address in `places`, int64 [neurons]; its product goes to float32 n of `out`. Of the
    row ROWS_AHEAD places further on, `lines` lines of 64 bytes are asked for meanwhile. `acts` are
    the words of one token's activations, with zeros up to 2 * pairs groups.
    """
    return kernel(lambda b, *args: _Rows(b, isa, kind).emit(*args), 8)


class _Rows:
    """Emits the products of a few rows at a time; `scales` and `minima` are offsets in a row."""

    def __init__(self, b: Builder, isa: Isa, kind: int) -> None:
        self.b, self.isa, self.kind, self.count = b, isa, kind, together(isa)

    def emit(
        self,
        listed: Value,
        quads: Value,
        places: Value,
        start: Value,
        lines: Value,
        acts: Value,
        pairs: Value,
        out: Value,
    ) -> None:
        b = self.b
        self.x, self.x_scales, self.x_bias, self.x_sums, self.apart, apart = (
            load(b, b.add(acts, const(I64, 8 * word)), I64)
            for word in (L.A_QUANTS, L.A_SCALES, L.A_BIAS, L.A_SUMS, L.A_OUTLIERS, L.A_APART)
        )
        self.scales = b.mul(pairs, const(I64, QUANT_BYTES[self.kind]))
        self.minima = b.add(self.scales, b.mul(pairs, const(I64, 4)))
        with counted_loop(b, b.mul(quads, const(I64, 4 // self.count)), []) as (turn, _, _):
            here = b.mul(turn, const(I64, self.count))
            neurons, rows = self._rows(listed, here, places, start)
            _, ahead = self._rows(listed, b.add(here, const(I64, L.ROWS_AHEAD)), places, start)
            sums = self._dots(rows, ahead, pairs, lines)
            with counted_loop(b, apart, [reduce_rows(b, sums)]) as (rank, (total,), totals):
                column, value = outlier_at(b, offset(b, self.apart, rank, L.OUTLIER_BYTES))
                weights = self._weights(rows, column)
                totals.append(b.fadd(total, b.fmul(weights, splat(b, value, self.count))))
            for i, neuron in enumerate(neurons):
                value = b.extract_element(totals[0], const(I32, i))
                store(b, value, offset(b, out, neuron, 4))

    def _rows(
        self, listed: Value, first: Value, places: Value, start: Value
    ) -> tuple[list[Value], list[Value]]:
        """Neurons from place `first` of the list on, and where their rows are."""
        b, here = self.b, offset(self.b, listed, first, 4)
        neurons = [
            b.zext(load(b, b.add(here, const(I64, 4 * i)), I32), I64) for i in range(self.count)
        ]
        rows = [b.add(load(b, offset(b, places, n, 8), I64), start) for n in neurons]
        return neurons, rows

    def _dots(
        self, rows: list[Value], ahead: list[Value], pairs: Value, lines: Value
    ) -> list[Value]:
        """Sums of 16 lanes for each row; meanwhile the rows ahead are asked for, line by line."""
        b = self.b

        def fetch(line: Value) -> None:
            for row in ahead:
                fetch_lines(b, offset(b, row, line, 64), 64)

        sums = [const(V16F32, 0.0)] * self.count
        whole = pairs if self.kind == L.INT8 else b.ashr(pairs, const(I64, 1))
        with counted_loop(b, whole, sums) as (index, sofar, sums):
            fetch(index)
            first, groups = (index, 2) if self.kind == L.INT8 else (b.shl(index, const(I64, 1)), 4)
            sums += self._block(rows, sofar, first, groups)
        if self.kind != L.INT8:
            last = b.sub(pairs, const(I64, 1))
            with counted_loop(b, b.and_(pairs, const(I64, 1)), sums) as (_, sofar, sums):
                sums += self._block(rows, sofar, last, 2)
        with counted_loop(b, b.sub(lines, whole), []) as (index, _, _):
            fetch(b.add(whole, index))
        return sums

    def _block(
        self, rows: list[Value], sums: list[Value], first: Value, groups: int
    ) -> list[Value]:
        """The sums plus the groups from pair `first` on: 2, or 4 where they fill a register."""
        b, kind = self.b, self.kind
        wide, times = (64, 8) if kind == L.INT8 else (16 * groups, 4)
        factor = _spread(b, load(b, offset(b, self.x_scales, first, 8), vec(F32, groups)), times)
        bias = load(b, offset(b, self.x_bias, first, 8), vec(I32, groups))
        start = const(vec(I32, wide // 4), 0)
        if kind == L.INT4:  # an int4 group's bias is split over four lanes
            start = lanes(b, _spread(b, b.ashr(bias, const(bias.type, 2)), 4), 0, wide // 4)
        elif kind == L.INT8 and self.isa.bias8:  # -8 times the sum becomes -128, over 8 lanes
            start = _spread(b, b.shl(bias, const(bias.type, 1)), 8)
        inputs = self._inputs(offset(b, self.x, first, 64), wide)
        total = None
        if kind == L.INT4_MINIMA:
            total = _spread(b, load(b, offset(b, self.x_sums, first, 8), vec(F32, groups)), 4)
        results = []
        for row, acc in zip(rows, sums, strict=True):
            quants = load(b, offset(b, row, first, QUANT_BYTES[kind]), vec(I8, wide))
            if kind == L.INT8:
                dot = self.isa.dot8(b, start, quants, inputs[0])
            else:
                dot = self.isa.dot4(b, start, b.and_(quants, const(quants.type, 15)), inputs[0])
                high = b.lshr(quants, const(quants.type, 4))
                dot = self.isa.dot4(b, dot, high, inputs[1])
            scale = self._halves(b.add(row, self.scales), first, groups, times)
            acc = fma(b, _wide(b, dot), b.fmul(scale, factor), acc)
            if total is not None:
                share = const(V16F32, groups / 16)  # as often as a value stands in the lanes
                least = self._halves(b.add(row, self.minima), first, groups, times)
                acc = fma(b, b.fmul(least, share), total, acc)
            results.append(acc)
        return results

    def _inputs(self, at: Value, wide: int) -> list[Value]:
        """The quantized inputs of `wide` bytes of weights, as those lie."""
        b = self.b
        if self.kind == L.INT8:
            return [load(b, at, V64I8)]
        ahead = load(b, at, vec(I8, wide))
        behind = load(b, b.add(at, const(I64, wide)), vec(I8, wide))
        even = [32 * (i // 16) + i % 16 for i in range(wide)]
        return [pick(b, ahead, behind, even), pick(b, ahead, behind, [i + 16 for i in even])]

    def _halves(self, base: Value, first: Value, groups: int, times: int) -> Value:
        b = self.b
        few = load(b, offset(b, base, first, 4), vec(I16, groups))
        return half_to_float(b, _spread(b, few, times), self.isa.native_half)

    def _weights(self, rows: list[Value], column: Value) -> Value:
        """One weight of each row, as float32."""
        b, kind = self.b, self.kind
        group, place = b.lshr(column, const(I64, 5)), b.and_(column, const(I64, 31))
        shift = const(I32, 0)
        at = column
        if kind != L.INT8:  # of a group, the first 16 are the low halves of its bytes
            at = b.add(b.mul(group, const(I64, 16)), b.and_(place, const(I64, 15)))
            shift = b.trunc(b.shl(b.lshr(place, const(I64, 4)), const(I64, 2)), I32)
        words = vec(I32, self.count)
        quants = b.zext(gather(b, [b.add(row, at) for row in rows], I8), words)
        if kind != L.INT8:
            quants = b.and_(b.lshr(quants, splat(b, shift, self.count)), const(words, 15))
        weights = b.sitofp(b.sub(quants, const(words, QUANT_OFFSET[kind])), vec(F32, self.count))
        weights = b.fmul(weights, self._scale_of(rows, self.scales, group))
        if kind != L.INT4_MINIMA:
            return weights
        return b.fadd(weights, self._scale_of(rows, self.minima, group))

    def _scale_of(self, rows: list[Value], base: Value, group: Value) -> Value:
        b = self.b
        at = b.add(base, b.mul(group, const(I64, 2)))
        halves = gather(b, [b.add(row, at) for row in rows], I16)
        return half_to_float(b, halves, self.isa.native_half)


def _spread(b: Builder, few: Value, times: int) -> Value:
    """Each of a few values `times` times over, round and round until 16 lanes are full."""
    return pick(b, few, few, [lane // times % few.type.count for lane in range(16)])


def _wide(b: Builder, acc: Value) -> Value:
    """Integer sums as 16 floats, the lanes that there are none for being zero."""
    if acc.type.count < 16:
        acc = concat(b, [acc, const(acc.type, 0)])
    return b.sitofp(acc, V16F32)
