"""The output head of one decoded token: all of it, or only the rows that can still matter.

A look scores every row cheaply, from the hidden state's first principal axes; rows that score less
than the best by more than a calibrated margin are left out, the others computed in full.
"""

from __future__ import annotations

from typing import Any

from . import layout as L
from .blocks import MASKED, quantize, share
from .isa import Isa
from .matmul import row_kernel
from .simd import f32_at, i32_at, i64_at
from .vector import float_of_bits, helper, max_scores

EXCLUDED = -float("inf")


@helper
def pick(scores: int, first: int, last: int, least: float, out: int, room: int) -> int:
    """List the rows in [first, last) scoring at least `least`; every score becomes -inf.

    Returns how many there are; only the first `room` are listed.
    """
    s, rows, count = f32_at(scores), i32_at(out), 0
    for row in range(first, last):
        if s[row] >= least:
            if count < room:
                rows[count] = row
            count += 1
        s[row] = EXCLUDED
    return count


def build(isa: Isa, multiply: Any, barrier: Any, cut_acts: Any, project: Any) -> Any:
    """Return compute_head(args, acts, tid, memory)."""
    row_product = row_kernel(isa)

    @helper
    def look(args: Any, acts: int, tid: int, memory: int) -> float:
        """Score this thread's rows into the logits; returns the best score of all rows."""
        words, scores = i64_at(args[L.LOOK]), args[L.LOOK] + 8 * L.LOOK_SCORES
        axes, tiles = i64_at(scores)[L.GROUPS], i64_at(scores)[L.TILES]
        rotated, inner = memory, memory + 128 * axes
        for tile in range(2 * axes):
            rotation = args[L.LOOK] + 8 * L.LOOK_ROTATION
            multiply(rotation, tile, acts, 0, 1, rotated + 64 * tile, 0)
        cut_acts(inner, inner + 8 * L.ACTS_WORDS, axes)
        quantize(rotated, axes, inner, 0, 0, 1)
        first, last = share(tiles, tid, args[L.THREADS])
        for tile in range(first, last):
            multiply(scores, tile, inner, 0, 1, args[L.LOGITS] + 64 * tile, 0)
        logits = f32_at(args[L.LOGITS])
        for row in range(max(16 * first, args[L.VOCAB]), 16 * last):
            logits[row] = MASKED
        peak = words[L.LOOK_COUNTS] + 8 * (L.LINE * tid + 1)
        f32_at(peak)[0] = MASKED
        max_scores(args[L.LOGITS] + 64 * first, last - first, peak)
        barrier(args[L.TEAM], args[L.THREADS])
        best = MASKED
        for thread in range(args[L.THREADS]):
            best = max(best, f32_at(words[L.LOOK_COUNTS] + 8 * (L.LINE * thread + 1))[0])
        return best

    @helper
    def compute_rows(args: Any, acts: int, total: int, tid: int) -> None:
        """This thread's part of all listed rows, whoever listed them."""
        words, a = i64_at(args[L.LOOK]), i64_at(acts)
        groups = i64_at(args[L.HEAD])[L.GROUPS]
        begin, end = share(total, tid, args[L.THREADS])
        before = 0
        for thread in range(args[L.THREADS]):
            count = i64_at(words[L.LOOK_COUNTS])[L.LINE * thread]
            rows = i32_at(words[L.LOOK_LIST] + 4 * words[L.LOOK_LIMIT] * thread)
            for i in range(max(begin - before, 0), min(end - before, count)):
                row_product(
                    words[L.LOOK_ROWS] + L.ROW_GROUP_BYTES * groups * rows[i],
                    a[L.A_QUANTS],
                    a[L.A_SCALES],
                    a[L.A_SUMS],
                    groups,
                    args[L.LOGITS] + 4 * rows[i],
                )
            before += count

    @helper
    def compute_head(args: Any, acts: int, tid: int, memory: int) -> None:
        """Logits of all rows, -inf for those that the look leaves out."""
        if args[L.LOOK] == 0:
            project(args, args[L.HEAD], acts, args[L.LOGITS], tid)
            return
        words, threads = i64_at(args[L.LOOK]), args[L.THREADS]
        limit, counts = words[L.LOOK_LIMIT], i64_at(words[L.LOOK_COUNTS])
        least = look(args, acts, tid, memory) - float_of_bits(words[L.LOOK_MARGIN])
        first, last = share(i64_at(args[L.HEAD])[L.TILES], tid, threads)
        rows = words[L.LOOK_LIST] + 4 * limit * tid
        last_row = min(16 * last, args[L.VOCAB])
        counts[L.LINE * tid] = pick(args[L.LOGITS], 16 * first, last_row, least, rows, limit)
        barrier(args[L.TEAM], threads)
        total = 0
        for thread in range(threads):
            total += counts[L.LINE * thread]
        if total == 0 or total > limit:
            project(args, args[L.HEAD], acts, args[L.LOGITS], tid)
            total = args[L.VOCAB]
        else:
            compute_rows(args, acts, total, tid)
        if tid == 0:
            words[L.LOOK_DONE] = total

    return compute_head
