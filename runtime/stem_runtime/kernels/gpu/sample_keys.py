"""Logits as keys that compare as integers, and the best of them."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

TOKEN_BITS = 23
"""Low bits of a key, in which the token is: more than any vocabulary's, filled up to a slice."""

_TOKEN_BITS = tl.constexpr(TOKEN_BITS)
LAST_TOKEN = tl.constexpr((1 << TOKEN_BITS) - 1)
NO_KEY = tl.constexpr(-0x7F800001 << TOKEN_BITS)
"""Minus infinity, behind every token."""


@triton.jit
def _order(bits):
    """Between the bits of a float, int32, and an integer that is larger where the float is."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _keys_of(logits, counts, settings, token, vocab):
    """Keys of the penalized logits of `token`; NaN goes as plus infinity.

    Tokens behind the vocabulary are as minus infinity, all different like the others.
    """
    valid = token < vocab
    logit = tl.load(logits + token, mask=valid, other=float("-inf"))
    penalty = tl.where(logit > 0, tl.load(settings + 4), tl.load(settings + 3))
    penalized = (logit.to(tl.float64) * penalty).to(tl.float32)
    logit = tl.where(tl.load(counts + token, mask=valid, other=0) > 0, penalized, logit)
    logit = tl.where(logit != logit, float("inf"), logit)
    # zeros of both signs are equal
    logit = tl.where(logit == 0, 0.0, logit)
    rank = _order(logit.to(tl.int32, bitcast=True)).to(tl.int64)
    return (rank << _TOKEN_BITS) | (token ^ LAST_TOKEN)


@triton.jit
def logit_of(key):
    """The float32 logits of keys."""
    return _order((key >> _TOKEN_BITS).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def token_of(key):
    """The int32 tokens of keys."""
    return ((key & LAST_TOKEN) ^ LAST_TOKEN).to(tl.int32)


@triton.jit
def best_logit(peaks, PEAKS: tl.constexpr, PEAKS_PADDED: tl.constexpr):
    """The logit of the largest of PEAKS keys, as a float64."""
    i = tl.arange(0, PEAKS_PADDED)
    key = tl.load(peaks + i, mask=i < PEAKS, other=NO_KEY)
    return logit_of(tl.max(key, axis=0)).to(tl.float64)


@triton.jit
def weights_of(key, best, settings):
    """Weights of keys relative to the best one's, as float64, and whether min_p allows them."""
    x = (logit_of(key).to(tl.float64) - best) * tl.load(settings)
    weight = tl.where(x > -700.0, tl.exp(x), 0.0)
    return weight, weight >= tl.load(settings + 2)


@triton.jit
def all_keys(
    keys, keys_stride, peaks, logits, logits_stride, counts, settings, vocab, SLICE: tl.constexpr
):
    """Keys of all tokens in their order, and the largest of each slice."""
    row = tl.program_id(1)
    token = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    key = _keys_of(logits + row * logits_stride, counts + row * vocab, settings, token, vocab)
    tl.store(keys + row * keys_stride + token, key, mask=token < vocab)
    tl.store(peaks + row * tl.num_programs(0) + tl.program_id(0), tl.max(key, axis=0))


@triton.jit
def _bound(key, WANTED: tl.constexpr):
    """A number that exactly WANTED of the keys reach, the best all different; found by halving."""
    low, high = tl.min(key, axis=0), tl.max(key, axis=0)
    # as many reach `low`, and less than WANTED exceed `high`
    reach = key.shape[0]
    while reach != WANTED:
        # rounded up, without overflow
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        count = tl.sum((key >= middle).to(tl.int32), axis=0)
        enough = count >= WANTED
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
        reach = tl.where(enough, count, reach)
    return low


@triton.jit
def best_keys(
    found,
    found_stride,
    source,
    source_stride,
    counts,
    settings,
    count,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SLICE: tl.constexpr,
    WANTED: tl.constexpr,
):
    """The WANTED best of each slice: of logits where FIRST, else of keys. LAST sorts them."""
    row = tl.program_id(1)
    place = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    here = source + row * source_stride
    if FIRST:
        key = _keys_of(here, counts + row * count, settings, place, count)
    else:
        # SLICE and `count` are multiples of WANTED: what fills up a slice is never among its best
        key = tl.load(here + place, mask=place < count, other=NO_KEY)
    to = found + row * found_stride + tl.program_id(0) * WANTED
    if WANTED == 1:
        tl.store(to, tl.max(key, axis=0))
    else:
        chosen = key >= _bound(key, WANTED)
        tl.store(to + tl.cumsum(chosen.to(tl.int32), axis=0) - 1, key, mask=chosen)
        if LAST:
            tl.debug_barrier()
            key = tl.load(to + tl.arange(0, WANTED))
            better = (key[None, :] > key[:, None]).to(tl.int32)
            tl.debug_barrier()
            tl.store(to + tl.sum(better, axis=1), key)
