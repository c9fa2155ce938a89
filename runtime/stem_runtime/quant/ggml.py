"""GGML block types: their sizes, and how each becomes a plain quantized matrix or float32.

Block layouts after ggml's `block_q4_0`, `block_q4_1`, `block_q5_0`, `block_q8_0` and `block_q4_K`.
Input is raw rows, uint8 [rows, bytes of a row], as they lie in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from .layout import F16, F32, GROUP, U8, Kind, PlainMatrix

BlockType = Literal[
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"
]

BLOCKS: dict[BlockType, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Elements and bytes of one block."""

KEPT_AS: dict[BlockType, Kind] = {
    "Q4_0": "int4",
    "Q4_1": "int4m",
    "Q4_K": "int4m",
    "Q5_0": "int8",
    "Q8_0": "int8",
}
"""The quantized types that are taken over without rounding weights, and what they become."""

FLOATS: tuple[BlockType, ...] = ("F32", "F16", "BF16")


def to_float(kind: BlockType, raw: U8) -> F32:
    """Dequantize raw rows of any supported type to float32 [rows, cols]."""
    if kind == "F32":
        return raw.view("<f4")
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    from gguf import GGMLQuantizationType, dequantize  # heavy, and only conversion comes here

    with np.errstate(all="ignore"):  # a non-finite scale is refused by whoever rounds the result
        values: F32 = dequantize(np.ascontiguousarray(raw), GGMLQuantizationType[kind])
    return values


def keep(kind: BlockType, raw: U8) -> PlainMatrix:
    """Take raw rows of a type of `KEPT_AS` over without rounding weights.

    Q4_0, Q4_1, Q5_0 and Q8_0 keep quants and scales bit for bit (Q5_0 as int8). Q4_K keeps its
    quants; the products of its two-level scales are rounded to float16 once.
    """
    elements, size = BLOCKS[kind]
    blocks = raw.reshape(-1, size)
    return _DECODERS[kind](blocks, raw.shape[0], raw.shape[1] // size * elements)


def _q4_0(blocks: U8, rows: int, cols: int) -> PlainMatrix:
    return PlainMatrix("int4", _nibbles(blocks[:, 2:]).reshape(rows, cols), _f16(blocks, 0, rows))


def _q4_1(blocks: U8, rows: int, cols: int) -> PlainMatrix:
    quants = _nibbles(blocks[:, 4:]).reshape(rows, cols)
    return PlainMatrix("int4m", quants, _f16(blocks, 0, rows), _f16(blocks, 2, rows))


def _q5_0(blocks: U8, rows: int, cols: int) -> PlainMatrix:
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")
    quants = _nibbles(blocks[:, 6:]) + (fifth << 4) + np.uint8(128 - 16)
    return PlainMatrix("int8", quants.reshape(rows, cols), _f16(blocks, 0, rows))


def _q8_0(blocks: U8, rows: int, cols: int) -> PlainMatrix:
    quants = (blocks[:, 2:] ^ np.uint8(128)).reshape(rows, cols)
    return PlainMatrix("int8", quants, _f16(blocks, 0, rows))


def _q4_k(blocks: U8, rows: int, cols: int) -> PlainMatrix:
    """Eight groups of 32 in a block: fp16 d and dmin, 6-bit scales and minima, nibbles."""
    d = np.ascontiguousarray(blocks[:, :4]).view("<f2").astype(np.float32)
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1)
    with np.errstate(all="ignore"):  # what leaves float16 is refused by its infinity
        scale = (d[:, :1] * scales).astype(np.float16)
        minimum = (-d[:, 1:] * minima).astype(np.float16)
    quants = _nibbles(blocks[:, 16:].reshape(-1, GROUP))
    groups = cols // GROUP
    return PlainMatrix(
        "int4m",
        quants.reshape(rows, cols),
        scale.reshape(rows, groups),
        minimum.reshape(rows, groups),
    )


def _nibbles(packed: U8) -> U8:
    """[n, bytes] to [n, 2 * bytes]: all the low nibbles, then all the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _f16(blocks: U8, at: int, rows: int) -> F16:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").reshape(rows, -1)


_DECODERS: dict[BlockType, Callable[[U8, int, int], PlainMatrix]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
}
