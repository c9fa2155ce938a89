"""Which neurons of an FFN: masks of 32 to a word, their tests, bounds and even shares."""

from __future__ import annotations

from typing import Any

from . import layout as L
from .neuron import passing
from .plain import exp_of
from .simd import bits_of_float, f32_at, popcount, types, u32_at
from .vector import float_of_bits, helper

FULL = 0xFFFFFFFF

SHARED_COST = 2
"""What the scales that a group's columns share cost to read, in neurons."""

SEARCH_STEPS = 12
"""Halvings by which the cut-off is found that a floor or a cap asks for."""


@helper
def next_group(masks: Any, group: int, last: int) -> int:
    """The first group from `group` on that has a neuron, `last` for none."""
    while group < last and masks[group] == 0:
        group += 1
    return group


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
    """A bit for each of 32 values that is over the cut-off; `memory` is 4 bytes to work in."""
    passing(values, bits_of_float(types.float64(cutoff)), memory)
    return types.int64(u32_at(memory)[0])


@helper
def deal(masks: int, groups: int, tid: int, threads: int) -> tuple[int, int]:
    """The range of groups that is one thread's even share of the neurons in `masks`.

    The last thread's goes on to the end: every group is somebody's, also where `masks` has none.
    """
    words, all_ = u32_at(masks), 0
    for group in range(groups):
        if words[group] != 0:
            all_ += popcount(types.int64(words[group])) + SHARED_COST
    done, first, last = 0, -1, groups
    for group in range(groups):
        if first < 0 and done * threads >= tid * all_:
            first = group
        if tid + 1 < threads and done * threads >= (tid + 1) * all_:
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
