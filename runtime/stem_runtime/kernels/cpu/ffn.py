"""The FFN of one decoded token, only of the neurons that matter.

Gates come first: of all neurons (whole tiles) or of candidates only (their rows). A neuron whose
potential is over the cut-off reads its row of the up projection; if its contribution is over
another, its column of the down projection. Every thread adds its neurons to an output of its own,
and all outputs are summed behind a barrier. Between gates and the rest stands another barrier, so
that the survivors are dealt evenly however they are spread.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import layout as L
from . import thread_memory as M
from .candidates import build as build_gates
from .candidates import implied_row, imply
from .isa import Isa
from .masks import FULL, bounded, deal, multiplier, next_group, test
from .neuron import keep_masked, total, weigh
from .plain import clear, share
from .records import build as build_products
from .records import chunks_of, end_list, list_neurons, list_of
from .simd import bits_of_float, f32_at, i32_at, i64_at, popcount, types, u32_at
from .vector import float_of_bits, helper

REST_TOKENS = 15
"""How long a layer runs dense whose neurons nearly all fire, before that is looked at again."""

LONGEST_REST = 127
"""Where they still do, the next rest is twice as long, but no longer than this."""


@helper
def add_heat(args: Any, index: int, group: int, found: int) -> None:
    if args[L.HEAT] != 0:
        heat = f32_at(args[L.HEAT] + 128 * (index * args[L.FFN_GROUPS] + group))
        values = f32_at(found)
        for lane in range(32):
            heat[lane] += values[lane]


@helper
def output_of(args: Any, tid: int) -> int:
    """Where one thread adds up its neurons, float32 [column width]."""
    return args[L.PARTIAL_Y] + 256 * chunks_of(args) * tid


@helper
def note_dense(args: Any, index: int) -> None:
    """Count a layer that skipped nothing. By one thread, when all know that it does."""
    i64_at(args[L.COUNTS] + 8 * L.LINE * index * args[L.THREADS])[L.COUNT_DENSE] = 1
    rest = i32_at(args[L.REST] + 8 * index)
    rest[0] = max(rest[0] - 1, 0)


@helper
def rest_if_full(args: Any, index: int) -> None:
    """Let a layer run dense for a while where picking neurons costs more than reading them all."""
    f, threads = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), args[L.THREADS]
    seen, gated, active = 0, 0, 0
    for thread in range(threads):
        counts = i64_at(args[L.COUNTS] + 8 * L.LINE * (index * threads + thread))
        seen += counts[L.COUNT_CANDIDATES]
        gated += counts[L.COUNT_GATED]
        active += counts[L.COUNT_ACTIVE]
    if f[L.F_MODE] == L.MODE_GATE:
        full = 8 * gated > 5 * 32 * args[L.FFN_GROUPS]
    else:
        full = 16 * active > 15 * seen
    rest = i32_at(args[L.REST] + 8 * index)
    longer = min(max(2 * rest[1] + 1, REST_TOKENS), LONGEST_REST)
    rest[0] = rest[1] = longer if full else 0


def build(isa: Isa, blocks: SimpleNamespace, multiply: Any, barrier: Any) -> Any:
    """Return sparse_ffn(args, index, address, acts, tid, memory, sharpness)."""
    gate, products = blocks.gate, build_products(isa, multiply)
    rows_product, tile_product, add_columns = products.rows, products.tile, products.add_columns
    offer_and_gate = build_gates(gate, multiply, rows_product)

    @helper
    def settle(
        args: Any,
        index: int,
        group: int,
        mask: int,
        ups: int,
        cutoff: float,
        memory: int,
        counts: Any,
    ) -> int:
        """Hidden values of a group from its gates, whose place they take, and its ups.

        Returns which of the neurons in `mask` pass the contribution test; the rest become zero.
        """
        f, p = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), memory + M.P
        h = args[L.GATES] + 128 * group
        gate(args, h, ups, h, 2)
        keep_masked(h, mask)
        weigh(h, f[L.F_NORMS] + 128 * group, p)
        add_heat(args, index, group, p)
        kept = test(p, cutoff, memory + M.MASK)
        if f[L.F_CORE] != 0:
            core = types.int64(u32_at(f[L.F_CORE])[group])
            if f[L.F_MODE] == L.MODE_CONTRIBUTION:
                counts[L.COUNT_CORE] += popcount(core & mask & ~kept)
            kept |= core
        kept &= mask
        counts[L.COUNT_GATED] += popcount(mask)
        counts[L.COUNT_ACTIVE] += popcount(kept)
        if kept != 0:
            keep_masked(h, kept)
            keep_masked(p, kept)
            total(p, memory + M.CAPTURED)
            captured = float_of_bits(counts[L.COUNT_CAPTURED]) + f32_at(memory + M.CAPTURED)[0]
            counts[L.COUNT_CAPTURED] = bits_of_float(types.float64(captured))
        return kept

    @helper
    def add_neurons(
        args: Any,
        index: int,
        layer: int,
        group: int,
        mask: int,
        here: int,
        following: int,
        there: int,
        ahead: int,
        memory: int,
        tid: int,
    ) -> None:
        """Add the neurons of a settled group to this thread's output: see `add_columns`."""
        f, y = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), output_of(args, tid)
        count = popcount(mask)
        add_columns(args, f, layer, group, here, count, following, there, ahead, memory, y)
        if f[L.F_IMPLIES] != 0:
            imply(args, index, 32 * group, mask, tid)

    @helper
    def add_survivors(
        args: Any,
        index: int,
        layer: int,
        acts: int,
        tid: int,
        masks: int,
        cutoff: float,
        memory: int,
        counts: Any,
    ) -> None:
        """Ups and downs of this thread's share of the neurons that passed.

        Group by group, since the CPU's prefetchers read on behind a row: that is its column.
        """
        f, words = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), u32_at(masks)
        first, last = deal(masks, args[L.FFN_GROUPS], tid, args[L.THREADS])
        listed, count = list_of(args, tid), 0
        for group in range(first, last):
            count = list_neurons(listed, count, group, types.int64(words[group]))
        end_list(listed, count)
        places, up, ups = f[L.F_PLACES], f[L.F_UP], args[L.UPS]
        matrix, lines, begin, done = layer + 8 * L.UP, (f[L.F_DOWN] - up) >> 6, 0, 0
        group = next_group(words, first, last)
        while group < last:
            mask, following, ahead = (
                types.int64(words[group]),
                next_group(words, group + 1, last),
                0,
            )
            end = begin + popcount(mask)
            quads = (end - done + 3) >> 2
            rows_product(matrix, listed + 4 * done, quads, places, up, lines, acts, ups)
            done += 4 * quads  # where a group ends within a quad, the next one is begun
            kept = settle(args, index, group, mask, ups + 128 * group, cutoff, memory, counts)
            if kept != 0:
                if kept != mask:
                    list_neurons(listed, begin, group, kept)
                if following < last:
                    ahead = popcount(types.int64(words[following]))
                here, there, after = listed + 4 * begin, listed + 4 * end, min(following, last - 1)
                add_neurons(args, index, layer, group, kept, here, after, there, ahead, memory, tid)
            group, begin = following, end

    @helper
    def add_contributors(
        args: Any,
        index: int,
        layer: int,
        acts: int,
        tid: int,
        cutoff: float,
        memory: int,
        counts: Any,
    ) -> None:
        """Gates and ups of all of this thread's neurons, then downs of those that contribute.

        Not group by group: whatever breaks the stream of gates and ups makes it start slowly again.
        """
        f, kept = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), u32_at(args[L.PASSED])
        first, last = share(args[L.FFN_GROUPS], tid, args[L.THREADS])
        tiles, u = i64_at(layer + 8 * L.UP)[L.TILES], args[L.UPS] + 128 * first
        for group in range(first, last):
            mask = types.int64(u32_at(f[L.F_ALIVE])[group])
            g = args[L.GATES] + 128 * group
            for half in range(2):  # in the order in which they lie
                tile_product(layer + 8 * L.GATE, tiles, 2 * group + half, acts, g + 64 * half)
                tile_product(layer + 8 * L.UP, tiles, 2 * group + half, acts, u + 64 * half)
            found = settle(args, index, group, mask, u, cutoff, memory, counts)
            kept[group] = types.uint32(found)
            counts[L.COUNT_CANDIDATES] += popcount(mask)
        listed, count = list_of(args, tid), 0
        for group in range(first, last):
            count = list_neurons(listed, count, group, types.int64(kept[group]))
        end_list(listed, count)
        group, here = next_group(kept, first, last), listed
        while group < last:
            mask, following, ahead = types.int64(kept[group]), next_group(kept, group + 1, last), 0
            if following < last:
                ahead = popcount(types.int64(kept[following]))
            there, after = here + 4 * popcount(mask), min(following, last - 1)
            add_neurons(args, index, layer, group, mask, here, after, there, ahead, memory, tid)
            group, here = following, there

    @helper
    def sparse_ffn(
        args: Any, index: int, layer: int, acts: int, tid: int, memory: int, sharpness: float
    ) -> int:
        """What the FFN of layer `index` adds: the address of float32 [d_pad], this thread's own."""
        f, threads = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), args[L.THREADS]
        counts = i64_at(args[L.COUNTS] + 8 * L.LINE * (index * threads + tid))
        for i in range(L.LINE):
            counts[i] = 0
        M.prepare(memory)
        clear(output_of(args, tid), 64 * chunks_of(args))
        if f[L.F_IMPLIES] != 0:
            clear(implied_row(args, index + 1, tid), args[L.FFN_GROUPS])
        factor = multiplier(f, sharpness)
        first = float_of_bits(f[L.F_GATE_CUTOFF]) * factor
        second = float_of_bits(f[L.F_DOWN_CUTOFF]) * factor
        if f[L.F_MODE] == L.MODE_CONTRIBUTION:
            add_contributors(args, index, layer, acts, tid, second, memory, counts)
        else:
            offer_and_gate(args, index, layer, acts, tid, first, memory, counts)
            barrier(args[L.TEAM], threads)
            masks = bounded(args, f, first, memory + M.REST, counts)
            add_survivors(args, index, layer, acts, tid, masks, second, memory, counts)
        barrier(args[L.TEAM], threads)
        if tid == 0:
            rest_if_full(args, index)
        out, d_pad = f32_at(memory + M.REST), args[L.D_PAD]
        for i in range(d_pad):
            out[i] = f32_at(args[L.PARTIAL_Y])[i]
        for thread in range(1, threads):
            part = f32_at(output_of(args, thread))
            for i in range(d_pad):
                out[i] += part[i]
        return memory + M.REST

    return sparse_ffn


