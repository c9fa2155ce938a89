"""Gates of one FFN: whose are computed, and who passes the test."""

from __future__ import annotations

from typing import Any

from . import layout as L
from . import thread_memory as M
from .activations import cut_acts, quantize
from .masks import FULL, deal, test
from .neuron import spread, weigh
from .plain import clear, share
from .records import end_list, list_neurons, list_of
from .simd import f32_at, i32_at, i64_at, lowest, popcount, types, u32_at
from .vector import helper


@helper
def implied_row(args: Any, index: int, tid: int) -> int:
    """Which neurons of layer `index` one thread's neurons of the layer before imply."""
    row = (index & 1) * args[L.THREADS] + tid
    return args[L.IMPLIED] + 4 * row * args[L.FFN_GROUPS]


@helper
def imply(args: Any, index: int, first: int, mask: int, tid: int) -> None:
    """Make candidates of what neurons of a group, from `first` on, imply in the next layer."""
    f = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index)
    row, each = u32_at(implied_row(args, index + 1, tid)), f[L.F_IMPLIES_EACH]
    while mask != 0:
        neuron = first + lowest(mask)
        mask &= mask - 1
        others = i32_at(f[L.F_IMPLIES] + 4 * each * neuron)
        for i in range(each):
            other = types.int64(others[i])
            if other >= 0:
                row[other >> 5] |= types.uint32(1 << (other & 31))


@helper
def implied_in(args: Any, index: int, group: int) -> int:
    """Neurons of a group that the layer before made candidates; none if it ran dense."""
    if index == 0 or i64_at(args[L.FFN] + 8 * L.FFN_WORDS * (index - 1))[L.F_IMPLIES] == 0:
        return 0
    counts = i64_at(args[L.COUNTS] + 8 * L.LINE * (index - 1) * args[L.THREADS])
    if counts[L.COUNT_DENSE] != 0:
        return 0
    mask = 0
    for thread in range(args[L.THREADS]):
        mask |= types.int64(u32_at(implied_row(args, index, thread))[group])
    return mask


