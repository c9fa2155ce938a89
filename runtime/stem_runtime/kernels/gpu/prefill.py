"""Products of many tokens: packed tiles, dequantized to bfloat16 into tensor cores.

A prompt reads every weight once for many tokens, so that arithmetic decides and not memory: the
weights of a block are unpacked once, rounded to bfloat16 as the activations are, and multiplied by
`tl.dot` with float32 sums. Products of eight tokens or less are `matvec`'s, with int8 activations.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl

from .dot import EMULATE
from .layout import DeviceMatrix

_GROUPS = 2
"""Groups of 32 columns to a step: 64 columns are four instructions of a tensor core."""


@triton.jit
def _weights(words, tile, tiles, group, groups, KIND: tl.constexpr):
    """Rows of `tile` [T] and columns of `group` [G], dequantized: bfloat16 [16 T, 32 G].

    The scales and minima of tiles and groups beyond the matrix are zero, and so are their weights.
    """
    T: tl.constexpr = tile.shape[0]
    G: tl.constexpr = group.shape[0]
    HEAD: tl.constexpr = 16 if KIND == "int4m" else 8
    CHUNKS: tl.constexpr = 8 if KIND == "int8" else 4

    place = (tile[:, None] * groups + group[None, :]) * (HEAD + 16 * CHUNKS)
    inside = ((tile[:, None] < tiles) & (group[None, :] < groups))[:, :, None]
    start = words + place[:, :, None]
    packed = tl.load(start + HEAD + tl.arange(0, 16 * CHUNKS), inside, 0)
    values = _values(packed.reshape(T, G, CHUNKS, 16).permute(0, 3, 1, 2), KIND)
    values = values.reshape(T, 16, G, 32) * _halves(start, inside)
    if KIND == "int4m":
        values += _halves(start + 8, inside)
    return values.to(tl.bfloat16).reshape(16 * T, 32 * G)


@triton.jit
def _halves(start, inside):
    """The 16 float16 values at each of `start` [T, G, 1], one per row: float32 [T, 16, G, 1].

    Read as words, since copies of two bytes cannot run ahead of the loop.
    """
    pairs = tl.load(start + tl.arange(0, 8), inside, 0)
    values = tl.join(pairs, pairs >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    T: tl.constexpr = pairs.shape[0]
    G: tl.constexpr = pairs.shape[1]
    return values.reshape(T, G, 16).permute(0, 2, 1).to(tl.float32)[:, :, :, None]


@triton.jit
def _values(packed, KIND: tl.constexpr):
    """The quants of words of one row, less their zero point, in the order of columns: float32.

    One more axis of two for every bit of a quant's place in its word.
    """
    # what is joined stays in one thread, which so holds neighbouring columns
    if KIND == "int8":
        split = tl.join(packed, packed >> 16)
        quants = tl.join(split, split >> 8) & 255
        zero = 128.0
    else:
        split = tl.join(packed, packed >> 4)
        split = tl.join(split, split >> 16)
        quants = tl.join(split, split >> 8) & 15
        zero = 0.0 if KIND == "int4m" else 8.0
    # 2^23 + quant, put together from bits: converting would run at a quarter of the rate
    return (quants | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + zero)


@triton.jit
def _matmul(
    out,
    words,
    x,
    count,
    rows,
    cols,
    tiles,
    groups,
    x_stride,
    out_stride,
    KIND: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    GROUPS: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    tile = tl.program_id(1) * BLOCK_TILES + tl.arange(0, BLOCK_TILES)
    known = token[None, :] < count
    total = tl.zeros((16 * BLOCK_TILES, BLOCK_TOKENS), tl.float32)
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        weights = _weights(words, tile, tiles, group, groups, KIND)
        column = first * 32 + tl.arange(0, 32 * GROUPS)
        place = column[:, None] + token[None, :] * x_stride
        values = tl.load(x + place, known & (column[:, None] < cols), 0)
        if EMULATE:
            # the interpreter keeps bfloat16 as integers and would multiply those
            weights, values = weights.to(tl.float32), values.to(tl.float32)
        total = tl.dot(weights, values, total)
    row = tl.program_id(1) * BLOCK_TILES * 16 + tl.arange(0, 16 * BLOCK_TILES)
    place = row[:, None] + token[None, :] * out_stride
    tl.store(out + place, total, known & (row[:, None] < rows))


def matmul(out: torch.Tensor, matrix: DeviceMatrix, x: torch.Tensor) -> None:
    """Write `x` bfloat16 [n, cols] times the transposed matrix to `out` float32 [n, rows].

    Both may be the left part of something wider. Every weight is the bfloat16 nearest to its
    float32 value; sums are float32.
    """
    tiles, groups, _ = matrix.tiles.shape
    count = x.shape[0]
    # few tokens or few rows make few programs: smaller blocks then keep more of the chip busy
    block_tokens = min(128, max(16, triton.next_power_of_2(count)))
    block_tiles = 4 if tiles * count >= 1 << 15 else 2
    grid = (triton.cdiv(count, block_tokens), triton.cdiv(tiles, block_tiles))
    _matmul[grid](
        out,
        matrix.words,
        x,
        count,
        matrix.rows,
        matrix.cols,
        tiles,
        groups,
        x.stride(0),
        out.stride(0),
        KIND=matrix.kind,
        BLOCK_TOKENS=block_tokens,
        BLOCK_TILES=block_tiles,
        GROUPS=_GROUPS,
        num_warps=4,
        num_stages=3,
    )
