"""The output head of decoded tokens: all of it, or only the rows that can still matter.

A look scores every row cheaply, from the hidden state's first principal axes; rows that score less
than a mark by more than a calibrated margin are left out, and where too many remain, the lowest of
them. The others are computed in full.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from . import layout as L
from .activations import copy_lane, cut_acts, quantize
from .head_rows import head_rows_kernel
from .isa import Isa
from .plain import MASKED, share
from .simd import (
    F32,
    I16,
    I64,
    V16F32,
    Builder,
    Value,
    const,
    f32_at,
    i32_at,
    i64_at,
    load,
    lowest,
    splat,
    store,
)
from .vector import float_of_bits, helper, max_scores

EXCLUDED = -float("inf")


def _reached(b: Builder, address: Value, least: Value) -> tuple[Value, Value]:
    scores = load(b, address, V16F32)
    return scores, b.fcmp_ordered(">=", scores, splat(b, b.fptrunc(least, F32)))


@intrinsic
def keep_best(_context: Any, _scores: Any, _least: Any) -> Any:
    """(address of 16 float32, least): a bit for each that is at least that; the others get -inf."""

    def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Value:
        scores, kept = _reached(b, *args)
        store(b, b.select(kept, scores, const(V16F32, EXCLUDED)), args[0])
        return b.zext(b.bitcast(kept, I16), I64)

    return types.int64(types.int64, types.float64), codegen


@intrinsic
def reaching(_context: Any, _scores: Any, _least: Any) -> Any:
    """(address of 16 float32, least): a bit for each that is at least that."""

    def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Value:
        return b.zext(b.bitcast(_reached(b, *args)[1], I16), I64)

    return types.int64(types.int64, types.float64), codegen


@helper
def lag_bin(mark: float, score: float) -> int:
    """How far a score is behind the mark, in parts of a nat; the first one where it is not."""
    lag = (mark - score) * L.BINS_PER_NAT
    return int(max(lag, 0.0)) if lag < L.LAG_BINS - 1 else L.LAG_BINS - 1


@helper
def list_rows(out: int, count: int, tile: int, mask: int) -> int:
    """Put a tile's rows in `mask` behind the `count` in a list; returns how many those are."""
    rows = i32_at(out)
    while mask != 0:
        rows[count] = 16 * tile + lowest(mask)
        mask &= mask - 1
        count += 1
    return count


@helper
def list_near(scores: int, first: int, last: int, least: float, out: int) -> int:
    """List the rows of tiles [first, last) that score at least that; returns how many."""
    count = 0
    for tile in range(first, last):
        count = list_rows(out, count, tile, reaching(scores + 64 * tile, least))
    return count


@helper
def pick(
    scores: int, first: int, last: int, mark: float, margin: float, out: int, bins: int
) -> int:
    """List the rows of tiles [first, last) that score at least `mark` - `margin`.

    They keep their score, and are counted by how far behind they are; the others get -inf. Returns
    how many there are.
    """
    s, rows, counts, count = f32_at(scores), i32_at(out), i32_at(bins), 0
    for place in range(L.LAG_BINS):
        counts[place] = 0
    for tile in range(first, last):
        end = list_rows(out, count, tile, keep_best(scores + 64 * tile, mark - margin))
        for i in range(count, end):
            counts[lag_bin(mark, s[rows[i]])] += 1
        count = end
    return count


@helper
def counts_of(words: Any, thread: int) -> int:
    """Address of what a thread found in its rows."""
    return words[L.LOOK_COUNTS] + 8 * L.LOOK_COUNT_WORDS * thread


@helper
def cut(words: Any, threads: int) -> tuple[int, int]:
    """The first bin whose rows are too many, and how many rows those before it have."""
    total, limit = 0, words[L.LOOK_LIMIT]
    for thread in range(threads):
        total += i64_at(counts_of(words, thread))[L.FOUND_ROWS]
    if total <= limit:
        return L.LAG_BINS, total
    total = 0
    for place in range(L.LAG_BINS):
        more = 0
        for thread in range(threads):
            more += i32_at(counts_of(words, thread) + 8 * L.LINE)[place]
        if total + more > limit:
            return place, total
        total += more
    return L.LAG_BINS, total


