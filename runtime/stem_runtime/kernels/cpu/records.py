"""Products with neurons: few by their records, whole groups of 32 by their tiles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import layout as L
from . import thread_memory as M
from .activations import quantize_one
from .columns import columns_kernel
from .isa import Isa
from .plain import clear
from .rows import rows_kernel
from .simd import i32_at, i64_at, lowest, types, u8_at
from .vector import helper


@helper
def chunks_of(args: Any) -> int:
    """Chunks of 64 outputs in a column of the down projection."""
    return (args[L.D_PAD] + 63) >> 6


@helper
def list_of(args: Any, tid: int) -> int:
    """Where one thread lists neurons: int32 [32 * FFN_GROUPS + LISTED_PAD]."""
    return args[L.LISTED] + 4 * (32 * args[L.FFN_GROUPS] + L.LISTED_PAD) * tid


@helper
def list_neurons(listed: int, count: int, group: int, mask: int) -> int:
    """Put a group's neurons in `mask` behind the `count` in a list; returns how many those are."""
    neurons = i32_at(listed)
    while mask != 0:
        neurons[count] = types.int32(32 * group + lowest(mask))
        mask &= mask - 1
        count += 1
    return count


@helper
def end_list(listed: int, count: int) -> None:
    """Repeat the last of `count` neurons in a list as often as products look ahead."""
    neurons = i32_at(listed)
    for i in range(L.LISTED_PAD):
        neurons[count + i] = neurons[max(count - 1, 0)]


@helper
def list_columns(f: Any, group: int, mask: int, out: int) -> int:
    """Addresses of a group's columns in `mask`, in fours, the last of them repeated."""
    places, down, columns = i64_at(f[L.F_PLACES] + 256 * group), f[L.F_DOWN], i64_at(out)
    count = 0
    while mask != 0:
        columns[count] = places[lowest(mask)] + down
        mask &= mask - 1
        count += 1
    while count & 3:
        columns[count] = columns[count - 1]
        count += 1
    return count >> 2


def build(isa: Isa, multiply: Any) -> SimpleNamespace:
    """Return rows, tile, tiles and add_columns."""
    rows4, rows4m, rows8 = (rows_kernel(isa, kind) for kind in (L.INT4, L.INT4_MINIMA, L.INT8))
    columns4, columns4m, columns8 = (
        columns_kernel(isa, kind) for kind in (L.INT4, L.INT4_MINIMA, L.INT8)
    )

    @helper
    def rows(
        matrix: int,
        listed: int,
        quads: int,
        places: int,
        start: int,
        lines: int,
        acts: int,
        out: int,
    ) -> None:
        """Products of the next 4 * quads neurons in a list with their rows: see `rows_kernel`."""
        m = i64_at(matrix)
        kind, pairs = m[L.KIND], (m[L.GROUPS] + 1) >> 1
        if kind == L.INT4:
            rows4(listed, quads, places, start, lines, acts, pairs, out)
        elif kind == L.INT8:
            rows8(listed, quads, places, start, lines, acts, pairs, out)
        else:
            rows4m(listed, quads, places, start, lines, acts, pairs, out)

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
        args: Any,
        f: Any,
        layer: int,
        group: int,
        mask: int,
        masks: Any,
        following: int,
        last: int,
        memory: int,
        y: int,
    ) -> None:
        """Add the neurons of a group in `mask`, whose values are in GATES, to y.

        Meanwhile what is likely added next is asked for: group `following`, if before `last`.
        """
        ahead, there = 0, memory + M.NEXT_COLUMNS
        if following < last:
            ahead = list_columns(f, following, types.int64(masks[following]), there)
        acts, values = memory + M.ACTS, u8_at(memory + M.VALUES)
        quantize_one(args[L.GATES] + 128 * group, i64_at(acts), 0, 1, 0, 0, 1)
        here, what, quants = memory + M.COLUMNS, memory + M.VALUES, u8_at(memory + M.QUANTS)
        quads, count = list_columns(f, group, mask, here), 0
        while mask != 0:
            values[count] = quants[lowest(mask)]
            mask &= mask - 1
            count += 1
        while count & 3:
            values[count] = 0
            count += 1
        scales = f[L.F_SHARED] + f[L.F_SHARED_BYTES] * group
        after = f[L.F_SHARED] + f[L.F_SHARED_BYTES] * min(following, last - 1)
        kind, chunks = i64_at(layer + 8 * L.DOWN)[L.KIND], chunks_of(args)
        if kind == L.INT4:
            columns4(scales, here, what, quads, acts, chunks, y, after, there, ahead)
        elif kind == L.INT8:
            columns8(scales, here, what, quads, acts, chunks, y, after, there, ahead)
        else:
            columns4m(scales, here, what, quads, acts, chunks, y, after, there, ahead)

    return SimpleNamespace(rows=rows, tile=tile, tiles=tiles, add_columns=add_columns)
