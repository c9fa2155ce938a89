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
from .blocks import clear, exp_of, quantize, quantize_one, share
from .isa import Isa
from .neuron import columns_kernel, keep_masked, passing, prefetch, row_kernel, total, weigh
from .simd import bits_of_float, f32_at, i32_at, i64_at, lowest, popcount, types, u8_at, u32_at
from .vector import float_of_bits, helper

FULL = 0xFFFFFFFF

ROWS_AT_MOST = 20
"""Candidates of a group of 32 beyond which its two tiles are cheaper than their rows."""

SHARED_COST = 2
"""What the scales that a group's columns share cost to read, in neurons."""

SEARCH_STEPS = 12
"""Halvings by which the cut-off is found that a floor or a cap asks for."""

# a thread's own memory while it works on an FFN, in bytes from its start
_U, _P, _H, _ONES = 0, 128, 256, 384
_QUANTS, _SCALE, _BIAS, _SUMS, _MASK, _CAPTURED = 512, 544, 548, 552, 556, 560
_VALUES, _COLUMNS, _ACTS = 576, 640, 960
_REST = 1024  # the summed output, float32 [d_pad], then masks uint32 [FFN_GROUPS] or a predictor


@helper
def next_group(masks: Any, group: int, last: int) -> int:
    """The first group from `group` on that has a neuron, `last` for none."""
    while group < last and masks[group] == 0:
        group += 1
    return group


@helper
def prepare(memory: int) -> None:
    """Lay out one group of quantized activations, and a group of ones, in a thread's memory."""
    a, ones = i64_at(memory + _ACTS), f32_at(memory + _ONES)
    a[L.A_QUANTS], a[L.A_SCALES] = memory + _QUANTS, memory + _SCALE
    a[L.A_BIAS], a[L.A_SUMS] = memory + _BIAS, memory + _SUMS
    for i in range(32):
        ones[i] = 1.0


@helper
def multiplier(f: Any, sharpness: float) -> float:
    """What a token's cut-offs are multiplied by: less where its attention is sharp."""
    strength = float_of_bits(f[L.F_ATTENTION])
    if strength == 0.0:
        return 1.0
    power = exp_of(types.float32(strength * (float_of_bits(f[L.F_SHARPNESS]) - sharpness)))
    return min(max(types.float64(power), 0.25), 4.0)


@helper
def test(values: int, cutoff: float, memory: int) -> int:
    """A bit for each of 32 values that is over the cut-off."""
    passing(values, bits_of_float(types.float64(cutoff)), memory + _MASK)
    return types.int64(u32_at(memory + _MASK)[0])


@helper
def add_heat(args: Any, index: int, group: int, found: int) -> None:
    if args[L.HEAT] != 0:
        heat = f32_at(args[L.HEAT] + 128 * (index * args[L.FFN_GROUPS] + group))
        values = f32_at(found)
        for lane in range(32):
            heat[lane] += values[lane]


@helper
def deal(masks: int, groups: int, tid: int, threads: int) -> tuple[int, int]:
    """The range of groups that is one thread's even share of the neurons in `masks`."""
    words, all_ = u32_at(masks), 0
    for group in range(groups):
        if words[group] != 0:
            all_ += popcount(types.int64(words[group])) + SHARED_COST
    done, first, last = 0, -1, groups
    for group in range(groups):
        if first < 0 and done * threads >= tid * all_:
            first = group
        if done * threads >= (tid + 1) * all_:
            last = group
            break
        if words[group] != 0:
            done += popcount(types.int64(words[group])) + SHARED_COST
    return (first, last) if first >= 0 else (last, last)


@helper
def count_of(masks: int, groups: int) -> int:
    words, count = u32_at(masks), 0
    for group in range(groups):
        count += popcount(types.int64(words[group]))
    return count


@helper
def retest(args: Any, cutoff: float, out: int) -> int:
    """Masks of all neurons at another cut-off, into `out`; returns how many pass."""
    groups, count = args[L.FFN_GROUPS], 0
    offered, found = u32_at(args[L.OFFERED]), u32_at(out)
    for group in range(groups):
        passing(args[L.POTENTIALS] + 128 * group, bits_of_float(cutoff), out + 4 * group)
        mask = types.int64(found[group] & offered[group])
        count += popcount(mask)
        found[group] = mask
    return count


