"""A thread's own memory while it works on an FFN, in bytes from its start."""

from __future__ import annotations

from . import layout as L
from .simd import f32_at, i64_at
from .vector import helper

P, ONES = 0, 128
"""32 float32 each: potentials or contributions, ones."""

QUANTS, SCALE, BIAS, SUMS, ACTS = 256, 288, 292, 296, 384
"""One group of quantized activations, and the words that say where it is."""

MASK, CAPTURED = 300, 304
VALUES = 320
"""Hidden values int8 [32] of the columns that are added."""

REST = 512
"""The summed output, float32 [d_pad]; before that masks uint32 [FFN_GROUPS], or a predictor's."""


@helper
def prepare(memory: int) -> None:
    """Lay out one group of quantized activations, and a group of ones, in a thread's memory."""
    a, ones = i64_at(memory + ACTS), f32_at(memory + ONES)
    a[L.A_QUANTS], a[L.A_SCALES] = memory + QUANTS, memory + SCALE
    a[L.A_BIAS], a[L.A_SUMS], a[L.A_APART] = memory + BIAS, memory + SUMS, 0
    for i in range(32):
        ones[i] = 1.0
