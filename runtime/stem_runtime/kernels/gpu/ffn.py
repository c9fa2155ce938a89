"""The FFN of decoded tokens: dense, or only of the neurons that matter, in two launches each.

Gate first: `find_survivors` computes gates, of everyone or of candidates, and compacts who passes
the gate test; `add_survivors` reads rows of up and columns of down of those. By contribution:
`find_contributors` computes gate and up whole and compacts who contributes, `add_contributors`
reads columns of down. Dense: `hidden_values`, then a product with down.

Grids do not depend on how many survive, so that a step can be captured. Survivors are added to the
output as they arrive, which leaves the order of the sums, and so their last bits, to chance.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .activation import activate, hidden_of
from .compact import (
    ACTIVE,
    CANDIDATES,
    CORE,
    GATED,
    Survivors,
    bits_of,
    bound,
    enqueue,
    leave_queue,
    mask_of,
    tally,
    union_of,
)
from .layout import Activations, DeviceMatrix
from .matvec import THREADS, tile_products, unroll_of
from .neuron import add_columns, group_products, round_group
from .records import DeviceNeurons, FfnTests, Tally

_PROGRAMS = 512
"""Programs that share a queue: about four for each processor."""

_THREADS = tl.constexpr(THREADS)


def hidden_values(
    hidden: Activations,
    acts: Activations,
    gate: DeviceMatrix,
    up: DeviceMatrix,
    activation: str,
    param: float = 0.0,
) -> None:
    """`act(gate @ x) * (up @ x)` rounded into `hidden`, whose product with down is the dense FFN.

    `acts` are the b (1 to 8) inputs x, `activation` as in `config.ACTIVATIONS`.
    """
    _hidden_values[(hidden.scales.shape[1],)](
        *hidden,
        *acts,
        gate.words,
        up.words,
        *gate.tiles.shape[:2],
        param,
        *[None] * 12,
        GATE=gate.kind,
        UP=up.kind,
        UNROLL=unroll_of(acts.scales.shape[0]),
        **_constants(acts, activation),
    )


def find_contributors(
    out: torch.Tensor,
    hidden: Activations,
    survivors: Survivors,
    acts: Activations,
    gate: DeviceMatrix,
    up: DeviceMatrix,
    neurons: DeviceNeurons,
    tests: FfnTests,
    report: Tally,
    activation: str,
    param: float = 0.0,
) -> None:
    """`hidden_values` that are zero for neurons which fail the contribution test, and the queue of
    the others. Clears `out`, float32 [b, d_model or more], for `add_contributors`.
    """
    _hidden_values[(hidden.scales.shape[1],)](
        *hidden,
        *acts,
        gate.words,
        up.words,
        *gate.tiles.shape[:2],
        param,
        survivors.length,
        survivors.queue,
        neurons.norms,
        tests.core,
        neurons.alive,
        tests.cutoffs,
        *report,
        out,
        out.stride(0),
        neurons.d_model,
        GATE=gate.kind,
        UP=up.kind,
        UNROLL=unroll_of(acts.scales.shape[0]),
        **_constants(acts, activation),
    )


def add_contributors(
    out: torch.Tensor, hidden: Activations, survivors: Survivors, neurons: DeviceNeurons
) -> None:
    """Add the queue's columns of down, times their hidden values, to `out`."""
    batch, groups = hidden.scales.shape
    _add_contributors[(min(groups, _PROGRAMS),)](
        survivors.length,
        survivors.queue,
        *hidden,
        groups,
        neurons.records,
        neurons.records.stride(0),
        neurons.down,
        neurons.shared,
        neurons.shared.stride(0),
        out,
        out.stride(0),
        neurons.d_model,
        KIND=neurons.kinds[2],
        BATCH=batch,
        B=triton.next_power_of_2(batch),
        num_warps=THREADS // 32,
    )


def find_survivors(
    out: torch.Tensor,
    survivors: Survivors,
    acts: Activations,
    gate: DeviceMatrix,
    neurons: DeviceNeurons,
    tests: FfnTests,
    report: Tally,
    activation: str,
    param: float = 0.0,
    *,
    candidates: torch.Tensor | None = None,
) -> None:
    """Compute gates and queue the neurons that pass the gate test.

    Everyone's gates by tiles, or with `candidates`, masks int32 [b, groups], those of candidates
    and of the core by their records, of which any sequence has need. Floors and caps cost a launch
    more. Clears `out`, float32 [b, d_model or more], for `add_survivors`.
    """
    batch, groups = survivors.passed.shape
    by_records = candidates is not None
    _find_survivors[(groups,)](
        *survivors,
        *acts,
        neurons.records if by_records else gate.words,
        neurons.records.stride(0),
        *gate.tiles.shape[:2],
        param,
        neurons.weights,
        tests.core,
        neurons.alive,
        tests.cutoffs,
        candidates,
        report.counts,
        out,
        out.stride(0),
        neurons.d_model,
        BOUNDED=tests.bounds is not None,
        GATE=gate.kind,
        UNROLL=unroll_of(batch),
        **_constants(acts, activation),
    )
    if tests.bounds is not None:
        bound(survivors, report.counts, tests.cutoffs, tests.core, tests.bounds)


