"""The int8 cache: how it lies in memory, and how positions get into it.

A key head's cache is chunks of 256 positions, in the order in which attention reads them: a chunk
of keys, then that of their values. Quants are bytes with 128 added, in groups of 32 dimensions that
share a float16 scale.

Keys lie in blocks of 16 positions, for each group 16 scales, then 512 bytes. That is a tile of int8
weights whose rows are the positions, so that scores are the product of `matmul` with queries
quantized like all activations. Values lie in groups, for each the scales of all positions of the
chunk, then [64, 32, 4] bytes: four positions of a dimension lie together, so that the same
instructions sum over positions.
"""

from __future__ import annotations

from typing import Any

from . import layout as L
from .isa import Isa
from .simd import (
    F32,
    I8,
    I32,
    I64,
    V16F32,
    V16I32,
    Builder,
    Value,
    concat,
    const,
    fabs,
    float_to_half,
    fmax,
    fmin,
    half_to_float,
    ir,
    kernel,
    load,
    reduce_max,
    rint,
    splat,
    store,
    u8_at,
    u32_at,
)
from .vector import helper

GROUP_BYTES = L.GROUP_BYTES[L.INT8]
SCALE_BYTES, QUANT_BYTES = 32, 512  # of 16 positions in one group
SIGNS = 0x80808080


@helper
def chunk_at(block: int, groups: int) -> int:
    """From a head's first chunk to the one with that block of 16 positions, in bytes."""
    return block // L.ATTENTION_BLOCKS * 2 * L.ATTENTION_BLOCKS * GROUP_BYTES * groups


@helper
def quants_of(values: int) -> int:
    """Where the quants of one group of a chunk's values begin, behind their scales."""
    return values + L.ATTENTION_BLOCKS * SCALE_BYTES


def round_kernel(native_half: bool) -> Any:
    """Intrinsic (src, q, scale): 32 float32 to int8 and a float16 scale.

    Quants are x over the scale as it is kept, so that its own rounding costs nothing.
    """

    def emit(b: Builder, src: Value, q: Value, scale: Value) -> None:
        halves = [load(b, b.add(src, const(I64, 64 * i)), V16F32) for i in (0, 1)]
        peak = reduce_max(b, fmax(b, fabs(b, halves[0]), fabs(b, halves[1])))
        factor = b.fmul(peak, const(F32, 1 / 127))
        bits = float_to_half(b, splat(b, factor), native_half)
        store(b, b.extract_element(bits, const(I32, 0)), scale)
        kept = half_to_float(b, bits, native_half)
        some = b.fcmp_ordered(">", kept, const(V16F32, 0.0))
        inverse = b.select(some, b.fdiv(const(V16F32, 1.0), kept), const(V16F32, 0.0))
        top = const(V16F32, 127.0)
        quants = []
        for half in halves:
            scaled = fmin(b, fmax(b, b.fmul(half, inverse), b.fneg(top)), top)
            quants.append(b.fptosi(rint(b, scaled), V16I32))
        store(b, b.trunc(concat(b, quants), ir.VectorType(I8, 32)), q)

    return kernel(emit, 3)


def build_keep(isa: Isa) -> Any:
    """Return keep(keys, values, position, groups, key, value)."""
    round_group = round_kernel(isa.native_half)

    @helper
    def keep(keys: int, values: int, position: int, groups: int, key: int, value: int) -> None:
        """Put float32 [32 * groups] of a key and a value into a head's cache.

        Both are overwritten.
        """
        chunk = chunk_at(position >> 4, groups)
        block, lane = (position >> 4) % L.ATTENTION_BLOCKS, position & 15
        for group in range(groups):
            whole = keys + chunk + GROUP_BYTES * (groups * block + group)
            source = key + 128 * group
            round_group(source, source, whole + 2 * lane)
            words, place = u32_at(source), u32_at(whole + SCALE_BYTES + 4 * lane)
            for i in range(8):
                place[16 * i] = words[i] ^ SIGNS
            whole = values + chunk + L.ATTENTION_BLOCKS * GROUP_BYTES * group
            source = value + 128 * group
            round_group(source, source, whole + SCALE_BYTES * block + 2 * lane)
            quants = quants_of(whole) + QUANT_BYTES * block
            line, cells = u8_at(source), u8_at(quants + (lane >> 2) * 128 + (lane & 3))
            for i in range(32):
                cells[4 * i] = line[i] ^ 0x80

    return keep
