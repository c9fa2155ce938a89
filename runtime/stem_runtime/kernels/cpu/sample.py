"""Picks a token: top-k, nucleus and min-p without ever sorting the vocabulary.

One pass keeps the best logit of every block of 64. The k-th best of those bounds the k-th best
logit from below, so a second pass over the few blocks above it finds all candidates; they go into a
heap, which is emptied only as far as the nucleus reaches. All arithmetic is plain IEEE float64
in a fixed order, so that equal logits and draws give equal tokens on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from . import sample_args as word
from .simd import f32_at, f64_at, i32_at
from .vector import float_of_bits

_Function = TypeVar("_Function", bound=Callable[..., Any])
_helper: Callable[[_Function], _Function] = cast("Any", numba.njit)(
    error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_ROUND = 6755399441055744.0  # adding and taking it away rounds to an integer
_NEAR = 16.0  # e**-16: the whole tail under it seldom matters
_MINUS_INFINITY = -np.inf


@_helper
def _exp(x: float) -> float:
    """e**x for x <= 0, without the platform's library, whose last bit differs."""
    x = max(x, -745.0)
    n = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    y = 1.0 / 479001600.0
    y = y * r + 1.0 / 39916800.0
    y = y * r + 1.0 / 3628800.0
    y = y * r + 1.0 / 362880.0
    y = y * r + 1.0 / 40320.0
    y = y * r + 1.0 / 5040.0
    y = y * r + 1.0 / 720.0
    y = y * r + 1.0 / 120.0
    y = y * r + 1.0 / 24.0
    y = y * r + 1.0 / 6.0
    y = y * r + 0.5
    y = y * r + 1.0
    y = y * r + 1.0
    power = float_of_bits((np.int64(n) + 1023) << 52)
    return y * power if x > -700.0 else 0.0


