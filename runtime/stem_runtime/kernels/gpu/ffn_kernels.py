"""The kernels that `ffn` launches; what they are for is said there."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate, hidden_of
from .compact import (
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
from .ffn_parts import clear, cutoffs_of, name_followers, pick_contributors, tile_pair
from .neuron import add_columns, first_record, group_products, round_group


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
    gates = tile_pair(gate, group, words, x_scales, x_sums, tiles, groups, GATE, BATCH, B, UNROLL)
    ups = tile_pair(up, group, words, x_scales, x_sums, tiles, groups, UP, BATCH, B, UNROLL)
    hidden = hidden_of(activate(gates, param, ACTIVATION), ups, ACTIVATION)
    if norms is not None:
        offered = tl.where(valid, tl.load(alive + group), 0)
        _, cutoff = cutoffs_of(cutoffs, sharpness, rule, moved, heads, b, valid, HEADS)
        hidden, kept, unasked = pick_contributors(
            hidden, offered, group, norms, core, cutoff, counts, captured, heat, ffn_groups, valid
        )
        everyone = tl.sum(bits_of(offered[:, None]), axis=1)
        tally(counts, CANDIDATES, everyone, valid)
        tally(counts, GATED, everyone, valid)
        tally(counts, CORE, unasked, valid)
        enqueue(length, queue, group, union_of(kept))
        name_followers(names, implied, each_names, kept, group, ffn_groups, NAMES)
        clear(out, out_stride, d_model, group, ffn_groups, BATCH, 32)
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
        products = tile_pair(
            source, group, words, x_scales, x_sums, tiles, groups, GATE, BATCH, B, UNROLL
        )
    acts = activate(products, param, ACTIVATION)
    potential = tl.abs(acts) * tl.load(weights + group * 32 + lane)[None, :]
    cutoff, _ = cutoffs_of(cutoffs, sharpness, rule, moved, heads, b, valid, HEADS)
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
    clear(out, out_stride, d_model, group, ffn_groups, BATCH, 32)


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
        hidden, kept, _ = pick_contributors(
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
        name_followers(names, implied, each_names, kept, group, ffn_groups, NAMES)
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
