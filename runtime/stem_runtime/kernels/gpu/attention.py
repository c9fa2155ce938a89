"""Attention over the float16 cache, for one new token of each sequence or for many of one.

All queries that share a key head are rows of one block, so that a key is read once for them. The
softmax is kept up block by block of positions (Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018; Dao et al., "FlashAttention", 2022). When decoding, what a query
sees is divided evenly among a fixed number of programs, whatever the length ("Flash-Decoding",
2023), and a second kernel joins what they found.

Queries and softmax weights are float32. Tensor cores multiply float16, so each of them goes in as
a sum of two float16: products with keys and values are then exact to about 22 bits.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl

_LOG2_E = 1.4426950408889634
_MOST_SPLITS = 64


class Partials(NamedTuple):
    """Static buffers for what each of `splits` programs found of a sequence's heads."""

    sums: torch.Tensor
    """float32 [batch, n_heads, splits, head_dim]: values weighted by 2^(score - peak)"""
    stats: torch.Tensor
    """float32 [batch, n_heads, splits, 2]: the peak of the scores, and the sum of the weights"""

    @classmethod
    def empty(
        cls, batch: int, n_heads: int, head_dim: int, splits: int, device: torch.device | str
    ) -> Self:
        """Buffers for `decode_attention` with so many splits."""
        shape = (batch, n_heads, splits)
        return cls(
            torch.empty((*shape, head_dim), dtype=torch.float32, device=device),
            torch.empty((*shape, 2), dtype=torch.float32, device=device),
        )


def choose_splits(batch: int, kv_heads: int, head_dim: int, capacity: int, processors: int) -> int:
    """How many programs should share a head's positions: two for each of the chip's processors."""
    blocks = triton.cdiv(capacity, _block_positions(head_dim))
    wanted = triton.cdiv(2 * processors, batch * kv_heads)
    return max(1, min(wanted, blocks, _MOST_SPLITS))


def decode_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    partials: Partials,
    *,
    scale: float,
    window: int = 0,
    slots: torch.Tensor | None = None,
    sharpness: torch.Tensor | None = None,
) -> None:
    """Attention of one token per sequence over everything up to itself.

    `out` and `q` float32 [batch, n_heads * head_dim], rows may be parts of something wider; `keys`
    and `values` float16 [caches, kv_heads, capacity, head_dim], contiguous, the token's own already
    stored; `positions` int32 [batch], that of the token; `slots` int32 [batch], whose cache is
    which, by default in their order. With a `window` a query sees itself and the window - 1
    positions before. `sharpness` float32 [batch, n_heads], contiguous, receives each head's largest
    weight.
    """
    splits = partials.stats.shape[2]
    _attend(out, sharpness, q, keys, values, positions, slots, partials, splits, scale, window)
    if splits == 1:
        return
    _, _, capacity, head_dim = keys.shape
    _combine[(positions.shape[0], q.shape[1] // head_dim)](
        out,
        sharpness,
        *partials,
        positions,
        window or capacity,
        out.stride(0),
        SPLITS=splits,
        SPLITS_PADDED=triton.next_power_of_2(splits),
        HEAD_DIM=head_dim,
        DIM=triton.next_power_of_2(head_dim),
        BLOCK=_block_positions(head_dim),
        num_warps=4,
    )


def prefill_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
) -> None:
    """Causal attention of n tokens per sequence; the same as `decode_attention` where n is 1.

    `out` and `q` float32 [batch * n, n_heads * head_dim], the tokens of a sequence follow each
    other; `positions` int32 [batch], that of each first one. The rest is as for `decode_attention`.
    """
    _attend(out, None, q, keys, values, positions, None, None, 1, scale, window)


def _block_positions(head_dim: int) -> int:
    """Positions of one block: what fits into shared memory of every chip, twice."""
    return 64 if head_dim <= 128 else 32


def _attend(
    out: torch.Tensor,
    sharpness: torch.Tensor | None,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor | None,
    partials: Partials | None,
    splits: int,
    scale: float,
    window: int,
) -> None:
    _, kv_heads, capacity, head_dim = keys.shape
    batch = positions.shape[0]
    n_heads, tokens = q.shape[1] // head_dim, q.shape[0] // batch
    group = n_heads // kv_heads
    # a tensor core takes at least 16 rows; more than fit into registers would spill
    most = 64 if head_dim <= 128 else 32
    rows = min(most, max(16, triton.next_power_of_2(tokens * group)))
    found = (partials.sums, partials.stats) if partials is not None and splits > 1 else (None, None)
    _attention[(triton.cdiv(tokens * group, rows), batch * kv_heads, splits)](
        out,
        sharpness,
        *found,
        q,
        keys,
        values,
        positions,
        slots,
        tokens,
        capacity,
        window or capacity,
        scale * _LOG2_E,
        q.stride(0),
        out.stride(0),
        SPLITS=splits,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        DIM=max(16, triton.next_power_of_2(head_dim)),
        ROWS=rows,
        BLOCK=_block_positions(head_dim),
        num_warps=4 if rows == 16 else 8,
        num_stages=2,
    )


