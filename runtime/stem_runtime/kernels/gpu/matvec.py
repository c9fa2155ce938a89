"""Packed matrix times vectors, and rows of the embedding.

Grouped int8 activations and integer dot products, as on the CPU; see `oracle.matmul`. One program
takes one tile of 16 rows and all its groups or a part of them. Where a matrix has few tiles its
columns are split among programs, which leave their sums in memory; the last of a tile to arrive
adds them up in a fixed order, so that results do not depend on timing.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: RUF005 (Triton adds tuples, but does not unpack them into others)
from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl

from .dot import EMULATE, int4_centred_dot16, int4_dot, int8_dot
from .layout import DeviceMatrix, chunks_of, group_words, head_words

THREADS = 128
"""Threads of a program. Each holds four rows of one chunk."""

_PROGRAMS = 1024
"""Programs that a matrix is split into where it has fewer tiles: what is resident at once on a
large chip."""

_LEAST_GROUPS = 16
"""A split takes at least so many groups, about 4 KiB of int4 weights."""


@dataclass(frozen=True, slots=True)
class SplitSums:
    """Static memory through which the programs that share a tile add up.

    One is enough for all products of a stream. `arrived` is all zero between launches.
    """

    sums: torch.Tensor
    """float32, at least splits * b * padded rows of any product"""
    arrived: torch.Tensor
    """int32, at least the tiles of any product that is split"""

    @classmethod
    def empty(cls, batch: int, device: torch.device | str) -> Self:
        """Enough for products of any shape with up to `batch` vectors."""
        return cls(
            torch.zeros(_PROGRAMS * batch * 16, dtype=torch.float32, device=device),
            torch.zeros(_PROGRAMS, dtype=torch.int32, device=device),
        )


def splits_of(tiles: int, groups: int) -> int:
    """Programs among which the groups of one tile are divided; a power of two."""
    most = max(1, min(_PROGRAMS // tiles, groups // _LEAST_GROUPS))
    return 1 << (most.bit_length() - 1)


def unroll_of(batch: int) -> int:
    """Loads of 128 bits that a thread has in flight: what fits into registers beside the sums."""
    # the interpreter computes what is masked out like the rest
    return 1 if EMULATE else (4 if batch <= 2 else 2)


def matvec(
    out: torch.Tensor,
    matrix: DeviceMatrix,
    words: torch.Tensor,
    scales: torch.Tensor,
    sums: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    add: torch.Tensor | None = None,
    scale: float = 1.0,
    split: SplitSums | None = None,
) -> None:
    """`add + scale * (matrix @ x + bias)` into `out`, float32 [b, at least rows].

    x are the b (1 to 8) vectors that `words`, `scales` and `sums` hold rounded, the fields of
    `Activations`. `bias` float32 [rows]; `add` float32 [b, at least rows], which may be `out`.
    Without `split` no tile is shared among programs.
    """
    tiles, groups, _ = matrix.tiles.shape
    splits = splits_of(tiles, groups) if split is not None else 1
    _matvec[(tiles, splits)](
        out,
        out.stride(0),
        matrix.words,
        words,
        scales,
        sums,
        bias,
        add,
        add.stride(0) if add is not None else 0,
        scale,
        split.sums if split is not None else None,
        split.arrived if split is not None else None,
        matrix.rows,
        groups,
        KIND=matrix.kind,
        BATCH=words.shape[0],
        SPLITS=splits,
        UNROLL=unroll_of(words.shape[0]),
        THREADS=THREADS,
        num_warps=THREADS // 32,
    )


def embed(
    out: torch.Tensor, matrix: DeviceMatrix, tokens: torch.Tensor, scale: float = 1.0
) -> None:
    """`scale` times the rows `tokens`, int32 [b], into `out`, float32 [b, at least cols]."""
    groups = matrix.groups
    _embed[(triton.cdiv(groups, 32), tokens.shape[0])](
        out, out.stride(0), matrix.words, tokens, scale, matrix.cols, groups, KIND=matrix.kind
    )


@triton.jit
def tile_products(
    tile,
    words,
    x_scales,
    x_sums,
    first,
    end,
    x_stride,
    KIND: tl.constexpr,
    BATCH: tl.constexpr,
    UNROLL: tl.constexpr,
    THREADS: tl.constexpr,
):
    """A tile times BATCH vectors over the groups from `first` up to `end`.

    `tile` points to the words of the tile's first group, `words`, `x_scales` and
    `x_sums` to the activations of the first vector, those of the next are `x_stride` groups
    further. Returns a tuple of BATCH float32 [16].
    """
    HEAD: tl.constexpr = head_words(KIND)
    CHUNKS: tl.constexpr = chunks_of(KIND)
    STEP: tl.constexpr = THREADS // (4 * CHUNKS)
    # a thread has four rows of one chunk: one load of 128 bits
    lane = tl.arange(0, THREADS)
    chunk = lane // 4 % CHUNKS
    row = (lane % 4 * 4)[:, None] + tl.arange(0, 4)[None, :]
    quad = HEAD + (chunk * 16)[:, None] + row
    sums = tl.tuple([])
    for _ in tl.static_range(BATCH):
        sums = sums + (tl.zeros([THREADS, 4], tl.float32),)
    for start in range(first, end, STEP * UNROLL):
        loaded = tl.tuple([])
        for u in tl.static_range(UNROLL):
            group = start + u * STEP + lane // (4 * CHUNKS)
            at = (tile + group * group_words(KIND))[:, None]
            mask = (group < end)[:, None]
            quants = tl.load(at + quad, mask=mask, other=0)
            halves = at.to(tl.pointer_type(tl.float16), bitcast=True) + row
            scale = tl.load(halves, mask=mask, other=0.0)
            minimum = scale
            if KIND == "int4m":
                minimum = tl.load(halves + 16, mask=mask, other=0.0)
            loaded = loaded + ((quants, scale, minimum),)
        # without it most loads are put off until the first have been multiplied
        tl.debug_barrier()
        for u in tl.static_range(UNROLL):
            group = start + u * STEP + lane // (4 * CHUNKS)
            quants, scale, minimum = loaded[u]
            added = tl.tuple([])
            for b in tl.static_range(BATCH):
                at = group + b * x_stride
                product = _chunk_products(
                    quants, scale, minimum, words, x_scales, x_sums, at, chunk, group < end, KIND
                )
                added = added + (sums[b] + product,)
            sums = added
    rows = tl.tuple([])
    for b in tl.static_range(BATCH):
        rows = rows + (tl.sum(tl.reshape(sums[b], [THREADS // 4, 16]), axis=0),)
    return rows


@triton.jit
def _chunk_products(
    quants, scale, minimum, words, x_scales, x_sums, at, chunk, valid, KIND: tl.constexpr
):
    """Chunks of weights [THREADS, 4 rows] times theirs of the activations, in the groups `at`."""
    factor = tl.load(x_scales + at, mask=valid, other=0.0)[:, None]
    wide = scale.to(tl.float32)
    if KIND == "int8":
        acts = tl.load(words + at * 8 + chunk, mask=valid, other=0)
        product = wide * int8_dot(quants, acts[:, None], 0).to(tl.float32)
    else:
        pair = (words + at * 8 + 2 * chunk)[:, None] + tl.arange(0, 2)[None, :]
        low, high = tl.split(tl.load(pair, mask=valid[:, None], other=0))
        if KIND == "int4":
            dot = int4_centred_dot16(quants, low[:, None], high[:, None], 0)
            product = wide * 0.0625 * dot.to(tl.float32)
        else:
            dot = int4_dot(quants, low[:, None], high[:, None], 0)
            # each of a group's chunks would add the whole sum
            total = tl.load(x_sums + at, mask=valid & (chunk == 0), other=0).to(tl.float32)
            product = wide * dot.to(tl.float32) + minimum.to(tl.float32) * total[:, None]
    return factor * product


@triton.jit
def _matvec(
    out,
    out_stride,
    tiles,
    words,
    x_scales,
    x_sums,
    bias,
    add,
    add_stride,
    scale,
    split_sums,
    arrived,
    rows,
    groups,
    KIND: tl.constexpr,
    BATCH: tl.constexpr,
    SPLITS: tl.constexpr,
    UNROLL: tl.constexpr,
    THREADS: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1)
    first = split * groups // SPLITS
    end = (split + 1) * groups // SPLITS
    products = tile_products(
        tiles + tile.to(tl.int64) * groups * group_words(KIND),
        words,
        x_scales,
        x_sums,
        first,
        end,
        groups,
        KIND,
        BATCH,
        UNROLL,
        THREADS,
    )
    row = tl.arange(0, 16)
    if SPLITS == 1:
        for b in tl.static_range(BATCH):
            _finish(out, out_stride, bias, add, add_stride, scale, products[b], tile, rows, b)
    else:
        part = tl.arange(0, SPLITS)
        for b in tl.static_range(BATCH):
            slot = split_sums + ((tile * BATCH + b) * SPLITS + split) * 16
            tl.store(slot + row, products[b])
        # all of this program's sums must be written before it is counted as arrived
        tl.debug_barrier()
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLITS - 1:
            for b in tl.static_range(BATCH):
                slots = split_sums + (tile * BATCH + b) * SPLITS * 16
                at = slots + part[:, None] * 16 + row[None, :]
                total = tl.sum(tl.load(at, cache_modifier=".cg"), axis=0)
                _finish(out, out_stride, bias, add, add_stride, scale, total, tile, rows, b)
            tl.store(arrived + tile, 0)


@triton.jit
def _finish(out, out_stride, bias, add, add_stride, scale, value, tile, rows, b):
    row = tile * 16 + tl.arange(0, 16)
    if bias is not None:
        value += tl.load(bias + row, mask=row < rows, other=0.0)
    value *= scale
    if add is not None:
        value += tl.load(add + b * add_stride + row, mask=row < rows, other=0.0)
    tl.store(out + b * out_stride + row, value, mask=row < rows)


@triton.jit
def _embed(out, out_stride, tiles, tokens, scale, cols, groups, KIND: tl.constexpr):
    HEAD: tl.constexpr = head_words(KIND)
    CHUNKS: tl.constexpr = chunks_of(KIND)
    SIZE: tl.constexpr = group_words(KIND)
    sequence = tl.program_id(1)
    token = tl.load(tokens + sequence)
    group = tl.program_id(0) * 32 + tl.arange(0, 32)[:, None, None]
    chunk = tl.arange(0, CHUNKS)[None, :, None]
    byte = tl.arange(0, 4)[None, None, :]
    valid = group < groups
    base = tiles + (token // 16).to(tl.int64) * groups * SIZE + group * SIZE
    halves = base.to(tl.pointer_type(tl.float16), bitcast=True) + token % 16
    factor = tl.load(halves, mask=valid, other=0.0).to(tl.float32)
    word = tl.load(base + HEAD + chunk * 16 + token % 16, mask=valid, other=0)
    quant = (word >> (8 * byte)) & 255
    place = out + sequence * out_stride
    if KIND == "int8":
        column = group * 32 + chunk * 4 + byte
        tl.store(place + column, factor * (quant - 128) * scale, mask=column < cols)
    else:
        if KIND == "int4m":
            offset = tl.load(halves + 16, mask=valid, other=0.0).to(tl.float32)
        else:
            offset = -8 * factor
        column = group * 32 + chunk * 8 + byte
        tl.store(place + column, (factor * (quant & 15) + offset) * scale, mask=column < cols)
        column += 4
        tl.store(place + column, (factor * (quant >> 4) + offset) * scale, mask=column < cols)
