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
from .simd import i32_at, i64_at, lowest, types, u8_at, u32_at
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


def build(isa: Isa, multiply: Any) -> SimpleNamespace:
    """Return rows, tile and add_columns."""
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
    def add_columns(
        args: Any,
        f: Any,
        layer: int,
        group: int,
        here: int,
        count: int,
        following: int,
        there: int,
        ahead: int,
        memory: int,
        y: int,
    ) -> None:
        """Add the `count` neurons of a group that are listed `here`, with values in GATES, to y.

        What is likely added next is asked for meanwhile: `ahead` neurons of group `following`,
        listed `there`.
        """
        acts, values = memory + M.ACTS, memory + M.VALUES
        quantize_one(args[L.GATES] + 128 * group, i64_at(acts), 0, 1, 0, 0, 1)
        quads, next_quads = (count + 3) >> 2, (ahead + 3) >> 2
        neurons, quants, words = i32_at(here), u8_at(memory + M.QUANTS), u32_at(values)
        for quad in range(quads):  # as words, since the CPU waits where words are read from bytes
            word = 0
            for i in range(4):
                if 4 * quad + i < count:
                    word |= types.int64(quants[neurons[4 * quad + i] & 31]) << (8 * i)
            words[quad] = types.uint32(word)
        scales = f[L.F_SHARED] + f[L.F_SHARED_BYTES] * group
        after = f[L.F_SHARED] + f[L.F_SHARED_BYTES] * following
        chunks, kind = chunks_of(args), i64_at(layer + 8 * L.DOWN)[L.KIND]
        places, down = f[L.F_PLACES], f[L.F_DOWN]
        if kind == L.INT4:
            columns4(
                scales, here, places, down, values, quads, acts, chunks, y, after, there, next_quads
            )
        elif kind == L.INT8:
            columns8(
                scales, here, places, down, values, quads, acts, chunks, y, after, there, next_quads
            )
        else:
            columns4m(
                scales, here, places, down, values, quads, acts, chunks, y, after, there, next_quads
            )

    return SimpleNamespace(rows=rows, tile=tile, add_columns=add_columns)
