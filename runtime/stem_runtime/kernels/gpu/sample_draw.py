"""A draw among few tokens that are sorted, and what every choice leaves behind."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from .sample_keys import best_logit, token_of, weights_of

FINE, NOT_FINITE, NOTHING_LEFT = range(3)
"""What became of a draw: a token; a logit that is NaN or plus infinity; all logits minus infinity.
"""

_NOT_FINITE = tl.constexpr(NOT_FINITE)
_NOTHING_LEFT = tl.constexpr(NOTHING_LEFT)


@triton.jit
def _next(state):
    """The state of SplitMix64 that follows the one at `state`, as uint64."""
    return tl.load(state).to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15


@triton.jit
def uniform(state):
    """The next number of SplitMix64, as a float64 in [0, 1). The state stays as it is."""
    z = _next(state)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return ((z ^ (z >> 31)) >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def _push(token, counts, recent, pushed, window, capacity):
    """Let `token` in among the last `window` ones, and the oldest out."""
    if window > 0:
        count = tl.load(pushed)
        if count >= window:
            oldest = counts + tl.load(recent + (count - window) % capacity)
            tl.store(oldest, tl.load(oldest) - 1)
        tl.store(counts + token, tl.load(counts + token) + 1)
        tl.store(recent + count % capacity, token)
        tl.store(pushed, count + 1)


@triton.jit
def conclude(
    token, best, row, found, given, states, counts, recent, pushed, window, vocab, capacity
):
    """Report a sequence's token, or why there is none, and be ready for the next choice."""
    usable = (best < float("inf")) & (best > float("-inf"))
    token = tl.where(usable, token, 0)
    state = _next(states + row)
    batch = tl.num_programs(0)
    position = 0
    if given is not None:
        position = tl.load(given + batch + row)
    # one thread stores, and the others must have read by then
    tl.debug_barrier()
    tl.store(states + row, state.to(tl.int64, bitcast=True))
    tl.store(found + row, token)
    failed = tl.where(best > 0.0, _NOT_FINITE, _NOTHING_LEFT)
    tl.store(found + batch + row, tl.where(usable, 0, failed))
    if given is not None:
        tl.store(given + row, token)
        tl.store(given + batch + row, position + 1)
    if usable:
        here = counts + row * vocab
        _push(token, here, recent + row * capacity, pushed + row, tl.load(window), capacity)


@triton.jit
def draw(
    keys,
    keys_stride,
    settings,
    found,
    given,
    states,
    counts,
    recent,
    pushed,
    window,
    vocab,
    capacity,
    COUNT: tl.constexpr,
):
    """Choose among the COUNT best keys, or the top_k of them, which are sorted."""
    row = tl.program_id(0)
    i = tl.arange(0, COUNT)
    keys += row * keys_stride
    key = tl.load(keys + i)
    best = best_logit(keys, 1, 1)
    weight, allowed = weights_of(key, best, settings)
    weight = tl.where(i < tl.load(settings + 5), weight, 0.0)
    left = tl.where(allowed, weight, 0.0)
    top_p = tl.load(settings + 1)
    limit = tl.where(top_p < 1.0, top_p * tl.sum(weight, axis=0), float("inf"))
    reach = tl.cumsum(left, axis=0)
    kept = (left > 0.0) & (reach - left < limit)
    target = uniform(states + row) * tl.sum(tl.where(kept, left, 0.0), axis=0)
    # rounding may leave the last one short of the target
    chosen = tl.minimum(
        tl.min(tl.where(kept & (reach > target), i, COUNT), axis=0),
        tl.max(tl.where(kept, i, 0), axis=0),
    )
    conclude(
        token_of(tl.load(keys + chosen)),
        best,
        row,
        found,
        given,
        states,
        counts,
        recent,
        pushed,
        window,
        vocab,
        capacity,
    )
