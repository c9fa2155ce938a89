"""The kernels that `ffn` launches; what they are for is said there."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate, hidden_of
from .compact import (
    ACTIVE,
    CANDIDATES,
    CORE,
    GATED,
    IMPLIED,
    bits_of,
    enqueue,
    leave_queue,
    mask_of,
    tally,
    union_of,
)
from .matvec import THREADS, tile_products
from .neuron import add_columns, first_record, group_products, round_group

_THREADS = tl.constexpr(THREADS)


@triton.jit
def _tile_pair(
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
def _clear(out, out_stride, d_model, share, shares, BATCH: tl.constexpr, STEP: tl.constexpr):
    """Set one of equal shares of BATCH outputs to zero."""
    each = tl.cdiv(d_model, shares)
    for start in range(0, each, STEP):
        place = start + tl.arange(0, STEP)
        column = share * each + place
        for i in tl.static_range(BATCH):
            here = (place < each) & (column < d_model)
            tl.store(out + i * out_stride + column, tl.zeros([STEP], tl.float32), mask=here)


@triton.jit
def _cutoffs_of(cutoffs, sharpness, rule, moved, heads, b, valid, HEADS: tl.constexpr):
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
def _pick_contributors(
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
def _name_followers(names, implied, each, kept, group, groups, NAMES: tl.constexpr):
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


@triton.jit
def _hidden_values(
    hidden_words,
    hidden_scales,
    hidden_sums,
    words,
    x_scales,
    x_sums,
    gate,
    up,
    tiles,
    groups,
    param,
    length,
    queue,
    norms,
    core,
    alive,
    cutoffs,
    sharpness,
    rule,
    moved,
    heads,
    counts,
    captured,
    heat,
    names,
    implied,
    each_names,
    out,
    out_stride,
    d_model,
    HEADS: tl.constexpr,
    NAMES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    group = tl.program_id(0)
    ffn_groups = tl.num_programs(0)
    b = tl.arange(0, B)
    valid = b < BATCH
    gates = _tile_pair(gate, group, words, x_scales, x_sums, tiles, groups, GATE, BATCH, B, UNROLL)
    ups = _tile_pair(up, group, words, x_scales, x_sums, tiles, groups, UP, BATCH, B, UNROLL)
    hidden = hidden_of(activate(gates, param, ACTIVATION), ups, ACTIVATION)
    if norms is not None:
        offered = tl.where(valid, tl.load(alive + group), 0)
        _, cutoff = _cutoffs_of(cutoffs, sharpness, rule, moved, heads, b, valid, HEADS)
        hidden, kept, unasked = _pick_contributors(
            hidden, offered, group, norms, core, cutoff, counts, captured, heat, ffn_groups, valid
        )
        everyone = tl.sum(bits_of(offered[:, None]), axis=1)
        tally(counts, CANDIDATES, everyone, valid)
        tally(counts, GATED, everyone, valid)
        tally(counts, CORE, unasked, valid)
        enqueue(length, queue, group, union_of(kept))
        _name_followers(names, implied, each_names, kept, group, ffn_groups, NAMES)
        _clear(out, out_stride, d_model, group, ffn_groups, BATCH, 32)
    quants, scales, sums = round_group(hidden)
    byte = tl.arange(0, 4)
    packed = tl.sum((tl.reshape(quants, [B, 8, 4]) & 255) << (8 * byte)[None, None, :], axis=2)
    at = b * ffn_groups + group
    place = hidden_words + at[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(place, packed, mask=valid[:, None])
    tl.store(hidden_scales + at, scales, mask=valid)
    tl.store(hidden_sums + at, sums, mask=valid)


@triton.jit
def _add_contributors(
    length,
    queue,
    hidden_words,
    hidden_scales,
    hidden_sums,
    groups,
    records,
    each,
    starts,
    held,
    down,
    shared,
    shared_each,
    out,
    out_stride,
    d_model,
    KIND: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
):
    b = tl.arange(0, B)
    valid = b < BATCH
    lane = tl.arange(0, 32)
    for item in range(tl.program_id(0), tl.load(length), tl.num_programs(0)):
        group = tl.load(queue + 2 * item)
        at = b * groups + group
        word = tl.load(hidden_words + at[:, None] * 8 + lane // 4, mask=valid[:, None], other=0)
        add_columns(
            out,
            out_stride,
            d_model,
            records + first_record(group, starts) * each + down,
            each,
            tl.load(queue + 2 * item + 1),
            held if held is None else tl.load(held + group),
            shared + group * shared_each,
            (word << (24 - 8 * (lane % 4))) >> 24,
            tl.load(hidden_scales + at, mask=valid, other=0.0),
            tl.load(hidden_sums + at, mask=valid, other=0),
            KIND,
            BATCH,
            B,
        )
    leave_queue(length)


@triton.jit
def _find_survivors(
    length,
    queue,
    passed,
    gates,
    potentials,
    words,
    x_scales,
    x_sums,
    source,
    each,
    starts,
    held,
    tiles,
    groups,
    param,
    weights,
    core,
    alive,
    cutoffs,
    sharpness,
    rule,
    moved,
    heads,
    candidates,
    implied,
    counts,
    out,
    out_stride,
    d_model,
    HEADS: tl.constexpr,
    BOUNDED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
    GATE: tl.constexpr,
    UNROLL: tl.constexpr,
):
    group = tl.program_id(0)
    ffn_groups = tl.num_programs(0)
    b = tl.arange(0, B)
    valid = b < BATCH
    lane = tl.arange(0, 32)
    living = tl.load(alive + group)
    always = tl.load(core + group)
    at = b * ffn_groups + group
    asked = living
    if candidates is not None:
        named = tl.load(candidates + at, mask=valid, other=0)
        if implied is not None:
            more = tl.load(implied + at, mask=valid, other=0) & ~named
            named |= more
        asked = (named | always) & living
    offered = tl.where(valid, asked, 0)
    if candidates is not None or starts is not None:
        products = group_products(
            source + first_record(group, starts) * each,
            each,
            union_of(offered),
            held if held is None else tl.load(held + group),
            words,
            x_scales,
            x_sums,
            groups,
            GATE,
            BATCH,
            B,
        )
    else:
        products = _tile_pair(
            source, group, words, x_scales, x_sums, tiles, groups, GATE, BATCH, B, UNROLL
        )
    acts = activate(products, param, ACTIVATION)
    potential = tl.abs(acts) * tl.load(weights + group * 32 + lane)[None, :]
    cutoff, _ = _cutoffs_of(cutoffs, sharpness, rule, moved, heads, b, valid, HEADS)
    offer = bits_of(offered[:, None])
    over = (potential > cutoff[:, None]).to(tl.int32)
    core_too = bits_of(always)[None, :] & offer
    pick = over & offer | core_too
    if implied is not None:
        tally(counts, IMPLIED, tl.sum(pick & bits_of(more[:, None]), axis=1), valid)
    place = at[:, None] * 32 + lane[None, :]
    tl.store(gates + place, acts, mask=valid[:, None])
    tally(counts, CANDIDATES, tl.sum(offer, axis=1), valid)
    tally(counts, CORE, tl.sum(core_too & (1 - over), axis=1), valid)
    if BOUNDED:
        tl.store(potentials + place, tl.where(offer == 1, potential, 0.0), mask=valid[:, None])
        tl.store(passed + at, offered, mask=valid)
    else:
        mask = mask_of(pick)
        tl.store(passed + at, mask, mask=valid)
        tally(counts, GATED, tl.sum(pick, axis=1), valid)
        enqueue(length, queue, group, union_of(mask))
    _clear(out, out_stride, d_model, group, ffn_groups, BATCH, 32)


@triton.jit
def _add_survivors(
    length,
    queue,
    passed,
    gates,
    words,
    x_scales,
    x_sums,
    groups,
    ffn_groups,
    records,
    each,
    starts,
    held,
    up,
    down,
    shared,
    shared_each,
    norms,
    core,
    cutoffs,
    counts,
    captured,
    heat,
    names,
    implied,
    each_names,
    out,
    out_stride,
    d_model,
    NAMES: tl.constexpr,
    DOWN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BATCH: tl.constexpr,
    B: tl.constexpr,
    UP: tl.constexpr,
):
    b = tl.arange(0, B)
    valid = b < BATCH
    lane = tl.arange(0, 32)
    for item in range(tl.program_id(0), tl.load(length), tl.num_programs(0)):
        group = tl.load(queue + 2 * item)
        first = records + first_record(group, starts) * each
        here = held if held is None else tl.load(held + group)
        union = tl.load(queue + 2 * item + 1)
        ups = group_products(
            first + up, each, union, here, words, x_scales, x_sums, groups, UP, BATCH, B
        )
        at = b * ffn_groups + group
        acts = tl.load(gates + at[:, None] * 32 + lane[None, :], mask=valid[:, None], other=0.0)
        mask = tl.load(passed + at, mask=valid, other=0)
        hidden, kept, _ = _pick_contributors(
            hidden_of(acts, ups, ACTIVATION),
            mask,
            group,
            norms,
            core,
            tl.load(cutoffs + 2 * b + 1, mask=valid, other=0.0),
            counts,
            captured,
            heat,
            ffn_groups,
            valid,
        )
        _name_followers(names, implied, each_names, kept, group, ffn_groups, NAMES)
        quants, scales, totals = round_group(hidden)
        add_columns(
            out,
            out_stride,
            d_model,
            first + down,
            each,
            union_of(kept),
            here,
            shared + group * shared_each,
            quants,
            scales,
            totals,
            DOWN,
            BATCH,
            B,
        )
    leave_queue(length)
