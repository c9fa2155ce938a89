"""Activations in int8, as matrices are multiplied by them: where they lie, how they get there."""

from __future__ import annotations

from typing import Any

from . import layout as L
from .plain import clear, copy
from .simd import f32_at, i64_at
from .vector import helper, quantize_group, take_largest


@helper
def quantize(src: int, groups: int, acts: int, block: int, lane: int, tokens: int) -> None:
    """Quantize one token's `groups` * 32 floats into lane `lane` of a block of activations.

    Where outliers are kept apart, they become zero at `src`.
    """
    a = i64_at(acts)
    for rank in range(a[L.A_APART]):
        take_largest(src, groups, outlier(a, block, rank, lane, tokens))
    for group in range(groups):
        quantize_one(src + 128 * group, a, group, groups, block, lane, tokens)


@helper
def outlier(a: Any, block: int, rank: int, lane: int, tokens: int) -> int:
    """Address of one of a token's outliers."""
    item = (block * a[L.A_APART] + rank) * tokens + lane
    return int(a[L.A_OUTLIERS] + L.OUTLIER_BYTES * item)


@helper
def quantize_one(
    src: int, a: Any, group: int, groups: int, block: int, lane: int, tokens: int
) -> None:
    item = (block * groups + group) * tokens + lane
    quantize_group(
        src,
        a[L.A_QUANTS] + 32 * item,
        a[L.A_SCALES] + 4 * item,
        a[L.A_BIAS] + 4 * item,
        a[L.A_SUMS] + 4 * item,
    )


@helper
def cut_acts(words: int, memory: int, groups: int, outliers: int) -> int:
    """Lay out activations of `groups` groups at `memory`; returns where it ends.

    `outliers` tokens keep theirs apart.
    """
    a = i64_at(words)
    a[L.A_QUANTS] = memory
    a[L.A_SCALES] = memory + 32 * groups
    a[L.A_BIAS] = a[L.A_SCALES] + 4 * groups
    a[L.A_SUMS] = a[L.A_BIAS] + 4 * groups
    end = a[L.A_SUMS] + 4 * groups
    a[L.A_OUTLIERS], a[L.A_APART] = end, L.OUTLIERS if outliers != 0 else 0
    floats = L.OUTLIERS * L.OUTLIER_BYTES // 4 * outliers
    clear(end, floats)  # of lanes that no token is in, too, a column is read
    return end + 4 * floats


@helper
def clear_acts(words: int, first: int, last: int) -> None:
    """Make activations of groups [first, last), which nothing quantizes to, zero."""
    a = i64_at(words)
    clear(a[L.A_QUANTS] + 32 * first, 8 * (last - first))
    for array in (L.A_SCALES, L.A_BIAS, L.A_SUMS):
        clear(a[array] + 4 * first, last - first)


@helper
def copy_lane(acts: int, lane: int, width: int, groups: int, alone: int) -> None:
    """The activations of one token of a block, as those of a block of its own."""
    a, b = i64_at(acts), i64_at(alone)
    for rank in range(a[L.A_APART]):
        copy(outlier(a, 0, rank, lane, width), outlier(b, 0, rank, 0, 1), 2)
    for group in range(groups):
        item = group * width + lane
        copy(a[L.A_QUANTS] + 32 * item, b[L.A_QUANTS] + 32 * group, 8)
        for array in (L.A_SCALES, L.A_BIAS, L.A_SUMS):
            f32_at(b[array])[group] = f32_at(a[array])[item]
