"""Attention of a decode step: chunks of positions, dealt over the threads and joined by each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import layout as L
from .attend import begin, blocks_of, chunk_of, divide, end_of_chunk, first_of, join
from .blocks import rotate_queries
from .plain import clear, copy, share
from .vector import helper


@helper
def partial_of(args: Any, token: int, chunk: int, head: int) -> int:
    """Where a maximum, a sum and, 64 bytes on, the weighted values of one chunk are."""
    item = (token * args[L.CHUNKS] + chunk) * args[L.N_HEADS] + head
    return args[L.PARTIALS] + 4 * item * (args[L.HEAD_PAD] + 16)


@helper
def combine(args: Any, token: int, window: int, memory: int, out: int) -> float:
    """Join the chunks of every head: float32 [heads * head_dim], zeros up to the padding.

    Returns how sharp attention is: a head's largest weight, on average over the heads. `memory` is
    heads * (HEAD_PAD + 16) floats of the caller's.
    """
    heads, dim, pad = args[L.N_HEADS], args[L.HEAD_DIM], args[L.HEAD_PAD]
    first, last = blocks_of(args[L.POSITION] + token, window)
    sharpness, each = 0.0, 4 * (pad + 16)
    for head in range(heads):
        begin(memory + each * head, memory + each * head + 64, pad)
    for chunk in range(chunk_of(first), chunk_of(last - 1) + 1):
        for head in range(heads):  # the heads do not wait for each other, chunks of one would
            state, found = memory + each * head, partial_of(args, token, chunk, head)
            join(state, state + 64, found, found + 64, pad)
    for head in range(heads):
        state = memory + each * head
        sharpness += divide(state, state + 64, out + 4 * dim * head, dim)
    clear(out + 4 * heads * dim, args[L.ATTENDED_PAD] - heads * dim)
    return sharpness / heads


@helper
def nearest(block: int, start: int, end: int) -> int:
    """The beginning of a chunk that is nearest to a block in (start, end), or one of the two."""
    if start < block < end:
        before, behind = max(first_of(chunk_of(block)), start), end_of_chunk(block, end)
        return before if block - before < behind - block else behind
    return block


def build(blocks: SimpleNamespace) -> Any:
    """Return attend_share(args, index, layer, tid, memory, tokens)."""
    keep_token, ready, attend = blocks.keep_token, blocks.ready, blocks.attend

    @helper
    def keep_new(
        args: Any, index: int, layer: Any, kv: int, first: int, last: int, memory: int
    ) -> None:
        """Put what the step's tokens leave in blocks [first, last) into the cache.

        Whoever reads a block writes its new positions first.
        """
        for new in range(args[L.N_TOKENS]):
            if first <= (args[L.POSITION] + new) >> 4 < last:
                keep_token(args, index, layer, kv, new, memory)

    @helper
    def attend_head(
        args: Any, index: int, layer: Any, kv: int, first: int, last: int, tokens: int, memory: int
    ) -> None:
        """Chunks [first, last) of blocks, for all queries of one key head."""
        pad, group = args[L.HEAD_PAD], args[L.N_HEADS] // args[L.KV_HEADS]
        rows, position, window = tokens * group, args[L.POSITION], layer[L.WINDOW]
        queries, acc = memory, memory + 4 * pad * rows
        stats = acc + 4 * pad * rows
        scores = (stats + 8 * rows + 63) >> 6 << 6
        for token in range(tokens):
            rotate_queries(args, layer, kv, token, queries + 4 * pad * group * token)
        ready(args, queries, rows, scores)
        block = first
        while block < last:
            stop = end_of_chunk(block, last)
            attend(
                args, index, kv, queries, rows, position, window, block, stop, acc, stats, scores
            )
            for row in range(rows):
                partial = partial_of(args, row // group, chunk_of(block), kv * group + row % group)
                copy(stats + 8 * row, partial, 2)
                copy(acc + 4 * pad * row, partial + 64, pad)
            block = stop

    @helper
    def attend_share(args: Any, index: int, layer: Any, tid: int, memory: int, tokens: int) -> None:
        """This thread's share of (key head, chunk) for all tokens."""
        kv_heads, window, position = args[L.KV_HEADS], layer[L.WINDOW], args[L.POSITION]
        start, _ = blocks_of(position, window)
        _, end = blocks_of(position + tokens - 1, window)
        blocks = end - start
        first, last = share(kv_heads * blocks, tid, args[L.THREADS])
        for kv in range(kv_heads):
            begin_at = nearest(max(first - kv * blocks, 0) + start, start, end)
            stop = nearest(min(last - kv * blocks, blocks) + start, start, end)
            if begin_at < stop:
                keep_new(args, index, layer, kv, begin_at, stop, memory)
                attend_head(args, index, layer, kv, begin_at, stop, tokens, memory)

    return attend_share