@_helper
def _scan(logits: int, vocab: int, peaks: int) -> bool:
    """Fill the best logit of each block; False where a logit is NaN or plus infinity."""
    bits, out = i32_at(logits), i32_at(peaks)
    flip = np.int32(0x7FFFFFFF)
    best, worst = np.int32(-0x80000000), flip
    for start in range(0, vocab, word.BLOCK):
        top, low = np.int32(-0x80000000), flip
        for i in range(start, min(start + word.BLOCK, vocab)):
            # as integers in the order of the floats: NaNs fall outside of the infinities
            key = bits[i] ^ ((bits[i] >> np.int32(31)) & flip)
            top, low = max(top, key), min(low, key)
        out[start // word.BLOCK] = top ^ ((top >> np.int32(31)) & flip)
        best, worst = max(best, top), min(worst, low)
    return bool(best < 0x7F800000 and worst >= -0x7F800001)


@_helper
def _kth_best(values: int, count: int, k: int, heap: int) -> float:
    """The k-th largest of `count` floats; `heap` has room for k."""
    x, h = f32_at(values), f32_at(heap)
    for n in range(count):
        if n < k:
            place = n
            while place > 0 and x[n] < h[(place - 1) >> 1]:
                h[place] = h[(place - 1) >> 1]
                place = (place - 1) >> 1
            h[place] = x[n]
        elif x[n] > h[0]:
            place = 0
            while 2 * place + 1 < k:
                child = 2 * place + 1
                if child + 1 < k and h[child + 1] < h[child]:
                    child += 1
                if h[child] >= x[n]:
                    break
                h[place] = h[child]
                place = child
            h[place] = x[n]
    return np.float64(h[0])


@_helper
def _collect(args: Any, floor: float) -> int:
    """List the tokens whose logit is at least `floor` and not minus infinity, in order."""
    logits, peaks, ids = f32_at(args[word.LOGITS]), f32_at(args[word.PEAKS]), i32_at(args[word.IDS])
    count = 0
    for start in range(0, args[word.VOCAB], word.BLOCK):
        if peaks[start // word.BLOCK] >= floor:
            for i in range(start, min(start + word.BLOCK, args[word.VOCAB])):
                if logits[i] >= floor and logits[i] > _MINUS_INFINITY:
                    ids[count] = i
                    count += 1
    return count


@_helper
def _sink(logits: Any, ids: Any, place: int, count: int, item: int) -> None:
    """Put `item` into the heap of better-first tokens from `place` down; lower ids win ties."""
    while 2 * place + 1 < count:
        child = 2 * place + 1
        left, right = ids[child], ids[min(child + 1, count - 1)]
        if logits[right] > logits[left] or (logits[right] == logits[left] and right < left):
            child, left = child + 1, right
        if logits[item] > logits[left] or (logits[item] == logits[left] and item < left):
            break
        ids[place] = left
        place = child
    ids[place] = item


@_helper
def _total(args: Any, best: float) -> float:
    """The sum of all weights, by eight interleaved sums."""
    logits, weights = f32_at(args[word.LOGITS]), f64_at(args[word.WEIGHTS])
    temperature = float_of_bits(args[word.TEMPERATURE])
    vocab = args[word.VOCAB]
    for i in range(vocab):
        weights[i] = _exp((logits[i] - best) / temperature)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = vocab & ~7
    for i in range(0, whole, 8):
        s0 += weights[i]
        s1 += weights[i + 1]
        s2 += weights[i + 2]
        s3 += weights[i + 3]
        s4 += weights[i + 4]
        s5 += weights[i + 5]
        s6 += weights[i + 6]
        s7 += weights[i + 7]
    for i in range(whole, vocab):
        s0 += weights[i]
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@_helper
def _take_best(args: Any, count: int, best: float, wanted: int, total: float) -> bool:
    """Keep the best of `count` candidates: `wanted` at most, and the nucleus of them.

    `total` is the mass the nucleus is a share of, negative for that of the wanted ones. False where
    the candidates ran out before the nucleus was full.
    """
    logits, ids, weights = (
        f32_at(args[word.LOGITS]),
        i32_at(args[word.IDS]),
        f64_at(args[word.WEIGHTS]),
    )
    temperature, top_p = float_of_bits(args[word.TEMPERATURE]), float_of_bits(args[word.TOP_P])
    min_p = float_of_bits(args[word.MIN_P])
    for place in range(count // 2 - 1, -1, -1):
        _sink(logits, ids, place, count, ids[place])
    wanted = min(wanted, count)
    mass = 0.0
    taken = 0
    while taken < wanted:
        # the heap shrinks from its end, and the best pile up there
        last = count - 1 - taken
        token, moved = ids[0], ids[last]
        _sink(logits, ids, 0, last, moved)
        ids[last] = token
        weights[taken] = _exp((logits[token] - best) / temperature)
        mass += weights[taken]
        taken += 1
        if total >= 0.0 and mass >= top_p * total:
            break
    full = total < 0.0 or mass >= top_p * total
    limit = np.inf if top_p >= 1.0 else top_p * (mass if total < 0.0 else total)
    kept, mass = 0, 0.0
    while kept < taken and mass < limit and weights[kept] > 0.0 and weights[kept] >= min_p:
        mass += weights[kept]
        kept += 1
    for i in range(kept):
        # from the end of the array to its start, without overwriting what is still to come
        j = count - 1 - i
        if i < j:
            ids[i], ids[j] = ids[j], ids[i]
    args[word.KEPT] = kept
    return full


@_helper
def _take_all(args: Any, count: int, best: float) -> None:
    """Keep every candidate that min_p allows."""
    logits, ids, weights = (
        f32_at(args[word.LOGITS]),
        i32_at(args[word.IDS]),
        f64_at(args[word.WEIGHTS]),
    )
    temperature, min_p = float_of_bits(args[word.TEMPERATURE]), float_of_bits(args[word.MIN_P])
    kept = 0
    for i in range(count):
        weight = _exp((logits[ids[i]] - best) / temperature)
        if weight > 0.0 and weight >= min_p:
            ids[kept] = ids[i]
            weights[kept] = weight
            kept += 1
    args[word.KEPT] = kept


@_helper
def _select(args: Any, best: float, blocks: int) -> None:
    vocab, top_k = args[word.VOCAB], args[word.TOP_K]
    if top_k < vocab:
        floor = _MINUS_INFINITY
        if top_k <= blocks:
            floor = _kth_best(args[word.PEAKS], blocks, top_k, args[word.HEAP])
        _take_best(args, _collect(args, floor), best, top_k, -1.0)
        return
    margin = float_of_bits(args[word.MARGIN])
    if float_of_bits(args[word.TOP_P]) >= 1.0 and margin == _MINUS_INFINITY:
        _total(args, best)
        ids = i32_at(args[word.IDS])
        for i in range(vocab):
            ids[i] = i
        args[word.KEPT] = vocab
        return
    slack = 1e-9 * (1.0 + abs(best))
    if float_of_bits(args[word.TOP_P]) >= 1.0:
        _take_all(args, _collect(args, best + margin * (1.0 + 1e-9) - slack), best)
        return
    total = _total(args, best)
    near = max(margin, -_NEAR * float_of_bits(args[word.TEMPERATURE]))
    count = _collect(args, best + near * (1.0 + 1e-9) - slack)
    if not _take_best(args, count, best, vocab, total) and near > margin:
        count = _collect(args, best + margin * (1.0 + 1e-9) - slack)
        _take_best(args, count, best, vocab, total)


@_helper
def _draw(args: Any) -> None:
    ids, weights, kept = i32_at(args[word.IDS]), f64_at(args[word.WEIGHTS]), args[word.KEPT]
    mass = 0.0
    for i in range(kept):
        mass += weights[i]
    # below the mass that the same additions reach, so that a token without weight is never drawn
    target = float_of_bits(args[word.DRAW]) * mass
    chosen, reached = 0, weights[0]
    while reached <= target and chosen + 1 < kept:
        chosen += 1
        reached += weights[chosen]
    args[word.TOKEN] = ids[chosen]


def _choose(ctx: Any, _tid: int) -> None:
    blocks = (ctx[word.VOCAB] + word.BLOCK - 1) // word.BLOCK
    if not _scan(ctx[word.LOGITS], ctx[word.VOCAB], ctx[word.PEAKS]):
        ctx[word.STATUS] = word.NOT_FINITE
        return
    best = _kth_best(ctx[word.PEAKS], blocks, 1, ctx[word.HEAP])
    if best == _MINUS_INFINITY:
        ctx[word.STATUS] = word.NOTHING_LEFT
        return
    _select(ctx, best, blocks)
    _draw(ctx)
    ctx[word.STATUS] = word.FINE


def entries(_variant: str) -> dict[str, Callable[..., Any]]:
    """The entry for `load_unit`: choose."""
    return {"choose": _choose}