@triton.jit
def _exact_dot(a, b, total):
    """total + a @ b for float32 `a` and float16 `b`."""
    high = a.to(tl.float16)
    low = (a - high.to(tl.float32)).to(tl.float16)
    return tl.dot(low, b, tl.dot(high, b, total))


@triton.jit
def _share(first, stop, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """How many of the positions from `first` to `stop` each program has."""
    blocks = (stop - first + BLOCK - 1) // BLOCK
    return (blocks + SPLITS - 1) // SPLITS * BLOCK


@triton.jit
def _attention(
    out,
    sharpness,
    sums,
    stats,
    q,
    keys,
    values,
    positions,
    slots,
    tokens,
    capacity,
    window,
    scale,
    q_stride,
    out_stride,
    SPLITS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # else a row's window could begin behind the first block
    tl.static_assert(ROWS <= BLOCK)
    sequence = tl.program_id(1) // KV_HEADS
    shared = tl.program_id(1) % KV_HEADS
    split = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = row < tokens * GROUP
    token = tl.minimum(row // GROUP, tokens - 1)
    head = shared * GROUP + row % GROUP
    before = tl.load(positions + sequence)
    own = before + token

    first = tl.maximum(before + tl.program_id(0) * ROWS // GROUP - window + 1, 0)
    stop = before + tl.minimum(((tl.program_id(0) + 1) * ROWS - 1) // GROUP, tokens - 1) + 1
    share = _share(first, stop, SPLITS, BLOCK)
    begin = first + split * share
    end = tl.minimum(begin + share, stop)
    if begin >= end:
        return

    d = tl.arange(0, DIM)
    cell = (sequence * tokens + token)[:, None] * q_stride + head[:, None] * HEAD_DIM + d[None, :]
    inside = d < HEAD_DIM
    queries = tl.load(q + cell, mask=inside[None, :], other=0.0) * scale
    cache = sequence
    if slots is not None:
        cache = tl.load(slots + sequence)
    # the caches of several long sequences have more than 2^31 elements
    start = (cache * KV_HEADS + shared).to(tl.int64) * capacity * HEAD_DIM

    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, DIM), tl.float32)
    for block in range(begin, end, BLOCK):
        seen = block + tl.arange(0, BLOCK)
        # behind the last position there may be anything
        valid = (seen < end)[:, None] & inside[None, :]
        place = start + seen[:, None] * HEAD_DIM + d[None, :]
        key = tl.load(keys + place, mask=valid, other=0.0)
        scores = _exact_dot(queries, tl.trans(key), tl.zeros((ROWS, BLOCK), tl.float32))
        visible = (seen[None, :] <= own[:, None]) & (seen[None, :] > own[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        # finite: every row sees something of its first block
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        shares = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(peak - higher)
        weight = weight * fade + tl.sum(shares, axis=1)
        value = tl.load(values + place, mask=valid, other=0.0)
        total = _exact_dot(shares, value, total * fade[:, None])
        peak = higher

    stored = known[:, None] & inside[None, :]
    if SPLITS == 1:
        cell = (sequence * tokens + token)[:, None] * out_stride
        cell += head[:, None] * HEAD_DIM + d[None, :]
        tl.store(out + cell, total / weight[:, None], mask=stored)
        if sharpness is not None:
            # the largest weight is that of the peak, and was counted as 1
            at = sequence * KV_HEADS * GROUP + head
            tl.store(sharpness + at, 1.0 / weight, mask=known)
    else:
        # one token of each sequence, as `_combine` reads it
        part = (sequence * KV_HEADS * GROUP + head) * SPLITS + split
        tl.store(sums + part[:, None] * HEAD_DIM + d[None, :], total, mask=stored)
        tl.store(stats + 2 * part, peak, mask=known)
        tl.store(stats + 2 * part + 1, weight, mask=known)


@triton.jit
def _combine(
    out,
    sharpness,
    sums,
    stats,
    positions,
    window,
    out_stride,
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    stop = tl.load(positions + sequence) + 1
    first = tl.maximum(stop - window, 0)
    share = _share(first, stop, SPLITS, BLOCK)
    split, d = tl.arange(0, SPLITS_PADDED), tl.arange(0, DIM)
    used = (split < SPLITS) & (first + split * share < stop)
    part = (sequence * tl.num_programs(1) + head) * SPLITS + split
    peak = tl.load(stats + 2 * part, mask=used, other=float("-inf"))
    factor = tl.exp2(peak - tl.max(peak, axis=0))
    weight = tl.sum(tl.load(stats + 2 * part + 1, mask=used, other=0.0) * factor, axis=0)
    inside = d < HEAD_DIM
    cell = sums + part[:, None] * HEAD_DIM + d[None, :]
    found = tl.load(cell, mask=used[:, None] & inside[None, :], other=0.0)
    total = tl.sum(found * factor[:, None], axis=0)
    tl.store(out + sequence * out_stride + head * HEAD_DIM + d, total / weight, mask=inside)
    if sharpness is not None:
        tl.store(sharpness + sequence * tl.num_programs(1) + head, 1.0 / weight)
