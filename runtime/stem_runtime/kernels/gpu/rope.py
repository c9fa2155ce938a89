"""Rotary embedding of queries and keys, after their norms where a family has them, and the cache.

Keys and values go to the cache as float16, queries stay float32 where they are. The cache of one
layer is [batch, kv_heads, capacity, head_dim], so that a head's positions are one stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl


def rope_table(
    inv_freq: Sequence[float], capacity: int, device: torch.device | str
) -> torch.Tensor:
    """Cosines and sines, float32 [capacity, 2, head_dim / 2], computed as the CPU engine does."""
    positions = np.arange(capacity, dtype=np.float32)
    angles = np.outer(positions, np.asarray(inv_freq, np.float32))
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return torch.from_numpy(table).to(device)


def rope_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    table: torch.Tensor,
    *,
    slots: torch.Tensor | None = None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate `q` in place; rotate `k` into the cache and copy `v` beside it.

    `q` float32 [batch * n, n_heads * head_dim], `k` and `v` [batch * n, kv_heads * head_dim], rows
    may be parts of something wider; the n new tokens of a sequence follow each other. `keys` and
    `values` float16 [caches, kv_heads, capacity, head_dim], contiguous; `positions` int32 [batch],
    where each sequence's first new token goes; `slots` int32 [batch], whose cache is which, by
    default in their order; `table` from `rope_table`. `q_norm` and `k_norm` float32 [head_dim] are
    the weights of RMS norms per head. The caller sees to it that there is room for n tokens more.
    """
    _, kv_heads, capacity, head_dim = keys.shape
    batch = positions.shape[0]
    rows, n_heads = q.shape[0], q.shape[1] // head_dim
    _rope_store[(rows, n_heads + 2 * kv_heads)](
        q,
        k,
        v,
        keys,
        values,
        positions,
        slots,
        table,
        q_norm,
        k_norm,
        eps,
        rows // batch,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        capacity,
        N_HEADS=n_heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        num_warps=1,
    )


@triton.jit
def _rotated(x, norm, eps, angles, HEAD_DIM: tl.constexpr, HALF: tl.constexpr):
    """Both halves of the head at `x`, normed and rotated by the row of the table at `angles`."""
    half: tl.constexpr = HEAD_DIM // 2
    i = tl.arange(0, HALF)
    inside = i < half
    first = tl.load(x + i, mask=inside, other=0.0)
    second = tl.load(x + half + i, mask=inside, other=0.0)
    if norm is not None:
        mean = tl.sum(first * first + second * second, axis=0) / HEAD_DIM
        factor = 1.0 / tl.sqrt_rn(mean + eps)
        first = first * factor * tl.load(norm + i, mask=inside, other=0.0)
        second = second * factor * tl.load(norm + half + i, mask=inside, other=0.0)
    cos = tl.load(angles + i, mask=inside, other=0.0)
    sin = tl.load(angles + half + i, mask=inside, other=0.0)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _rope_store(
    q,
    k,
    v,
    keys,
    values,
    positions,
    slots,
    table,
    q_norm,
    k_norm,
    eps,
    tokens,
    q_stride,
    k_stride,
    v_stride,
    capacity,
    N_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
):
    half: tl.constexpr = HEAD_DIM // 2
    row = tl.program_id(0)
    head = tl.program_id(1)
    sequence = row // tokens
    position = tl.load(positions + sequence) + row % tokens
    angles = table + position * HEAD_DIM
    i = tl.arange(0, HALF)
    inside = i < half
    if head < N_HEADS:
        query = q + row * q_stride + head * HEAD_DIM
        one, other = _rotated(query, q_norm, eps, angles, HEAD_DIM, HALF)
        tl.store(query + i, one, mask=inside)
        tl.store(query + half + i, other, mask=inside)
    else:
        shared = (head - N_HEADS) % KV_HEADS
        cache = sequence
        if slots is not None:
            cache = tl.load(slots + sequence)
        # the caches of several long sequences have more than 2^31 elements
        line = (cache * KV_HEADS + shared).to(tl.int64) * capacity + position
        if head < N_HEADS + KV_HEADS:
            key = k + row * k_stride + shared * HEAD_DIM
            first, second = _rotated(key, k_norm, eps, angles, HEAD_DIM, HALF)
            cell = keys + line * HEAD_DIM + i
        else:
            value = v + row * v_stride + shared * HEAD_DIM + i
            first = tl.load(value, mask=inside)
            second = tl.load(value + half, mask=inside)
            cell = values + line * HEAD_DIM + i
        tl.store(cell, first.to(tl.float16), mask=inside)
        tl.store(cell + half, second.to(tl.float16), mask=inside)