@helper
def bounded(args: Any, f: Any, cutoff: float, out: int, counts: Any) -> int:
    """Where the masks are that keep to the layer's floor and cap; `out` if they had to change.

    Every thread finds the same by itself, which is cheaper than to meet for it.
    """
    groups = args[L.FFN_GROUPS]
    count = count_of(args[L.PASSED], groups)
    if count > f[L.F_CAP]:
        low, high = cutoff, cutoff
        p = f32_at(args[L.POTENTIALS])
        for neuron in range(32 * groups):
            high = max(high, types.float64(p[neuron]))
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2
            if retest(args, middle, out) > f[L.F_CAP]:
                low = middle
            else:
                high = middle
        retest(args, high, out)
        counts[L.COUNT_BOUNDED] = -1
    elif count < f[L.F_FLOOR] and cutoff > 0.0:
        low, high = 0.0, cutoff
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2
            if retest(args, middle, out) < f[L.F_FLOOR]:
                high = middle
            else:
                low = middle
        retest(args, low, out)
        counts[L.COUNT_BOUNDED] = 1
    else:
        return args[L.PASSED]
    if f[L.F_CORE] != 0:
        masks = u32_at(out)
        core, offered = u32_at(f[L.F_CORE]), u32_at(args[L.OFFERED])
        for group in range(groups):
            masks[group] |= core[group] & offered[group]
    return out


