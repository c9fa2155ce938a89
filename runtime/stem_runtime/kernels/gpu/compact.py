"""Which neurons go on: sets of them in groups of 32, compacted on the device.

A set is masks, one int32 for each group, whose bit j is neuron j of the group. Neurons of a group
share the rounding of their hidden values, so that what is compacted is a queue of the groups with
survivors, and within a group its survivors into the first lanes of a product. Neither ever visits
the host. The queue's order is that in which programs arrive.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl

from ...quant import GROUP, groups_of

COUNTERS = 8
"""Columns of `counts`, in the order of `neuron_tables.COUNTS`."""

CANDIDATES = tl.constexpr(0)
GATED = tl.constexpr(1)
ACTIVE = tl.constexpr(2)
CORE = tl.constexpr(3)
IMPLIED = tl.constexpr(4)
FLOOR = tl.constexpr(5)
CAP = tl.constexpr(6)


class Survivors(NamedTuple):
    """Static buffers between the two launches of a sparse FFN, for b sequences.

    One set is enough for all layers of a stream. `length` is all zero between FFNs.
    """

    length: torch.Tensor
    """int32 [2]: entries of the queue, programs that are done with it"""
    queue: torch.Tensor
    """int32 [groups, 2]: a group, and the mask of its neurons that any sequence needs"""
    passed: torch.Tensor
    """int32 [b, groups]: each sequence's own neurons"""
    gates: torch.Tensor
    """float32 [b, 32 * groups]: act(gate), anything where the gate was not computed"""
    potentials: torch.Tensor
    """float32 [b, 32 * groups]: zero for who is no candidate; only kept for floors and caps"""

    @classmethod
    def empty(cls, batch: int, ffn: int, device: torch.device | str) -> Self:
        """Buffers for `batch` sequences and FFNs of `ffn` neurons, all zero."""
        groups = groups_of(ffn)
        masks = [(2,), (groups, 2), (batch, groups)]
        floats = [(batch, GROUP * groups)] * 2
        return cls(
            *(torch.zeros(shape, dtype=torch.int32, device=device) for shape in masks),
            *(torch.zeros(shape, dtype=torch.float32, device=device) for shape in floats),
        )


