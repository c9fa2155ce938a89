"""Tokens by their place among all others, found without sorting any.

What holds of the best tokens together, their number or their weight, only grows with how many they
are: the last of the fewest that reach a goal is found digit by digit of its key. For each digit
every program sums up its part of the vocabulary above each of 32 bounds, and the programs of the
next digit add up these sums. Weights are whole numbers, whose sums do not depend on their order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from .sample_draw import conclude, uniform
from .sample_keys import LAST_TOKEN, NO_KEY, TOKEN_BITS, best_logit, token_of, weights_of

DIGIT_BITS = 5
KEY_DIGITS = -(-(32 + TOKEN_BITS) // DIGIT_BITS)
TOKEN_DIGITS = -(-TOKEN_BITS // DIGIT_BITS)

COUNT, NUCLEUS, DRAW, DRAW_ALL = range(4)
"""What a search is for: the last of the top_k, the last of the nucleus, the token drawn among the
nucleus, best first, and the one among all, in the order of tokens."""

_DIGIT_BITS, _DIGITS = tl.constexpr(DIGIT_BITS), tl.constexpr(1 << DIGIT_BITS)
_COUNT, _NUCLEUS, _DRAW = tl.constexpr(COUNT), tl.constexpr(NUCLEUS), tl.constexpr(DRAW)
_LEAST = tl.constexpr(-1 << (31 + TOKEN_BITS))
_NEVER = tl.constexpr((1 << 63) - 1)
_BATCH_OF_PARTS = tl.constexpr(64)


@triton.jit
def _settled(search, table, turn, digits, parts):
    """The bound after `turn` digits, the goal, and the sum that reaches it (0 at the beginning).

    `search` points to the bounds and goals of one sequence, `table` to its sums of both turns.
    """
    before = search + 2 * tl.maximum(turn - 1, 0)
    low, goal = tl.load(before), tl.load(before + 1)
    held = tl.zeros((), tl.int64)
    if turn > 0:
        digit = tl.arange(0, _DIGITS)
        sums = tl.zeros((_DIGITS,), tl.int64)
        for first in range(0, parts, _BATCH_OF_PARTS):
            part = first + tl.arange(0, _BATCH_OF_PARTS)
            place = table + ((turn - 1) % 2 * parts + part)[:, None] * _DIGITS + digit[None, :]
            sums += tl.sum(tl.load(place, mask=(part < parts)[:, None], other=0), axis=0)
        # all reach the bound itself, or nothing does
        reached = tl.max(tl.where(sums >= goal, digit, 0), axis=0)
        held = tl.sum(tl.where(digit == reached, sums, 0), axis=0)
        low += reached.to(tl.int64) << (_DIGIT_BITS * (digits - turn))
    return low, goal, held


@triton.jit
def aim(
    search,
    search_stride,
    before,
    table,
    parts,
    digits,
    sums,
    settings,
    states,
    GOAL: tl.constexpr,
):
    """Set the goal of a search. `before` is the one of the nucleus, for a draw from it."""
    row = tl.program_id(0)
    low = tl.full((), _LEAST, tl.int64)
    if GOAL == _COUNT:
        goal = tl.load(settings + 5).to(tl.int64)
    else:
        total = tl.zeros((), tl.int64)
        if GOAL == _DRAW:
            held = table + row * 2 * parts * _DIGITS
            _, _, total = _settled(before + row * search_stride, held, digits, digits, parts)
        else:
            for first in range(0, parts, 1024):
                part = first + tl.arange(0, 1024)
                place = sums + 2 * (row * parts + part) + (GOAL != _NUCLEUS)
                total += tl.sum(tl.load(place, mask=part < parts, other=0), axis=0)
        if GOAL == _NUCLEUS:
            top_p = tl.load(settings + 1)
            goal = tl.ceil(top_p * total.to(tl.float64)).to(tl.int64)
            goal = tl.where(top_p < 1.0, goal, _NEVER)
        else:
            goal = (uniform(states + row) * total.to(tl.float64)).to(tl.int64) + 1
            goal = tl.minimum(goal, total)
            if GOAL != _DRAW:
                low = tl.zeros((), tl.int64)
    tl.store(search + row * search_stride, low)
    tl.store(search + row * search_stride + 1, goal)


@triton.jit(do_not_specialize=["turn"])
def narrow(
    search,
    search_stride,
    table,
    keys,
    keys_stride,
    weights,
    vocab,
    turn,
    digits,
    BY_TOKEN: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sum up what reaches each bound of digit number `turn`: weights, or tokens without them."""
    part, row, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    search += row * search_stride
    table += row * 2 * parts * _DIGITS
    low, goal, _ = _settled(search, table, turn, digits, parts)
    if (part == 0) & (turn > 0):
        tl.store(search + 2 * turn, low)
        tl.store(search + 2 * turn + 1, goal)
    digit = tl.arange(0, _DIGITS)
    bounds = low + (digit.to(tl.int64) << (_DIGIT_BITS * (digits - 1 - turn)))
    sums = tl.zeros((_DIGITS,), tl.int64)
    for first in range(part * PART, tl.minimum(part * PART + PART, vocab), ROWS):
        token = first + tl.arange(0, ROWS)
        known = token < vocab
        key = tl.load(keys + row * keys_stride + token, mask=known, other=0)
        if BY_TOKEN:
            key = key & LAST_TOKEN
        if weights is None:
            weight = known.to(tl.int64)
        else:
            weight = tl.load(weights + row * keys_stride + token, mask=known, other=0)
        sums += tl.sum(tl.where(key[:, None] >= bounds[None, :], weight[:, None], 0), axis=0)
    tl.store(table + (turn % 2 * parts + part) * _DIGITS + digit, sums)