def build(isa: Isa, blocks: SimpleNamespace, multiply: Any, barrier: Any, cut_acts: Any) -> Any:
    """Return sparse_ffn(args, index, address, acts, tid, memory, sharpness)."""
    gate = blocks.gate
    row4, row4m, row8 = (_row(isa, kind) for kind in (L.INT4, L.INT4_MINIMA, L.INT8))
    columns4, columns4m, columns8 = (
        _columns(isa, kind) for kind in (L.INT4, L.INT4_MINIMA, L.INT8)
    )

    @helper
    def row_product(matrix: int, row: int, acts: int, out: int) -> None:
        m, a = i64_at(matrix), i64_at(acts)
        kind, pairs = m[L.KIND], (m[L.GROUPS] + 1) >> 1
        x, xs, bias, sums = a[L.A_QUANTS], a[L.A_SCALES], a[L.A_BIAS], a[L.A_SUMS]
        if kind == L.INT4:
            row4(row, x, xs, bias, sums, pairs, out)
        elif kind == L.INT8:
            row8(row, x, xs, bias, sums, pairs, out)
        else:
            row4m(row, x, xs, bias, sums, pairs, out)

    @helper
    def rows_product(matrix: int, rows: int, stride: int, mask: int, acts: int, out: int) -> None:
        """Products of a group's neurons in `mask`, the other lanes zero; `rows` is the first's."""
        clear(out, 32)
        while mask != 0:
            lane = lowest(mask)
            mask &= mask - 1
            row_product(matrix, rows + stride * lane, acts, out + 4 * lane)

    @helper
    def survivors_product(
        f: Any, matrix: int, group: int, mask: int, acts: int, out: int, ahead: int, waiting: int
    ) -> None:
        """Ups of the neurons in `mask`, while the memory of group `ahead` is asked for.

        Its neurons `waiting` are asked for one with each row, since too many at once would stall,
        and no prefetcher of the CPU finds what comes next by itself.
        """
        clear(out, 32)
        each = f[L.F_RECORD_BYTES]
        rows = f[L.F_RECORDS] + 32 * each * group + f[L.F_UP]
        others = f[L.F_RECORDS] + 32 * each * ahead + f[L.F_UP]
        lines = (each - f[L.F_UP]) >> 6
        while mask != 0 or waiting != 0:
            if waiting != 0:
                prefetch(others + each * lowest(waiting), lines)
                waiting &= waiting - 1
            if mask != 0:
                lane = lowest(mask)
                mask &= mask - 1
                row_product(matrix, rows + each * lane, acts, out + 4 * lane)

    @helper
    def tiles_product(matrix: int, tiles: int, group: int, acts: int, out: int) -> None:
        """Products of all neurons of a group, zeros behind the last of `tiles` tiles."""
        for half in range(2):
            if 2 * group + half < tiles:
                multiply(matrix, 2 * group + half, acts, 0, 1, out + 64 * half, 0)
            else:
                clear(out + 64 * half, 16)

    @helper
    def add_columns(
        args: Any, f: Any, layer: int, group: int, mask: int, memory: int, y: int
    ) -> None:
        """Add a group's neurons in `mask` to y; their values lie quantized in `memory`."""
        base = f[L.F_SHARED] + f[L.F_SHARED_BYTES] * group
        first = f[L.F_RECORDS] + 32 * f[L.F_RECORD_BYTES] * group + f[L.F_DOWN]
        columns, values = i64_at(memory + _COLUMNS), u8_at(memory + _VALUES)
        quants, count = u8_at(memory + _QUANTS), 0
        while mask != 0:
            lane = lowest(mask)
            mask &= mask - 1
            columns[count] = first + f[L.F_RECORD_BYTES] * lane
            values[count] = quants[lane]
            count += 1
        while count & 3:
            columns[count], values[count] = first, 0
            count += 1
        chunks, quads = (args[L.D_PAD] + 63) >> 6, count >> 2
        where, what = memory + _COLUMNS, memory + _VALUES
        scale, bias, sums = memory + _SCALE, memory + _BIAS, memory + _SUMS
        kind = i64_at(layer + 8 * L.DOWN)[L.KIND]
        if kind == L.INT4:
            columns4(base, where, what, quads, scale, bias, sums, chunks, y)
        elif kind == L.INT8:
            columns8(base, where, what, quads, scale, bias, sums, chunks, y)
        else:
            columns4m(base, where, what, quads, scale, bias, sums, chunks, y)

    @helper
    def finish_group(
        args: Any,
        index: int,
        layer: int,
        group: int,
        mask: int,
        cutoff: float,
        memory: int,
        y: int,
        counts: Any,
    ) -> int:
        """From gates and ups (in `memory`) to y. Returns which neurons were added to it."""
        f, h, p = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), memory + _H, memory + _P
        gate(args, args[L.GATES] + 128 * group, memory + _U, h, 2)
        keep_masked(h, mask)
        weigh(h, f[L.F_NORMS] + 128 * group, p)
        add_heat(args, index, group, p)
        kept = test(p, cutoff, memory)
        if f[L.F_CORE] != 0:
            core = types.int64(u32_at(f[L.F_CORE])[group])
            if f[L.F_MODE] == L.MODE_CONTRIBUTION:
                counts[L.COUNT_CORE] += popcount(core & mask & ~kept)
            kept |= core
        kept &= mask
        if kept == 0:
            return 0
        keep_masked(h, kept)
        keep_masked(p, kept)
        total(p, memory + _CAPTURED)
        captured = float_of_bits(counts[L.COUNT_CAPTURED]) + f32_at(memory + _CAPTURED)[0]
        counts[L.COUNT_CAPTURED] = bits_of_float(types.float64(captured))
        quantize_one(h, i64_at(memory + _ACTS), 0, 1, 0, 0, 1)
        add_columns(args, f, layer, group, kept, memory, y)
        if f[L.F_IMPLIES] != 0:
            imply(args, index, 32 * group, kept, y)
        return kept

    @helper
    def implied_row(args: Any, index: int, tid: int) -> int:
        """Which neurons of layer `index` one thread's neurons of the layer before imply."""
        row = (index & 1) * args[L.THREADS] + tid
        return args[L.IMPLIED] + 4 * row * args[L.FFN_GROUPS]

    @helper
    def imply(args: Any, index: int, first: int, mask: int, y: int) -> None:
        f = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index)
        width = 256 * ((args[L.D_PAD] + 63) >> 6)
        tid = (y - args[L.PARTIAL_Y]) // width
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
        """Neurons of a group that the layer before made candidates."""
        if index == 0 or i64_at(args[L.FFN] + 8 * L.FFN_WORDS * (index - 1))[L.F_IMPLIES] == 0:
            return 0
        mask = 0
        for thread in range(args[L.THREADS]):
            mask |= types.int64(u32_at(implied_row(args, index, thread))[group])
        return mask

    @helper
    def predictor_inputs(words: int, acts: int, memory: int) -> int:
        """The input along the predictor's axes, quantized; returns its activations words."""
        axes = words + 8 * L.F_AXES
        tiles, groups = i64_at(axes)[L.TILES], i64_at(words + 8 * L.F_SCORES)[L.GROUPS]
        turned = memory + _REST
        inner = turned + 128 * groups
        for tile in range(tiles):
            multiply(axes, tile, acts, 0, 1, turned + 64 * tile, 0)
        cut_acts(inner, inner + 8 * L.ACTS_WORDS, groups)
        quantize(turned, groups, inner, 0, 0, 1)
        return inner

    @helper
    def predicted(f: Any, words: int, group: int, inner: int, memory: int) -> int:
        p, scores = memory + _P, words + 8 * L.F_SCORES
        tiles_product(scores, i64_at(scores)[L.TILES], group, inner, p)
        found, cutoffs = f32_at(p), f32_at(f[L.F_PREDICTED] + 128 * group)
        for lane in range(32):
            found[lane] -= cutoffs[lane]
        return test(p, 0.0, memory)

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
        f, groups, threads = i64_at(words), args[L.FFN_GROUPS], args[L.THREADS]
        source, inner = f[L.F_CANDIDATES], 0
        chosen = args[L.CHOSEN] + 4 * groups * index
        if source == L.RESAMPLED and args[L.CHOSEN] == 0:
            source = L.ALL
        first, last = share(groups, tid, threads)
        if source == L.RESAMPLED:
            first, last = deal(chosen, groups, tid, threads)
        elif source == L.PREDICTED:
            inner = predictor_inputs(words, acts, memory)
        tiles = i64_at(layer + 8 * L.GATE)[L.TILES]
        offered, passed = u32_at(args[L.OFFERED]), u32_at(args[L.PASSED])
        for group in range(first, last):
            core = types.int64(u32_at(f[L.F_CORE])[group]) if f[L.F_CORE] != 0 else 0
            more, mask = 0, FULL
            if source != L.ALL:
                if source == L.RESAMPLED:
                    mask = types.int64(u32_at(chosen)[group])
                else:
                    mask = predicted(f, words, group, inner, memory)
                more = implied_in(args, index, group) & ~mask
                mask |= more | core
            mask &= types.int64(u32_at(f[L.F_ALIVE])[group])
            g, p = args[L.GATES] + 128 * group, args[L.POTENTIALS] + 128 * group
            found = 0
            if mask == 0:
                clear(p, 32)
            else:
                if f[L.F_HAS_GATE] == 0 or popcount(mask) > ROWS_AT_MOST:
                    tiles_product(words + 8 * L.F_GATES, tiles, group, acts, g)
                else:
                    rows = f[L.F_RECORDS] + 32 * f[L.F_RECORD_BYTES] * group
                    rows_product(layer + 8 * L.GATE, rows, f[L.F_RECORD_BYTES], mask, acts, g)
                gate(args, g, memory + _ONES, memory + _P, 2)
                weigh(memory + _P, f[L.F_WEIGHTS] + 128 * group, p)
                found = test(p, cutoff, memory) & mask
                counts[L.COUNT_CORE] += popcount(core & mask & ~found)
                found |= core & mask
                counts[L.COUNT_IMPLIED] += popcount(more & found)
                counts[L.COUNT_CANDIDATES] += popcount(mask)
            offered[group], passed[group] = types.uint32(mask), types.uint32(found)

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
        y: int,
        counts: Any,
    ) -> None:
        """Ups and downs of this thread's share of the neurons that passed."""
        f, words = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), u32_at(masks)
        first, last = deal(masks, args[L.FFN_GROUPS], tid, args[L.THREADS])
        group = next_group(words, first, last)
        while group < last:
            ahead = next_group(words, group + 1, last)
            mask, waiting = types.int64(words[group]), 0
            if ahead < last:
                waiting = types.int64(words[ahead])
            survivors_product(f, layer + 8 * L.UP, group, mask, acts, memory + _U, ahead, waiting)
            kept = finish_group(args, index, layer, group, mask, cutoff, memory, y, counts)
            counts[L.COUNT_GATED] += popcount(mask)
            counts[L.COUNT_ACTIVE] += popcount(kept)
            group = ahead

    @helper
    def add_contributors(
        args: Any,
        index: int,
        layer: int,
        acts: int,
        tid: int,
        cutoff: float,
        memory: int,
        y: int,
        counts: Any,
    ) -> None:
        """Gates and ups of all of this thread's neurons, downs of those that contribute."""
        f = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index)
        first, last = share(args[L.FFN_GROUPS], tid, args[L.THREADS])
        tiles = i64_at(layer + 8 * L.UP)[L.TILES]
        for group in range(first, last):
            mask = types.int64(u32_at(f[L.F_ALIVE])[group])
            g = args[L.GATES] + 128 * group
            tiles_product(layer + 8 * L.GATE, tiles, group, acts, g)
            tiles_product(layer + 8 * L.UP, tiles, group, acts, memory + _U)
            kept = finish_group(args, index, layer, group, mask, cutoff, memory, y, counts)
            counts[L.COUNT_CANDIDATES] += popcount(mask)
            counts[L.COUNT_GATED] += popcount(mask)
            counts[L.COUNT_ACTIVE] += popcount(kept)

    @helper
    def sparse_ffn(
        args: Any, index: int, layer: int, acts: int, tid: int, memory: int, sharpness: float
    ) -> int:
        """What the FFN of layer `index` adds: the address of float32 [d_pad], this thread's own."""
        f, threads = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), args[L.THREADS]
        width = 64 * ((args[L.D_PAD] + 63) >> 6)
        y = args[L.PARTIAL_Y] + 4 * width * tid
        counts = i64_at(args[L.COUNTS] + 8 * L.LINE * (index * threads + tid))
        for i in range(L.LINE):
            counts[i] = 0
        prepare(memory)
        clear(y, width)
        if f[L.F_IMPLIES] != 0:
            clear(implied_row(args, index + 1, tid), args[L.FFN_GROUPS])
        factor = multiplier(f, sharpness)
        first = float_of_bits(f[L.F_GATE_CUTOFF]) * factor
        second = float_of_bits(f[L.F_DOWN_CUTOFF]) * factor
        if f[L.F_MODE] == L.MODE_CONTRIBUTION:
            add_contributors(args, index, layer, acts, tid, second, memory, y, counts)
        else:
            offer_and_gate(args, index, layer, acts, tid, first, memory, counts)
            barrier(args[L.TEAM], threads)
            masks = bounded(args, f, first, memory + _REST, counts)
            add_survivors(args, index, layer, acts, tid, masks, second, memory, y, counts)
        barrier(args[L.TEAM], threads)
        out, d_pad = f32_at(memory + _REST), args[L.D_PAD]
        for i in range(d_pad):
            out[i] = f32_at(args[L.PARTIAL_Y])[i]
        for thread in range(1, threads):
            part = f32_at(args[L.PARTIAL_Y] + 4 * width * thread)
            for i in range(d_pad):
                out[i] += part[i]
        return memory + _REST

    return sparse_ffn


