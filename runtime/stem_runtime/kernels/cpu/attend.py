"""Attention of some queries over some blocks of a cache, of either kind."""

from __future__ import annotations

from typing import Any

from . import attention8
from . import layout as L
from .attention import score_kernel, value_kernel
from .cache8 import chunk_at
from .isa import Isa
from .plain import MASKED, clear, exp_of
from .simd import f32_at
from .vector import exp_scores, helper, max_scores


@helper
def blocks_of(position: int, window: int) -> tuple[int, int]:
    """The range of blocks of 16 positions that the token at `position` sees."""
    oldest = max(0, position - window + 1) if window > 0 else 0
    return oldest >> 4, (position >> 4) + 1


def build(isa: Isa) -> Any:
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
        """Softmax-weighted values of `rows` queries over key blocks [first, last) of one head.

        q, acc: float32 [rows, HEAD_PAD]; row r stands at `position` + r // (queries per key head).
        stats: float32 [rows, 2], the running maximum and sum; acc and stats start from nothing and
        acc is left undivided. The online softmax of Milakov and Gimelshein (2018). `scores` has
        room for `layout.attention_bytes`.
        """
        pad, group = args[L.HEAD_PAD], args[L.N_HEADS] // args[L.KV_HEADS]
        narrow = args[L.CACHE] == L.CACHE_INT8
        block_bytes = pad * (L.INT8_BYTES if narrow else 32)
        head_at = (layer * args[L.KV_HEADS] + head) * args[L.HEAD_BYTES]
        keys, values = args[L.KEYS] + head_at, args[L.VALUES] + head_at
        memory = scores + row_bytes * rows
        quants = memory + row_bytes * 4
        if narrow:
            quantize_rows8(q, rows, pad >> 5, quants)
        state = f32_at(stats)
        for row in range(rows):
            state[2 * row], state[2 * row + 1] = MASKED, 0.0
        clear(acc, rows * pad)
        newest = position + (rows - 1) // group
        block = first
        while block < last:
            inside = block % L.ATTENTION_BLOCKS
            count = min(L.ATTENTION_BLOCKS - inside, last - block)
            start, chunk = 16 * block, chunk_at(block, pad >> 5)
            for i in range(count):
                out = scores + 64 * i
                if narrow:
                    here = keys + chunk + (inside + i) * block_bytes
                    scores_of8(quants, rows, here, pad >> 5, out)
                else:
                    scores_of(q, rows, keys + (block + i) * block_bytes, pad, out)
            for row in range(rows):
                line, cell = scores + row_bytes * row, stats + 8 * row
                at = position + row // group
                oldest = at - window + 1 if window > 0 else 0
                mask(line, oldest - start, at + 1 - start, 16 * count)
                before = state[2 * row]
                max_scores(line, count, cell)
                peak = state[2 * row]
                past = state[2 * row + 1]
                if peak > before and past > 0.0:
                    factor = exp_of(before - peak)
                    past *= factor
                    scale(acc + 4 * pad * row, pad, factor)
                exp_scores(line, count, cell, cell + 4)
                state[2 * row + 1] += past
            if narrow:
                here = values + chunk
                add_values8(scores, rows, here, inside, count, pad >> 5, acc, memory)
            else:
                seen = min(16 * count, newest + 1 - start)
                add_values(scores, rows, values + block * block_bytes, pad, seen, acc)
            block += count

    return attend


@helper
def mask(scores: int, begin: int, end: int, count: int) -> None:
    """Hide all scores but those in [begin, end)."""
    s = f32_at(scores)
    for i in range(min(max(begin, 0), count)):
        s[i] = MASKED
    for i in range(max(end, 0), count):
        s[i] = MASKED


@helper
def scale(vector: int, count: int, factor: float) -> None:
    x = f32_at(vector)
    for i in range(count):
        x[i] *= factor


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
