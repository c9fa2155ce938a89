"""Attention of a decode step: split over the threads by blocks of positions, joined by each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import layout as L
from .attend import blocks_of
from .blocks import rotate_queries
from .plain import clear, exp_of, share
from .simd import f32_at
from .vector import helper


@helper
def partials_of(args: Any, token: int, thread: int) -> int:
    """Address of what one thread found for the heads of one token."""
    nbytes = 4 * args[L.N_HEADS] * (args[L.HEAD_PAD] + 16)
    return args[L.PARTIALS] + (token * args[L.THREADS] + thread) * nbytes


@helper
def combine(args: Any, token: int, out: int) -> float:
    """Join the threads' partial attention: float32 [heads * head_dim], zeros up to the padding.

    Returns how sharp it is: a head's largest weight, on average over the heads.
    """
    sharpness = 0.0
    heads, dim = args[L.N_HEADS], args[L.HEAD_DIM]
    threads, stride = args[L.THREADS], args[L.HEAD_PAD] + 16
    for head in range(heads):
        peak, total = -1e38, 0.0
        for thread in range(threads):
            part = f32_at(partials_of(args, token, thread) + 4 * stride * head)
            if part[1] > 0.0:
                peak = max(peak, part[0])
        y = f32_at(out + 4 * dim * head)
        for d in range(dim):
            y[d] = 0.0
        for thread in range(threads):
            part = f32_at(partials_of(args, token, thread) + 4 * stride * head)
            if part[1] > 0.0:
                weight = exp_of(part[0] - peak)
                total += part[1] * weight
                for d in range(dim):
                    y[d] += weight * part[16 + d]
        inverse = 1.0 / total
        sharpness += inverse
        for d in range(dim):
            y[d] *= inverse
    clear(out + 4 * heads * dim, args[L.ATTENDED_PAD] - heads * dim)
    return sharpness / heads


def build(blocks: SimpleNamespace) -> Any:
    """Return attend_share(args, index, layer, tid, memory, tokens)."""
    keep_token, attend = blocks.keep_token, blocks.attend

    @helper
    def keep_new(
        args: Any, index: int, layer: Any, kv: int, token: int, begin: int, stop: int, memory: int
    ) -> None:
        """Put what the step's tokens up to `token` leave in blocks [begin, stop) into the cache.

        Whoever reads a block writes its new positions first. Two threads may write the same bytes,
        since tokens that begin a block split the others in another way.
        """
        for new in range(token + 1):
            if begin <= (args[L.POSITION] + new) >> 4 < stop:
                keep_token(args, index, layer, kv, new, memory)

    @helper
    def attend_tokens(
        args: Any,
        index: int,
        layer: Any,
        tid: int,
        memory: int,
        token: int,
        until: int,
        start: int,
        end: int,
    ) -> None:
        """This thread's share of (key head, block in [start, end)) for tokens [token, until)."""
        heads, kv_heads, pad = args[L.N_HEADS], args[L.KV_HEADS], args[L.HEAD_PAD]
        group, window, position = heads // kv_heads, layer[L.WINDOW], args[L.POSITION] + token
        rows, blocks = (until - token) * group, end - start
        queries, acc = memory, memory + 4 * pad * rows
        stats = acc + 4 * pad * rows
        new = stats + 8 * rows
        scores = (new + 8 * pad + 63) >> 6 << 6
        first, last = share(kv_heads * blocks, tid, args[L.THREADS])
        for kv in range(kv_heads):
            begin = max(first - kv * blocks, 0) + start
            stop = min(last - kv * blocks, blocks) + start
            if begin >= stop:
                continue
            keep_new(args, index, layer, kv, until - 1, begin, stop, new)
            for t in range(token, until):
                rotate_queries(args, layer, kv, t, queries + 4 * pad * group * (t - token))
            attend(
                args, index, kv, queries, rows, position, window, begin, stop, acc, stats, scores
            )
            for row in range(rows):
                head = kv * group + row % group
                partials = partials_of(args, token + row // group, tid)
                part = f32_at(partials + 4 * head * (pad + 16))
                state, y = f32_at(stats + 8 * row), f32_at(acc + 4 * pad * row)
                part[0], part[1] = state[0], state[1]
                for d in range(pad):
                    part[16 + d] = y[d]

    @helper
    def attend_share(args: Any, index: int, layer: Any, tid: int, memory: int, tokens: int) -> None:
        """Attention of all tokens, each split over the threads as it is alone."""
        heads, window, width = args[L.N_HEADS], layer[L.WINDOW], args[L.HEAD_PAD] + 16
        for token in range(tokens):
            partials = partials_of(args, token, tid)
            for head in range(heads):
                f32_at(partials + 4 * head * width)[1] = 0.0
        token = 0
        while token < tokens:
            start, end = blocks_of(args[L.POSITION] + token, window)
            until = token + 1
            while until < tokens and blocks_of(args[L.POSITION] + until, window) == (start, end):
                until += 1
            attend_tokens(args, index, layer, tid, memory, token, until, start, end)
            token = until

    return attend_share