def build_test(blocks: SimpleNamespace) -> Any:
    """Return test_hidden(args, index, group, g, u, memory) for prefill."""
    gate = blocks.gate

    @helper
    def test_hidden(args: Any, index: int, group: int, g: int, u: int, memory: int) -> None:
        """One token's hidden values of one group, into g, those that fail a test being zero."""
        f, p = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index), memory + _P
        mode, mask = f[L.F_MODE] if args[L.SPARSE] != 0 else L.MODE_DENSE, FULL
        core = types.int64(u32_at(f[L.F_CORE])[group]) if f[L.F_CORE] != 0 else 0
        if mode == L.MODE_GATE:
            gate(args, g, memory + _ONES, p, 2)
            weigh(p, f[L.F_WEIGHTS] + 128 * group, p)
            mask = test(p, float_of_bits(f[L.F_GATE_CUTOFF]), memory) | core
        gate(args, g, u, g, 2)
        if mode != L.MODE_DENSE:
            keep_masked(g, mask & types.int64(u32_at(f[L.F_ALIVE])[group]))
        weigh(g, f[L.F_NORMS] + 128 * group, p)
        add_heat(args, index, group, p)
        if mode != L.MODE_DENSE:
            keep_masked(g, test(p, float_of_bits(f[L.F_DOWN_CUTOFF]), memory) | core)

    return test_hidden


def _row(isa: Isa, kind: int) -> Any:
    intrinsic = row_kernel(isa, kind)

    @helper
    def row(a: int, x: int, scales: int, bias: int, sums: int, pairs: int, out: int) -> None:
        intrinsic(a, x, scales, bias, sums, pairs, out)

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