def build_test(blocks: SimpleNamespace) -> Any:
    """Return test_hidden(args, index, position, group, g, u, memory) for prefill."""
    gate = blocks.gate

    @helper
    def test_hidden(
        args: Any, index: int, position: int, group: int, g: int, u: int, memory: int
    ) -> None:
        """One token's hidden values of one group, into g, those that fail a test being zero."""
        f, p = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), memory + M.P
        mode, mask = L.MODE_DENSE, FULL
        if args[L.SPARSE] != 0 and position >= args[L.SINKS]:
            mode = f[L.F_MODE]
        core = types.int64(u32_at(f[L.F_CORE])[group]) if f[L.F_CORE] != 0 else 0
        if mode == L.MODE_GATE:
            gate(args, g, memory + M.ONES, p, 2)
            weigh(p, f[L.F_WEIGHTS] + 128 * group, p)
            mask = test(p, float_of_bits(f[L.F_GATE_CUTOFF]), memory + M.MASK) | core
        gate(args, g, u, g, 2)
        if mode != L.MODE_DENSE:
            keep_masked(g, mask & types.int64(u32_at(f[L.F_ALIVE])[group]))
        weigh(g, f[L.F_NORMS] + 128 * group, p)
        add_heat(args, index, group, p)
        if mode != L.MODE_DENSE:
            keep_masked(g, test(p, float_of_bits(f[L.F_DOWN_CUTOFF]), memory + M.MASK) | core)

    return test_hidden