def build(gate: Any, multiply: Any, rows_product: Any) -> Any:
    """Return offer_and_gate(args, index, layer, acts, tid, cutoff, memory, counts)."""

    @helper
    def tiled_product(
        args: Any, words: int, matrix: int, group: int, done: int, acts: int, out: int
    ) -> int:
        """Products of a group, of those who are tiled, into float32 [32].

        Tiles before `done` were computed for the groups before; returns the first that was not.
        Threads of which one ends in a tile where the other begins both compute it.
        """
        f, packed = i64_at(words), args[L.UPS]
        places = i32_at(f[L.F_TILED_FIRST])
        first, last = types.int64(places[group]), types.int64(places[group + 1])
        end = (last + 15) >> 4
        for tile in range(max(done, first >> 4), end):
            multiply(matrix, tile, acts, 0, 1, packed + 64 * tile, 0)
        spread(packed + 4 * first, types.int64(u32_at(f[L.F_TILED])[group]), out)
        return max(done, end)

    @helper
    def predictor_inputs(words: int, acts: int, memory: int) -> int:
        """The input along the predictor's axes, quantized; returns its activations words."""
        axes = words + 8 * L.F_AXES
        tiles, groups = i64_at(axes)[L.TILES], i64_at(words + 8 * L.F_SCORES)[L.GROUPS]
        turned = memory + M.REST
        inner = turned + 128 * groups
        for tile in range(tiles):
            multiply(axes, tile, acts, 0, 1, turned + 64 * tile, 0)
        clear(turned + 64 * tiles, 16 * (2 * groups - tiles))
        cut_acts(inner, inner + 8 * L.ACTS_WORDS, groups, 0)
        quantize(turned, groups, inner, 0, 0, 1)
        return inner

    @helper
    def predicted(
        args: Any, words: int, group: int, done: int, inner: int, memory: int
    ) -> tuple[int, int]:
        """Whom of a group the predictor names; `done` tiles were computed before, and after it."""
        p, scores = memory + M.P, words + 8 * L.F_SCORES
        done = tiled_product(args, words, scores, group, done, inner, p)
        found, cutoffs = f32_at(p), f32_at(i64_at(words)[L.F_PREDICTED] + 128 * group)
        for lane in range(32):
            found[lane] -= cutoffs[lane]
        return test(p, 0.0, memory + M.MASK), done

    @helper
    def offer(
        args: Any, index: int, acts: int, tid: int, memory: int, offered: Any, more: Any
    ) -> tuple[int, int]:
        """Whose gates this thread computes: which groups, and who in them.

        `more` are those that the layer before made candidates, and that would not be any.
        """
        words = args[L.FFN] + 8 * L.FFN_WORDS * index
        f, groups, threads = i64_at(words), args[L.FFN_GROUPS], args[L.THREADS]
        source, inner, done = f[L.F_CANDIDATES], 0, 0
        chosen = args[L.CHOSEN] + 4 * groups * index
        if source == L.RESAMPLED and args[L.CHOSEN] == 0:
            source = L.ALL
        first, last = share(groups, tid, threads)
        if source == L.RESAMPLED:
            first, last = deal(chosen, groups, tid, threads)
        elif source == L.PREDICTED:
            inner = predictor_inputs(words, acts, memory)
        for group in range(first, last):
            implied, mask = 0, FULL
            if source != L.ALL:
                if source == L.RESAMPLED:
                    mask = types.int64(u32_at(chosen)[group])
                else:
                    mask, done = predicted(args, words, group, done, inner, memory)
                implied = implied_in(args, index, group) & ~mask
                mask |= implied
                if f[L.F_CORE] != 0:
                    mask |= types.int64(u32_at(f[L.F_CORE])[group])
            mask &= types.int64(u32_at(f[L.F_ALIVE])[group])
            offered[group], more[group] = types.uint32(mask), types.uint32(implied)
        return first, last

    @helper
    def offer_and_gate(
        args: Any,
        index: int,
        layer: int,
        acts: int,
        tid: int,
        cutoff: float,
        memory: int,
        counts: Any,
    ) -> None:
        """Gates of this thread's groups, and which of their neurons pass the test."""
        words = args[L.FFN] + 8 * L.FFN_WORDS * index
        f, matrix, tile = i64_at(words), layer + 8 * L.GATE, 0
        most = f[L.F_GATE_ROWS]
        offered, passed = u32_at(args[L.OFFERED]), u32_at(args[L.PASSED])
        first, last = offer(args, index, acts, tid, memory, offered, passed)
        listed, count = list_of(args, tid), 0
        for group in range(first, last):
            mask, g = types.int64(offered[group]), args[L.GATES] + 128 * group
            if popcount(mask) > most:
                tile = tiled_product(args, words, words + 8 * L.F_GATES, group, tile, acts, g)
            else:
                clear(g, 32)
                count = list_neurons(listed, count, group, mask)
        end_list(listed, count)
        places, lines, quads = f[L.F_GATE_PLACES], f[L.F_UP] >> 6, (count + 3) >> 2
        rows_product(matrix, listed, quads, places, 0, lines, acts, args[L.GATES])
        for group in range(first, last):
            mask, more, found = types.int64(offered[group]), types.int64(passed[group]), 0
            g, p = args[L.GATES] + 128 * group, args[L.POTENTIALS] + 128 * group
            if mask == 0:
                clear(p, 32)
            else:
                gate(args, g, memory + M.ONES, memory + M.P, 2)
                weigh(memory + M.P, f[L.F_WEIGHTS] + 128 * group, p)
                found = test(p, cutoff, memory + M.MASK) & mask
                if f[L.F_CORE] != 0:
                    core = types.int64(u32_at(f[L.F_CORE])[group]) & mask
                    counts[L.COUNT_CORE] += popcount(core & ~found)
                    found |= core
                counts[L.COUNT_IMPLIED] += popcount(more & found)
                counts[L.COUNT_CANDIDATES] += popcount(mask)
            passed[group] = types.uint32(found)

    return offer_and_gate
