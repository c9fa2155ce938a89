"""Attention of some queries over some blocks of a cache, of either kind.

Positions come in chunks that begin at fixed places. Each is done for itself, and chunks are joined
in order, so that a token's result is the same bits in a prompt and in decoding, in whatever company
it comes and however many threads there are.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import attention8
from . import layout as L
from .attention import join_sums, score_kernel, value_kernel
from .cache8 import chunk_at
from .isa import Isa
from .plain import MASKED, clear
from .simd import f32_at
from .vector import exp_scores, helper, max_scores

SMALL = L.ATTENTION_BLOCKS // L.FIRST_BLOCKS


@helper
def blocks_of(position: int, window: int) -> tuple[int, int]:
    """The range of blocks of 16 positions that the token at `position` sees."""
    oldest = max(0, position - window + 1) if window > 0 else 0
    return oldest >> 4, (position >> 4) + 1


@helper
def chunk_of(block: int) -> int:
    """Which chunk a block belongs to: small ones first, for threads to share, then large ones."""
    if block < L.ATTENTION_BLOCKS:
        return block // L.FIRST_BLOCKS
    return block // L.ATTENTION_BLOCKS + SMALL - 1


@helper
def first_of(chunk: int) -> int:
    """The first block of a chunk."""
    if chunk < SMALL:
        return chunk * L.FIRST_BLOCKS
    return (chunk - SMALL + 1) * L.ATTENTION_BLOCKS


@helper
def end_of_chunk(block: int, last: int) -> int:
    """Where the chunk of a block ends, or blocks do at `last`."""
    return min(first_of(chunk_of(block) + 1), last)


@helper
def begin(stats: int, acc: int, pad: int) -> None:
    """No position seen yet."""
    state = f32_at(stats)
    state[0], state[1] = MASKED, 0.0
    clear(acc, pad)


@helper
def join(stats: int, acc: int, more_stats: int, more: int, pad: int) -> None:
    """Add the next chunk's weighted values to those of the chunks before.

    Their `stats` are a maximum and a sum: the online softmax of Milakov and Gimelshein (2018).
    """
    if f32_at(more_stats)[0] > MASKED:
        join_sums(stats, acc, more_stats, more, pad >> 4)


@helper
def divide(stats: int, acc: int, out: int, dim: int) -> float:
    """Divide by the sum of the weights; returns the largest weight."""
    total = f32_at(stats)[1]
    x, y = f32_at(acc), f32_at(out)
    for d in range(dim):
        y[d] = x[d] / total
    return 1.0 / total


def build(isa: Isa) -> SimpleNamespace:
    """Return ready and attend."""
    native, int8 = isa.native_half, attention8.build(isa)
    quantize_rows8, scores_of8, add_values8 = int8.quantize_rows, int8.scores_of, int8.add_values
    score8, score4, score3, score2, score1 = (_score(rows, native) for rows in (8, 4, 3, 2, 1))
    wide, slim = _values(4, native), _values(1, native)
    row_bytes = 4 * 16 * L.ATTENTION_BLOCKS

    @helper
    def scores_of(q: int, rows: int, keys: int, pad: int, out: int) -> None:
        """Scores of one block of keys for all rows, as many at a time as there are registers."""
        row = 0
        while row < rows:
            source, target, left = q + 4 * pad * row, out + row_bytes * row, rows - row
            if left >= 8:
                score8(source, 4 * pad, keys, pad, target, row_bytes)
                row += 8
            elif left >= 4:
                score4(source, 4 * pad, keys, pad, target, row_bytes)
                row += 4
            elif left == 3:
                score3(source, 4 * pad, keys, pad, target, row_bytes)
                row += 3
            elif left == 2:
                score2(source, 4 * pad, keys, pad, target, row_bytes)
                row += 2
            else:
                score1(source, 4 * pad, keys, pad, target, row_bytes)
                row += 1

    @helper
    def add_values(p: int, rows: int, values: int, pad: int, positions: int, acc: int) -> None:
        """acc += p times values, up to 4 rows and 64 dimensions at a time."""
        row = 0
        while row < rows:
            step = min(rows - row, 4)
            source, target = p + row_bytes * row, acc + 4 * pad * row
            column = 0
            while column < pad:
                v, y = values + 2 * column, target + 4 * column
                if pad - column >= 64:
                    wide(step, source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    column += 64
                else:
                    slim(step, source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    column += 16
            row += step

    @helper
    def ready(args: Any, q: int, rows: int, scores: int) -> None:
        """Prepare queries for `attend`: quantize them if the cache is int8."""
        if args[L.CACHE] == L.CACHE_INT8:
            quantize_rows8(q, rows, args[L.HEAD_PAD] >> 5, scores + row_bytes * (rows + 4))

    @helper
    def attend(
        args: Any,
        layer: int,
        head: int,
        q: int,
        rows: int,
        position: int,
        window: int,
        first: int,
        last: int,
        acc: int,
        stats: int,
        scores: int,
    ) -> None:
        """Softmax-weighted values of `rows` queries over key blocks [first, last) of one chunk.

        q, acc: float32 [rows, HEAD_PAD]; row r stands at `position` + r // (queries per key head).
        stats: float32 [rows, 2], the maximum and the sum of the weights, by which acc is not
        divided. `scores` has room for `layout.attention_bytes`, and `ready` was called with it.
        """
        pad, group = args[L.HEAD_PAD], args[L.N_HEADS] // args[L.KV_HEADS]
        narrow = args[L.CACHE] == L.CACHE_INT8
        block_bytes = pad * (L.INT8_BYTES if narrow else 32)
        head_at = (layer * args[L.KV_HEADS] + head) * args[L.HEAD_BYTES]
        keys, values = args[L.KEYS] + head_at, args[L.VALUES] + head_at
        memory = scores + row_bytes * rows
        quants = memory + row_bytes * 4
        count, start, chunk = last - first, 16 * first, chunk_at(first, pad >> 5)
        inside = first % L.ATTENTION_BLOCKS
        for i in range(count):
            out = scores + 64 * i
            if narrow:
                scores_of8(quants, rows, keys + chunk + (inside + i) * block_bytes, pad >> 5, out)
            else:
                scores_of(q, rows, keys + (first + i) * block_bytes, pad, out)
        for row in range(rows):
            line, cell = scores + row_bytes * row, stats + 8 * row
            at = position + row // group
            oldest = at - window + 1 if window > 0 else 0
            mask(line, oldest - start, at + 1 - start, 16 * count)
            begin(cell, acc + 4 * pad * row, pad)
            max_scores(line, count, cell)
            exp_scores(line, count, cell, cell + 4)
        if narrow:
            add_values8(scores, rows, values + chunk, inside, count, pad >> 5, acc, memory)
        else:
            seen = min(16 * count, position + (rows - 1) // group + 1 - start)
            add_values(scores, rows, values + first * block_bytes, pad, seen, acc)

    return SimpleNamespace(ready=ready, attend=attend)


@helper
def mask(scores: int, begin: int, end: int, count: int) -> None:
    """Hide all scores but those in [begin, end)."""
    s = f32_at(scores)
    for i in range(min(max(begin, 0), count)):
        s[i] = MASKED
    for i in range(max(end, 0), count):
        s[i] = MASKED


def _score(rows: int, native: bool) -> Any:
    intrinsic = score_kernel(rows, native)

    @helper
    def score(q: int, stride: int, keys: int, dim: int, out: int, out_stride: int) -> None:
        intrinsic(q, stride, keys, dim, out, out_stride)

    return score


def _values(vectors: int, native: bool) -> Any:
    one, two, three, four = (_value(rows, vectors, native) for rows in (1, 2, 3, 4))

    @helper
    def values(
        rows: int, p: int, ps: int, v: int, vs: int, positions: int, acc: int, acc_s: int
    ) -> None:
        if rows == 4:
            four(p, ps, v, vs, positions, acc, acc_s)
        elif rows == 3:
            three(p, ps, v, vs, positions, acc, acc_s)
        elif rows == 2:
            two(p, ps, v, vs, positions, acc, acc_s)
        else:
            one(p, ps, v, vs, positions, acc, acc_s)

    return values


def _value(rows: int, vectors: int, native: bool) -> Any:
    intrinsic = value_kernel(rows, vectors, native)

    @helper
    def value(p: int, ps: int, v: int, vs: int, positions: int, acc: int, acc_s: int) -> None:
        intrinsic(p, ps, v, vs, positions, acc, acc_s)

    return value