def build(isa: Isa, multiply: Any, barrier: Any, project: Any) -> Any:
    """Return compute_head(args, acts, tid, memory, tokens, width)."""
    rows_product = head_rows_kernel(isa)

    @helper
    def score_rows(args: Any, acts: int, tid: int, memory: int, tokens: int, width: int) -> None:
        """Score this thread's rows for every token into its logits."""
        scores, rotation = args[L.LOOK] + 8 * L.LOOK_SCORES, args[L.LOOK] + 8 * L.LOOK_ROTATION
        axes, tiles = i64_at(scores)[L.GROUPS], i64_at(scores)[L.TILES]
        rotated, inner = memory, memory + 128 * axes * width
        for tile in range(2 * axes):
            multiply(rotation, tile, acts, 0, width, rotated + 64 * tile, 128 * axes)
        cut_acts(inner, inner + 8 * L.ACTS_WORDS, axes * width, 0)
        for token in range(tokens):
            quantize(rotated + 128 * axes * token, axes, inner, 0, token, width)
        first, last = share(tiles, tid, args[L.THREADS])
        for tile in range(first, last):
            multiply(scores, tile, inner, 0, width, args[L.LOGITS] + 64 * tile, 64 * tiles)

    @helper
    def best_score(args: Any, scores: int, tid: int) -> float:
        """The best of all rows of one token, whose `scores` every thread has of its own rows."""
        words = i64_at(args[L.LOOK])
        first, last = share(i64_at(args[L.HEAD])[L.TILES], tid, args[L.THREADS])
        s = f32_at(scores)
        for row in range(max(16 * first, args[L.VOCAB]), 16 * last):
            s[row] = MASKED
        peak = counts_of(words, tid) + 8 * L.FOUND_SCORE
        f32_at(peak)[0] = MASKED
        max_scores(scores + 64 * first, last - first, peak)
        barrier(args[L.TEAM], args[L.THREADS])
        best = MASKED
        for thread in range(args[L.THREADS]):
            best = max(best, f32_at(counts_of(words, thread) + 8 * L.FOUND_SCORE)[0])
        return best

    @helper
    def mark_of(args: Any, acts: int, scores: int, tid: int) -> float:
        """What margins are measured from: see `sparsity.head.HeadLook`."""
        best, words = best_score(args, scores, tid), i64_at(args[L.LOOK])
        if words[L.LOOK_MEAN + L.TILE] == 0:
            return best
        first, last = share(i64_at(args[L.HEAD])[L.TILES], tid, args[L.THREADS])
        here, found, near = words[L.LOOK_LIST] + 64 * first, counts_of(words, tid), MASKED
        count = list_near(scores, first, last, best - L.NEAR, here)
        logits, groups = f32_at(words[L.LOOK_NEAR]), i64_at(args[L.HEAD])[L.GROUPS]
        rows_product(words[L.LOOK_ROWS], here, count, acts, groups, words[L.LOOK_NEAR])
        for i in range(count):
            near = max(near, logits[i32_at(here)[i]])
        f32_at(found + 8 * L.FOUND_LOGIT)[0] = near
        barrier(args[L.TEAM], args[L.THREADS])
        for thread in range(args[L.THREADS]):
            near = max(near, f32_at(counts_of(words, thread) + 8 * L.FOUND_LOGIT)[0])
        common = found + 8 * L.LINE  # where nothing is counted yet
        multiply(args[L.LOOK] + 8 * L.LOOK_MEAN, 0, acts, 0, 1, common, 0)
        return (best + near - f32_at(common)[0]) / 2

    @helper
    def compute_rows(args: Any, acts: int, out: int, mark: float, end: int, tid: int) -> None:
        """This thread's part of all listed rows before bin `end`, whoever listed them."""
        words, logits, total = i64_at(args[L.LOOK]), f32_at(out), 0
        groups, tiles = i64_at(args[L.HEAD])[L.GROUPS], i64_at(args[L.HEAD])[L.TILES]
        for thread in range(args[L.THREADS]):
            total += i64_at(counts_of(words, thread))[L.FOUND_ROWS]
        begin, stop = share(total, tid, args[L.THREADS])
        before = 0
        for thread in range(args[L.THREADS]):
            count = i64_at(counts_of(words, thread))[L.FOUND_ROWS]
            here = words[L.LOOK_LIST] + 64 * share(tiles, thread, args[L.THREADS])[0]
            rows = i32_at(here)
            first, last = max(begin - before, 0), min(stop - before, count)
            kept = last
            if end < L.LAG_BINS:
                kept = first
                for i in range(first, last):
                    row = rows[i]
                    if lag_bin(mark, logits[row]) < end:
                        rows[kept] = row
                        kept += 1
                    else:
                        logits[row] = EXCLUDED
            if kept > first:
                rows_product(words[L.LOOK_ROWS], here + 4 * first, kept - first, acts, groups, out)
            before += count

    @helper
    def finish_token(args: Any, acts: int, logits: int, tid: int) -> int:
        """Turn the scores of one token, `logits`, into them; how many rows that took.

        `acts` are of that token alone. Rows that the look leaves out get -inf.
        """
        words, threads = i64_at(args[L.LOOK]), args[L.THREADS]
        mark, margin = mark_of(args, acts, logits, tid), float_of_bits(words[L.LOOK_MARGIN])
        first, last = share(i64_at(args[L.HEAD])[L.TILES], tid, threads)
        rows, found = words[L.LOOK_LIST] + 64 * first, counts_of(words, tid)
        count = pick(logits, first, last, mark, margin, rows, found + 8 * L.LINE)
        i64_at(found)[L.FOUND_ROWS] = count
        barrier(args[L.TEAM], threads)
        end, total = cut(words, threads)
        if total == 0:  # scores that are no numbers or tell nothing, or more than may be computed
            project(args, args[L.HEAD], acts, logits, 0, tid, 1)
            return args[L.VOCAB]
        compute_rows(args, acts, logits, mark, end, tid)
        return total

    @helper
    def compute_head(args: Any, acts: int, tid: int, memory: int, tokens: int, width: int) -> None:
        """Logits of all rows for every token, -inf for those that the look leaves out."""
        row = 64 * i64_at(args[L.HEAD])[L.TILES]
        if args[L.LOOK] == 0:
            project(args, args[L.HEAD], acts, args[L.LOGITS], row, tid, width)
            return
        score_rows(args, acts, tid, memory, tokens, width)
        groups, total = i64_at(args[L.HEAD])[L.GROUPS], 0
        alone = acts
        if width > 1:
            alone = memory
            cut_acts(alone, alone + 8 * L.ACTS_WORDS, groups, args[L.APART])
        for token in range(tokens):
            if width > 1:
                copy_lane(acts, token, width, groups, alone)
            total += finish_token(args, alone, args[L.LOGITS] + row * token, tid)
        if tid == 0:
            i64_at(args[L.LOOK])[L.LOOK_DONE] = total

    return compute_head
