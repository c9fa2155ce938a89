"""A chunk of tokens through the whole model: the matrix products are real GEMMs.

Tokens are grouped in blocks of `isa.tokens`; a tile of weights is unpacked once per block. Work is
handed out in small pieces on demand, since a busy machine slows threads unevenly.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import layout as L
from . import thread_memory as M
from .activations import cut_acts, quantize, quantize_one
from .attend import begin, blocks_of, divide, end_of_chunk, join
from .blocks import add_sublayer, offset_of, rotate_queries, tile_of_qkv
from .ffn import build_test
from .plain import clear, copy, share
from .simd import f32_at, i32_at, i64_at
from .team import atomic_load, atomic_store
from .vector import helper, rms_norm


def build(blocks: SimpleNamespace, multiply: Any, barrier: Any, grab: Any, width: int) -> Any:
    """Return prefill(args address, tid) for blocks of `width` tokens."""
    embed, keep_token, gate = blocks.embed, blocks.keep_token, blocks.gate
    ready, attend = blocks.ready, blocks.attend
    test_hidden = build_test(blocks)

    @helper
    def token_range(args: Any, tid: int) -> tuple[int, int]:
        """Whole blocks of tokens for one thread, the last block's padding included."""
        count = (args[L.N_TOKENS] + width - 1) // width
        first, last = share(count, tid, args[L.THREADS])
        return first * width, last * width

    @helper
    def quantize_token(args: Any, token: int, src: int, groups: int) -> None:
        quantize(src, groups, args[L.ACTS], token // width, token % width, width)

    @helper
    def norm_tokens(
        args: Any, weight: int, y: int, post: int, tid: int, memory: int, show: int
    ) -> None:
        """Finish the last sublayer (if `y`), normalize and quantize this thread's tokens.

        `show`: 0, or where the normalized tokens are wanted, float32 [N_TOKENS, D_PAD].
        """
        d_pad = args[L.D_PAD]
        first, last = token_range(args, tid)
        for token in range(first, last):
            x = args[L.X] + 4 * d_pad * token
            if token >= args[L.N_TOKENS]:
                clear(memory, d_pad)
            else:
                if y != 0:
                    add_sublayer(args, x, y + 4 * d_pad * token, post, memory)
                rms_norm(x, weight, memory, d_pad >> 4, args[L.INVERSE_D], args[L.NORM_EPS])
                if show != 0:
                    copy(memory, show + 4 * d_pad * token, d_pad)
            quantize_token(args, token, memory, d_pad >> 5)

    @helper
    def project(args: Any, matrix: int, acts: int, out: int, row: int, count: int) -> None:
        """All tiles of a matrix times `count` blocks, by whoever grabs them; `row` floats apart."""
        tiles = i64_at(matrix)[L.TILES]
        tile = grab(args[L.TEAM])
        while tile < tiles:
            for block in range(count):
                target = out + 4 * block * width * row + 64 * tile
                multiply(matrix, tile, acts, block, width, target, 4 * row)
            tile = grab(args[L.TEAM])

    @helper
    def project_qkv(args: Any, layer: int, count: int) -> None:
        row = args[L.QKV_ROWS]
        tile = grab(args[L.TEAM])
        while tile < row >> 4:
            matrix, inner = tile_of_qkv(layer, tile)
            for block in range(count):
                target = args[L.QKV] + 4 * block * width * row + 64 * tile
                multiply(matrix, inner, args[L.ACTS], block, width, target, 4 * row)
            tile = grab(args[L.TEAM])

    @helper
    def keep_tokens(args: Any, index: int, layer: Any, tid: int, memory: int) -> None:
        """Rotate the keys of this thread's tokens and put them and their values in the cache."""
        first, last = token_range(args, tid)
        for token in range(first, min(last, args[L.N_TOKENS])):
            for kv in range(args[L.KV_HEADS]):
                keep_token(args, index, layer, kv, token, memory)

    @helper
    def attend_tokens(args: Any, index: int, layer: Any, memory: int) -> None:
        """Attention by pieces of (key head, a few tokens): all queries that share the keys."""
        heads, kv_heads, dim, pad = (
            args[L.N_HEADS],
            args[L.KV_HEADS],
            args[L.HEAD_DIM],
            args[L.HEAD_PAD],
        )
        group, window, tokens = heads // kv_heads, layer[L.WINDOW], args[L.N_TOKENS]
        step = max(1, L.ATTENTION_ROWS // group)
        pieces = (tokens + step - 1) // step
        limit = max(L.ATTENTION_ROWS, group)
        queries, acc = memory, memory + 4 * pad * limit
        part = acc + 4 * pad * limit
        stats = part + 4 * pad * limit
        part_stats = stats + 8 * limit
        scores = (part_stats + 8 * limit + 63) >> 6 << 6
        piece = grab(args[L.TEAM])
        while piece < kv_heads * pieces:
            kv = piece % kv_heads
            first = (pieces - 1 - piece // kv_heads) * step  # the longest first
            last = min(first + step, tokens)
            rows, position = (last - first) * group, args[L.POSITION] + first
            for token in range(first, last):
                rotate_queries(args, layer, kv, token, queries + 4 * pad * group * (token - first))
            ready(args, queries, rows, scores)
            for row in range(rows):
                begin(stats + 8 * row, acc + 4 * pad * row, pad)
            block, _ = blocks_of(position, window)
            _, end = blocks_of(args[L.POSITION] + last - 1, window)
            while block < end:
                stop = end_of_chunk(block, end)
                attend(
                    args,
                    index,
                    kv,
                    queries,
                    rows,
                    position,
                    window,
                    block,
                    stop,
                    part,
                    part_stats,
                    scores,
                )
                for row in range(rows):
                    at, line = 8 * row, 4 * pad * row
                    join(stats + at, acc + line, part_stats + at, part + line, pad)
                block = stop
            for row in range(rows):
                token, head = first + row // group, kv * group + row % group
                out = args[L.ATTENDED] + 4 * (args[L.ATTENDED_PAD] * token + head * dim)
                divide(stats + 8 * row, acc + 4 * pad * row, out, dim)
            piece = grab(args[L.TEAM])

    @helper
    def quantize_attended(args: Any, tid: int) -> None:
        wide, used = args[L.ATTENDED_PAD], args[L.N_HEADS] * args[L.HEAD_DIM]
        first, last = token_range(args, tid)
        for token in range(first, last):
            line = args[L.ATTENDED] + 4 * wide * token
            if token >= args[L.N_TOKENS]:
                clear(line, wide)
            clear(line + 4 * used, wide - used)
            quantize_token(args, token, line, wide >> 5)

    @helper
    def gate_and_up(args: Any, index: int, layer: int, count: int, memory: int) -> None:
        """Groups of 32 hidden neurons of all tokens, quantized for the down projection."""
        tested, own = args[L.SPARSE] != 0 or args[L.HEAT] != 0, memory + 256 * width
        if tested:  # layers whose neurons nobody knows
            tested = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index)[L.F_NORMS] != 0
        M.prepare(own)
        tiles = i64_at(layer + 8 * L.GATE)[L.TILES]
        groups = i64_at(layer + 8 * L.DOWN)[L.GROUPS]
        hidden = i64_at(args[L.HIDDEN])
        g, u = memory, memory + 128 * width
        pair = grab(args[L.TEAM])
        while pair < groups:
            for block in range(count):
                for half in range(2):
                    tile = 2 * pair + half
                    if tile < tiles:
                        multiply(
                            layer + 8 * L.GATE, tile, args[L.ACTS], block, width, g + 64 * half, 128
                        )
                        multiply(
                            layer + 8 * L.UP, tile, args[L.ACTS], block, width, u + 64 * half, 128
                        )
                    else:
                        for token in range(width):
                            clear(g + 128 * token + 64, 16)
                            clear(u + 128 * token + 64, 16)
                if tested:
                    for token in range(width):
                        at, position = 128 * token, args[L.POSITION] + block * width + token
                        test_hidden(args, index, position, pair, g + at, u + at, own)
                else:
                    gate(args, g, u, g, 2 * width)
                for token in range(width):
                    quantize_one(g + 128 * token, hidden, pair, groups, block, token, width)
            pair = grab(args[L.TEAM])

    @helper
    def interrupted(args: Any, tid: int) -> bool:
        """Whether to stop here; all threads agree, since one looks and the rest read its answer."""
        team = args[L.TEAM]
        if tid == 0:
            atomic_store(team + 8 * L.STOPPING, atomic_load(team + 8 * L.INTERRUPT))
        barrier(team, args[L.THREADS])
        return atomic_load(team + 8 * L.STOPPING) != 0

    @helper
    def show_states(args: Any, tid: int, y: int, post: int, memory: int) -> None:
        """What this thread's tokens leave behind the last layer, or what the head gets of them."""
        d_pad, vectors = args[L.D_PAD], args[L.D_PAD] >> 4
        first, last = token_range(args, tid)
        for token in range(first, min(last, args[L.N_TOKENS])):
            place = 4 * d_pad * token
            x, out = args[L.X] + place, args[L.STATES] + place
            add_sublayer(args, x, y + place, post, memory)
            if args[L.RESIDUAL] != 0:
                copy(x, args[L.RESIDUAL] + place, d_pad)
            else:
                rms_norm(x, args[L.FINAL_NORM], out, vectors, args[L.INVERSE_D], args[L.NORM_EPS])

    @helper
    def finish_last(args: Any, y: int, post: int, memory: int) -> None:
        """Logits of the last token alone, as in decoding."""
        d_pad, token, head = args[L.D_PAD], args[L.N_TOKENS] - 1, args[L.HEAD]
        x, normed = memory, memory + 4 * d_pad
        acts = normed + 4 * d_pad
        cut_acts(acts, acts + 8 * L.ACTS_WORDS, d_pad >> 5, args[L.APART])
        copy(args[L.X] + 4 * d_pad * token, x, d_pad)
        add_sublayer(args, x, y + 4 * d_pad * token, post, normed)
        rms_norm(x, args[L.FINAL_NORM], normed, d_pad >> 4, args[L.INVERSE_D], args[L.NORM_EPS])
        quantize(normed, d_pad >> 5, acts, 0, 0, 1)
        tile = grab(args[L.TEAM])
        while tile < i64_at(head)[L.TILES]:
            multiply(head, tile, acts, 0, 1, args[L.LOGITS] + 64 * tile, 0)
            tile = grab(args[L.TEAM])

    @helper
    def finish(args: Any, tid: int, y: int, post: int, memory: int) -> None:
        """Logits of the tokens from LOGITS_FROM on."""
        tokens, team, head = args[L.N_TOKENS], args[L.TEAM], args[L.HEAD]
        start, tiles = args[L.LOGITS_FROM], i64_at(head)[L.TILES]
        norm_tokens(args, args[L.FINAL_NORM], y, post, tid, memory, 0)
        barrier(team, args[L.THREADS])
        tile = grab(team)
        while tile < tiles:
            for block in range(start // width, (tokens + width - 1) // width):
                multiply(head, tile, args[L.ACTS], block, width, memory, 64)
                first = block * width
                for token in range(max(start, first), min(first + width, tokens)):
                    out = f32_at(args[L.LOGITS] + 64 * ((token - start) * tiles + tile))
                    values = f32_at(memory + 64 * (token - first))
                    for row in range(16):
                        out[row] = values[row]
            tile = grab(team)

    @helper
    def run_layers(args: Any, tid: int) -> None:
        threads, team, tokens = args[L.THREADS], args[L.TEAM], args[L.N_TOKENS]
        memory = args[L.SCRATCH] + tid * args[L.SCRATCH_BYTES]
        count = (tokens + width - 1) // width
        d_pad, y, post = args[L.D_PAD], 0, 0
        first, last = token_range(args, tid)
        for token in range(first, min(last, tokens)):
            embed(args, i32_at(args[L.TOKENS])[token], args[L.X] + 4 * d_pad * token)
        for index in range(args[L.N_LAYERS]):
            address = args[L.LAYERS] + 8 * L.LAYER_WORDS * index
            layer = i64_at(address)
            norm_tokens(args, layer[L.ATTN_NORM], y, post, tid, memory, 0)
            if interrupted(args, tid):
                return
            project_qkv(args, address, count)
            barrier(team, threads)
            keep_tokens(args, index, layer, tid, memory)
            barrier(team, threads)
            attend_tokens(args, index, layer, memory)
            barrier(team, threads)
            quantize_attended(args, tid)
            barrier(team, threads)
            project(args, address + 8 * L.O, args[L.ACTS], args[L.Y], d_pad, count)
            barrier(team, threads)
            post = layer[L.ATTN_POST_NORM]
            show = offset_of(args[L.FFN_STATES], 4 * d_pad * tokens * index)
            norm_tokens(args, layer[L.FFN_NORM], args[L.Y], post, tid, memory, show)
            barrier(team, threads)
            gate_and_up(args, index, address, count, memory)
            barrier(team, threads)
            project(args, address + 8 * L.DOWN, args[L.HIDDEN], args[L.Y], d_pad, count)
            barrier(team, threads)
            y, post = args[L.Y], layer[L.FFN_POST_NORM]
        if args[L.STATES] != 0 or args[L.RESIDUAL] != 0:
            show_states(args, tid, y, post, memory)
        elif args[L.LOGITS_FROM] == tokens - 1:
            finish_last(args, y, post, memory)
        elif args[L.LOGITS_FROM] < tokens:
            finish(args, tid, y, post, memory)

    @helper
    def prefill(block: int, tid: int) -> None:
        args = i64_at(block)
        team, threads = args[L.TEAM], args[L.THREADS]
        run_layers(args, tid)
        # the caller changes `args` as soon as it returns, so no thread may still be reading them
        barrier(team, threads)

    return prefill
