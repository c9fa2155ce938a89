"""Products with the neurons of one group of 32: few by their records, all by their tiles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import layout as L
from . import thread_memory as M
from .isa import Isa
from .neuron import columns_kernel, row_kernel
from .plain import clear
from .simd import i64_at, lowest, types, u8_at
from .vector import helper, prefetch


@helper
def chunks_of(args: Any) -> int:
    """Chunks of 64 outputs in a column of the down projection."""
    return (args[L.D_PAD] + 63) >> 6


def build(isa: Isa, multiply: Any) -> SimpleNamespace:
    """Return rows, tile, tiles, add_columns and fetch_columns."""
    row4, row4m, row8 = (_row(isa, kind) for kind in (L.INT4, L.INT4_MINIMA, L.INT8))
    columns4, columns4m, columns8 = (
        _columns(isa, kind) for kind in (L.INT4, L.INT4_MINIMA, L.INT8)
    )

    @helper
    def row_product(matrix: int, row: int, acts: int, out: int) -> None:
        m, a = i64_at(matrix), i64_at(acts)
        kind, pairs = m[L.KIND], (m[L.GROUPS] + 1) >> 1
        x, xs, bias, sums = a[L.A_QUANTS], a[L.A_SCALES], a[L.A_BIAS], a[L.A_SUMS]
        apart, count = a[L.A_OUTLIERS], a[L.A_APART]
        if kind == L.INT4:
            row4(row, x, xs, bias, sums, pairs, apart, count, out)
        elif kind == L.INT8:
            row8(row, x, xs, bias, sums, pairs, apart, count, out)
        else:
            row4m(row, x, xs, bias, sums, pairs, apart, count, out)

    @helper
    def rows(
        places: int,
        matrix: int,
        start: int,
        lines: int,
        masks: Any,
        group: int,
        ahead: int,
        acts: int,
        out: int,
    ) -> None:
        """Products of a group's neurons in its mask with their rows, the other lanes zero.

        Rows lie `start` bytes into records at `places`. Meanwhile `lines` from there on of the
        neurons of group `ahead`, 0 for none, are asked for: one neuron with each row, since too
        many at once would stall, and no prefetcher of the CPU finds by itself what comes next.
        """
        clear(out, 32)
        mask, waiting = types.int64(masks[group]), 0
        here, there = i64_at(places + 256 * group), i64_at(places + 256 * ahead)
        if ahead != 0:
            waiting = types.int64(masks[ahead])
        while mask != 0 or waiting != 0:
            if waiting != 0:
                prefetch(there[lowest(waiting)] + start, lines)
                waiting &= waiting - 1
            if mask != 0:
                lane = lowest(mask)
                mask &= mask - 1
                row_product(matrix, here[lane] + start, acts, out + 4 * lane)

    @helper
    def tile(matrix: int, count: int, index: int, acts: int, out: int) -> None:
        """A tile's product, zeros behind the last of `count` tiles."""
        if index < count:
            multiply(matrix, index, acts, 0, 1, out, 0)
        else:
            clear(out, 16)

    @helper
    def tiles(matrix: int, count: int, group: int, acts: int, out: int) -> None:
        """Products of all neurons of a group."""
        tile(matrix, count, 2 * group, acts, out)
        tile(matrix, count, 2 * group + 1, acts, out + 64)

    @helper
    def add_columns(
        args: Any, f: Any, layer: int, group: int, mask: int, memory: int, y: int
    ) -> None:
        """Add a group's neurons in `mask` to y; their values lie quantized in `memory`."""
        base = f[L.F_SHARED] + f[L.F_SHARED_BYTES] * group
        places, down = i64_at(f[L.F_PLACES] + 256 * group), f[L.F_DOWN]
        columns, values = i64_at(memory + M.COLUMNS), u8_at(memory + M.VALUES)
        quants, count = u8_at(memory + M.QUANTS), 0
        while mask != 0:
            lane = lowest(mask)
            mask &= mask - 1
            columns[count] = places[lane] + down
            values[count] = quants[lane]
            count += 1
        while count & 3:
            columns[count], values[count] = columns[0], 0
            count += 1
        chunks, quads = chunks_of(args), count >> 2
        where, what = memory + M.COLUMNS, memory + M.VALUES
        scale, bias, sums = memory + M.SCALE, memory + M.BIAS, memory + M.SUMS
        kind = i64_at(layer + 8 * L.DOWN)[L.KIND]
        if kind == L.INT4:
            columns4(base, where, what, quads, scale, bias, sums, chunks, y)
        elif kind == L.INT8:
            columns8(base, where, what, quads, scale, bias, sums, chunks, y)
        else:
            columns4m(base, where, what, quads, scale, bias, sums, chunks, y)

    @helper
    def fetch_columns(f: Any, group: int, mask: int) -> None:
        """Ask for what adding a group's neurons in `mask` reads."""
        lines = (f[L.F_RECORD_BYTES] - f[L.F_DOWN]) >> 6
        places, down = i64_at(f[L.F_PLACES] + 256 * group), f[L.F_DOWN]
        prefetch(f[L.F_SHARED] + f[L.F_SHARED_BYTES] * group, f[L.F_SHARED_BYTES] >> 6)
        while mask != 0:
            prefetch(places[lowest(mask)] + down, lines)
            mask &= mask - 1

    return SimpleNamespace(
        rows=rows, tile=tile, tiles=tiles, add_columns=add_columns, fetch_columns=fetch_columns
    )


def _row(isa: Isa, kind: int) -> Any:
    intrinsic = row_kernel(isa, kind)

    @helper
    def row(
        a: int,
        x: int,
        scales: int,
        bias: int,
        sums: int,
        pairs: int,
        apart: int,
        count: int,
        out: int,
    ) -> None:
        intrinsic(a, x, scales, bias, sums, pairs, apart, count, out)

    return row


def _columns(isa: Isa, kind: int) -> Any:
    intrinsic = columns_kernel(isa, kind)

    @helper
    def columns(
        base: int,
        where: int,
        values: int,
        quads: int,
        scale: int,
        bias: int,
        sums: int,
        chunks: int,
        y: int,
    ) -> None:
        intrinsic(base, where, values, quads, scale, bias, sums, chunks, y)

    return columns
