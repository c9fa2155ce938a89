"""What several of the kernels in `ffn_kernels` do for one group of 32 neurons."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from .compact import ACTIVE, bits_of, mask_of, tally, union_of
from .matvec import THREADS, tile_products

_THREADS = tl.constexpr(THREADS)


@triton.jit
def tile_pair(
    matrix,
    group,
    words,
    scales,
    sums,
    tiles,
    groups,
    KIND: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The products of 32 neurons, two tiles of `matrix`: float32 [B, 32], zero behind the last."""
    SIZE: tl.constexpr = 136 if KIND == "int8" else (80 if KIND == "int4m" else 72)
    b = tl.arange(0, B)[:, None]
    half = tl.arange(0, 32)[None, :] // 16
    products = tl.zeros([B, 32], tl.float32)
    for i in range(tl.minimum(tiles - 2 * group, 2)):
        tile = matrix + (group.to(tl.int64) * 2 + i) * groups * SIZE
        found = tile_products(
            tile, words, scales, sums, 0, groups, groups, KIND, BATCH, UNROLL, _THREADS
        )
        for sequence in tl.static_range(BATCH):
            twice = tl.reshape(tl.broadcast_to(found[sequence][None, :], [2, 16]), [1, 32])
            products = tl.where((b == sequence) & (half == i), twice, products)
    return products


@triton.jit
def clear(out, out_stride, d_model, share, shares, BATCH: tl.constexpr, STEP: tl.constexpr):
    """Set one of equal shares of BATCH outputs to zero."""
    each = tl.cdiv(d_model, shares)
    for start in range(0, each, STEP):
        place = start + tl.arange(0, STEP)
        column = share * each + place
        for i in tl.static_range(BATCH):
            here = (place < each) & (column < d_model)
            tl.store(out + i * out_stride + column, tl.zeros([STEP], tl.float32), mask=here)


@triton.jit
def cutoffs_of(cutoffs, sharpness, rule, moved, heads, b, valid, HEADS: tl.constexpr):
    """The cut-offs of potentials and of contributions that hold, float32 [B] each.

    Where attention moves them one program leaves them in `moved`, for the launches that follow.
    """
    first = tl.load(cutoffs + 2 * b, mask=valid, other=0.0)
    second = tl.load(cutoffs + 2 * b + 1, mask=valid, other=0.0)
    if sharpness is not None:
        head = tl.arange(0, HEADS)
        known = valid[:, None] & (head < heads)[None, :]
        each = tl.load(sharpness + b[:, None] * heads + head[None, :], mask=known, other=0.0)
        power = tl.load(rule) * (tl.load(rule + 1) - tl.sum(each, axis=1) / heads)
        factor = tl.minimum(tl.maximum(tl.exp(power), 0.25), 4.0)
        first *= factor
        second *= factor
        if tl.program_id(0) == 0:
            tl.store(moved + 2 * b, first, mask=valid)
            tl.store(moved + 2 * b + 1, second, mask=valid)
    return first, second


@triton.jit
def pick_contributors(
    hidden, mask, group, norms, core, cutoff, counts, captured, heat, groups, valid
):
    """Hidden values [B, 32] with those zero that fail the contribution test, and masks [B].

    Neurons outside of `mask`, int32 [B], fail; of the others is reported what they contribute.
    `cutoff` is float32 [B].
    """
    b = tl.arange(0, hidden.shape[0])
    lane = tl.arange(0, 32)
    contribution = tl.abs(hidden) * tl.load(norms + group * 32 + lane)[None, :]
    tested = bits_of(mask[:, None]) == 1
    over = contribution > cutoff[:, None]
    kept = tested & (over | (bits_of(tl.load(core + group))[None, :] == 1))
    place = heat + (b * groups + group)[:, None] * 32 + lane[None, :]
    before = tl.load(place, mask=tested, other=0.0)
    tl.store(place, before + contribution, mask=tested)
    total = tl.sum(tl.where(kept, contribution, 0.0), axis=1)
    tl.atomic_add(captured + b, total, mask=valid, sem="relaxed")
    tally(counts, ACTIVE, tl.sum(kept.to(tl.int32), axis=1), valid)
    unasked = tl.sum((kept & (contribution <= cutoff[:, None])).to(tl.int32), axis=1)
    return tl.where(kept, hidden, 0.0), mask_of(kept.to(tl.int32)), unasked


@triton.jit
def name_followers(names, implied, each, kept, group, groups, NAMES: tl.constexpr):
    """Add whom a group's neurons in the masks `kept`, int32 [B], name to masks `implied`.

    Other programs add to the same words meanwhile.
    """
    if names is not None:
        neuron = group * 32 + tl.arange(0, 32)[:, None]
        column = tl.arange(0, NAMES)[None, :]
        one_of_them = (bits_of(union_of(kept)) == 1)[:, None] & (column < each)
        other = tl.load(names + neuron * each + column, mask=one_of_them, other=-1)[None, :, :]
        b = tl.arange(0, kept.shape[0])[:, None, None]
        fired = bits_of(kept[:, None])[:, :, None] == 1
        place, bit = tl.broadcast(implied + b * groups + (other >> 5), 1 << (other & 31))
        tl.atomic_or(place, bit, mask=fired & (other >= 0), sem="relaxed")