def add_survivors(
    out: torch.Tensor,
    survivors: Survivors,
    acts: Activations,
    neurons: DeviceNeurons,
    tests: FfnTests,
    report: Tally,
    activation: str,
) -> None:
    """Compute the hidden values of the queue's neurons from their rows of up, and add the columns
    of down of those that pass the contribution test to `out`.
    """
    groups = survivors.queue.shape[0]
    _add_survivors[(min(groups, _PROGRAMS),)](
        survivors.length,
        survivors.queue,
        survivors.passed,
        survivors.gates,
        *acts,
        acts.scales.shape[1],
        groups,
        neurons.records,
        neurons.records.stride(0),
        neurons.up,
        neurons.down,
        neurons.shared,
        neurons.shared.stride(0),
        neurons.norms,
        tests.core,
        tests.cutoffs,
        *report,
        out,
        out.stride(0),
        neurons.d_model,
        DOWN=neurons.kinds[2],
        UP=neurons.kinds[1],
        **_constants(acts, activation),
    )


def _constants(acts: Activations, activation: str) -> dict[str, Any]:
    batch = acts.scales.shape[0]
    return {
        "ACTIVATION": activation,
        "BATCH": batch,
        "B": triton.next_power_of_2(batch),
        "num_warps": THREADS // 32,
        # left alone, ptxas spills addresses to have more programs on a processor than there are
        "maxnreg": 168 if batch <= 2 else 255,
    }


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
def _pick_contributors(
    hidden, mask, group, norms, core, cutoffs, counts, captured, heat, groups, valid
):
    """Hidden values [B, 32] with those zero that fail the contribution test, and masks [B].

    Neurons outside of `mask`, int32 [B], fail; of the others is reported what they contribute.
    """
    b = tl.arange(0, hidden.shape[0])
    lane = tl.arange(0, 32)
    contribution = tl.abs(hidden) * tl.load(norms + group * 32 + lane)[None, :]
    cutoff = tl.load(cutoffs + 2 * b + 1, mask=valid, other=0.0)
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
    counts,
    captured,
    heat,
    out,
    out_stride,
    d_model,
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
        hidden, kept, unasked = _pick_contributors(
            hidden, offered, group, norms, core, cutoffs, counts, captured, heat, ffn_groups, valid
        )
        everyone = tl.sum(bits_of(offered[:, None]), axis=1)
        tally(counts, CANDIDATES, everyone, valid)
        tally(counts, GATED, everyone, valid)
        tally(counts, CORE, unasked, valid)
        enqueue(length, queue, group, union_of(kept))
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
            records + group * 32 * each + down,
            each,
            tl.load(queue + 2 * item + 1),
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
    tiles,
    groups,
    param,
    weights,
    core,
    alive,
    cutoffs,
    candidates,
    counts,
    out,
    out_stride,
    d_model,
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
    if candidates is not None:
        named = tl.load(candidates + at, mask=valid, other=0)
        offered = tl.where(valid, (named | always) & living, 0)
        first = source + group * 32 * each
        products = group_products(
            first, each, union_of(offered), words, x_scales, x_sums, groups, GATE, BATCH, B
        )
    else:
        offered = tl.where(valid, living, 0)
        products = _tile_pair(
            source, group, words, x_scales, x_sums, tiles, groups, GATE, BATCH, B, UNROLL
        )
    acts = activate(products, param, ACTIVATION)
    potential = tl.abs(acts) * tl.load(weights + group * 32 + lane)[None, :]
    cutoff = tl.load(cutoffs + 2 * b, mask=valid, other=0.0)
    offer = bits_of(offered[:, None])
    over = (potential > cutoff[:, None]).to(tl.int32)
    core_too = bits_of(always)[None, :] & offer
    pick = over & offer | core_too
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
    out,
    out_stride,
    d_model,
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
        first = records + group * 32 * each
        union = tl.load(queue + 2 * item + 1)
        ups = group_products(first + up, each, union, words, x_scales, x_sums, groups, UP, BATCH, B)
        at = b * ffn_groups + group
        acts = tl.load(gates + at[:, None] * 32 + lane[None, :], mask=valid[:, None], other=0.0)
        mask = tl.load(passed + at, mask=valid, other=0)
        hidden, kept, _ = _pick_contributors(
            hidden_of(acts, ups, ACTIVATION),
            mask,
            group,
            norms,
            core,
            cutoffs,
            counts,
            captured,
            heat,
            ffn_groups,
            valid,
        )
        quants, scales, totals = round_group(hidden)
        add_columns(
            out,
            out_stride,
            d_model,
            first + down,
            each,
            union_of(kept),
            shared + group * shared_each,
            quants,
            scales,
            totals,
            DOWN,
            BATCH,
            B,
        )
    leave_queue(length)