@triton.jit
def weigh(
    weights,
    sums,
    keys,
    keys_stride,
    peaks,
    search,
    search_stride,
    table,
    digits,
    settings,
    unit,
    vocab,
    SEARCHED: tl.constexpr,
    PEAKS: tl.constexpr,
    PEAKS_PADDED: tl.constexpr,
    PART: tl.constexpr,
):
    """Weights in whole numbers, `unit` for the best token's, zero for those that min_p leaves out.

    Where the last of the top_k was SEARCHED, those behind it are none. `sums` receives for each
    part what the top_k have together, and what is left of them.
    """
    part, row, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    best = best_logit(peaks + row * PEAKS, PEAKS, PEAKS_PADDED)
    token = part * PART + tl.arange(0, PART)
    known = token < vocab
    key = tl.load(keys + row * keys_stride + token, mask=known, other=NO_KEY)
    weight, allowed = weights_of(key, best, settings)
    whole = (weight * unit + 0.5).to(tl.int64)
    if SEARCHED:
        held = table + row * 2 * parts * _DIGITS
        last, _, _ = _settled(search + row * search_stride, held, digits, digits, parts)
        known = known & (key >= last)
    whole = tl.where(known, whole, 0)
    left = tl.where(allowed, whole, 0)
    tl.store(weights + row * keys_stride + token, left, mask=token < vocab)
    to = sums + 2 * (row * parts + part)
    tl.store(to, tl.sum(whole, axis=0))
    tl.store(to + 1, tl.sum(left, axis=0))


@triton.jit
def take(
    search,
    search_stride,
    table,
    parts,
    digits,
    peaks,
    found,
    given,
    states,
    counts,
    recent,
    pushed,
    window,
    vocab,
    capacity,
    PEAKS: tl.constexpr,
    PEAKS_PADDED: tl.constexpr,
):
    """Choose the token that a draw's search has found."""
    row = tl.program_id(0)
    held = table + row * 2 * parts * _DIGITS
    key, _, _ = _settled(search + row * search_stride, held, digits, digits, parts)
    best = best_logit(peaks + row * PEAKS, PEAKS, PEAKS_PADDED)
    conclude(
        token_of(key),
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