def bound(
    survivors: Survivors,
    counts: torch.Tensor,
    cutoffs: torch.Tensor,
    core: torch.Tensor,
    bounds: torch.Tensor,
) -> None:
    """Fill the queue from the potentials, keeping to floors and caps; see `oracle_sparse.bounded`.

    `counts` int32 [b, COUNTERS] is added to, `cutoffs` float32 [b, 2], `core` int32 [groups],
    `bounds` int32 [b, 2]: the least and the most neurons that pass, the core not counted where it
    joins in spite of a cap. Among equal potentials at the cap none passes, at the floor all do.
    """
    batch, groups = survivors.passed.shape
    padded = triton.next_power_of_2(groups)
    _bound[(1,)](
        survivors.length,
        survivors.queue,
        survivors.passed,
        survivors.potentials,
        counts,
        cutoffs,
        core,
        bounds,
        groups,
        BATCH=batch,
        GROUPS=padded,
        num_warps=min(32, max(8, padded // 32)),
    )


def name_candidates(masks: torch.Tensor, scores: torch.Tensor, cutoffs: torch.Tensor) -> None:
    """Masks int32 [b, groups] of the neurons whose predicted score is over its cut-off.

    `scores` float32 [b, at least ffn], `cutoffs` float32 [ffn].
    """
    batch, groups = masks.shape
    _name_candidates[(groups, batch)](masks, scores, scores.stride(0), cutoffs, cutoffs.shape[0])


@triton.jit
def bits_of(mask):
    """A mask, or masks [n, 1], -> 0 or 1, int32 [32], or [n, 32]."""
    return (mask >> tl.arange(0, 32)) & 1


@triton.jit
def mask_of(bits):
    """0 or 1, int32 [n, 32] -> masks int32 [n]."""
    return tl.sum(bits << tl.arange(0, 32)[None, :], axis=1)


@triton.jit
def members(mask, start, COUNT: tl.constexpr):
    """The lanes of a mask's neurons number `start` and following, int32 [COUNT], and which exist.

    Those that do not are lane 0.
    """
    bits = bits_of(mask)
    wanted = start + tl.arange(0, COUNT)
    rank = tl.cumsum(bits, axis=0) - bits
    hit = (bits[None, :] == 1) & (rank[None, :] == wanted[:, None])
    lanes = tl.sum(tl.where(hit, tl.arange(0, 32)[None, :], 0), axis=1)
    return lanes, wanted < tl.sum(bits, axis=0)


@triton.jit
def union_of(masks):
    """Masks int32 [n] -> their union."""
    return tl.sum(tl.max(bits_of(masks[:, None]), axis=0) << tl.arange(0, 32), axis=0)


@triton.jit
def enqueue(length, queue, group, mask):
    """Append a group that has survivors."""
    if mask != 0:
        place = tl.atomic_add(length, 1, sem="relaxed")
        tl.store(queue + 2 * place, group)
        tl.store(queue + 2 * place + 1, mask)


@triton.jit
def leave_queue(length):
    """Called by each program that has read the queue: the last one empties it."""
    # all of this program must have read how long the queue is
    tl.debug_barrier()
    if tl.atomic_add(length + 1, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(length, 0)
        tl.store(length + 1, 0)


@triton.jit
def tally(counts, column: tl.constexpr, amounts, valid):
    """Add int32 [B] to a column of `counts` [b, 8]."""
    row = tl.arange(0, amounts.shape[0])
    tl.atomic_add(counts + row * 8 + column, amounts, mask=valid & (amounts != 0), sem="relaxed")


@triton.jit
def _kth_largest(keys, k):
    """The k-th largest of int32 keys of at least 0, 0 where there are fewer."""
    found = 0
    for step in range(31):
        higher = found | (1 << (30 - step))
        enough = tl.sum(tl.sum((keys >= higher).to(tl.int32), axis=1), axis=0) >= k
        found = tl.where(enough, higher, found)
    return found


@triton.jit
def _bound(
    length,
    queue,
    passed,
    potentials,
    counts,
    cutoffs,
    core,
    bounds,
    groups,
    BATCH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    group = tl.arange(0, GROUPS)
    there = group < groups
    neuron = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    always = bits_of(tl.load(core + group, mask=there, other=0)[:, None])
    union = tl.zeros([GROUPS], tl.int32)
    for b in tl.static_range(BATCH):
        own = potentials + b * groups * 32
        potential = tl.load(own + neuron, mask=there[:, None], other=0.0)
        over = potential > tl.load(cutoffs + 2 * b)
        # positive floats are ordered like their bits; what is no number is like none at all
        keys = tl.where(potential > 0.0, potential, 0.0).to(tl.int32, bitcast=True)
        held = tl.sum(tl.sum((over | (always == 1)).to(tl.int32), axis=1), axis=0)
        floor = tl.load(bounds + 2 * b)
        cap = tl.load(bounds + 2 * b + 1)
        many = held > cap
        few = (held < floor) & (held <= cap)
        limit = _kth_largest(keys, tl.where(many, cap + 1, floor))
        pick = tl.where(many, over & (keys > limit), over)
        pick = tl.where(few, (keys > 0) & (keys >= limit), pick)
        candidate = bits_of(tl.load(passed + b * groups + group, mask=there, other=0)[:, None])
        mask = mask_of((pick.to(tl.int32) | always) & candidate)
        tl.store(passed + b * groups + group, mask, mask=there)
        union |= mask
        gated = tl.sum(tl.sum(bits_of(mask[:, None]), axis=1), axis=0)
        tl.atomic_add(counts + 8 * b + GATED, gated, sem="relaxed")
        tl.atomic_add(counts + 8 * b + FLOOR, few.to(tl.int32), sem="relaxed")
        tl.atomic_add(counts + 8 * b + CAP, many.to(tl.int32), sem="relaxed")
    needed = (union != 0).to(tl.int32)
    place = tl.cumsum(needed, axis=0) - needed
    tl.store(queue + 2 * place, group, mask=needed == 1)
    tl.store(queue + 2 * place + 1, union, mask=needed == 1)
    tl.store(length, tl.sum(needed, axis=0))


@triton.jit
def _name_candidates(masks, scores, scores_stride, cutoffs, ffn):
    group = tl.program_id(0)
    b = tl.program_id(1)
    neuron = group * 32 + tl.arange(0, 32)
    score = tl.load(scores + b * scores_stride + neuron, mask=neuron < ffn, other=0.0)
    cutoff = tl.load(cutoffs + neuron, mask=neuron < ffn, other=float("inf"))
    over = (score > cutoff).to(tl.int32)
    tl.store(masks + b * tl.num_programs(0) + group, tl.sum(over << tl.arange(0, 32), axis=0))
