"""Activations in int8, as matrices are multiplied by them: where they lie, how they get there."""

from __future__ import annotations

from typing import Any

from . import layout as L
from .plain import clear, copy
from .simd import f32_at, i64_at
from .vector import helper, quantize_group


@helper
def quantize(src: int, groups: int, acts: int, block: int, lane: int, tokens: int) -> None:
    """Quantize one token's `groups` * 32 floats into lane `lane` of a block of activations."""
    a = i64_at(acts)
    for group in range(groups):
        quantize_one(src + 128 * group, a, group, groups, block, lane, tokens)


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
def cut_acts(words: int, memory: int, groups: int) -> int:
    """Lay out activations of `groups` groups at `memory`; returns where it ends."""
    a = i64_at(words)
    a[L.A_QUANTS] = memory
    a[L.A_SCALES] = memory + 32 * groups
    a[L.A_BIAS] = a[L.A_SCALES] + 4 * groups
    a[L.A_SUMS] = a[L.A_BIAS] + 4 * groups
    return a[L.A_SUMS] + 4 * groups


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
    for group in range(groups):
        item = group * width + lane
        copy(a[L.A_QUANTS] + 32 * item, b[L.A_QUANTS] + 32 * group, 8)
        for array in range(L.A_SCALES, L.ACTS_WORDS):
            f32_at(b[array])[group] = f32_at(a[array])[item]
