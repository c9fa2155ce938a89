"""One token, or a few that were drafted, through the whole model, run by every thread at once.

Each thread keeps its own copy of the residual stream and quantizes its own activations: repeating
that little work costs less than a barrier. Barriers stand only where a thread needs what others
computed: five a layer.

Several tokens share each load of a weight, and nothing else: every one is computed in the order
that it would be computed in alone, so that its logits are the same bits.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import layout as L
from .blocks import clear, copy, exp_of, quantize, quantize_one, rope_head, share
from .ffn import note_dense
from .head import build as build_head
from .isa import Isa
from .simd import f32_at, i32_at, i64_at
from .vector import axpy, float_of_bits, helper, rms_norm


@helper
def step_width(tokens: int) -> int:
    """The tokens that are multiplied by at a time where there are so many."""
    return tokens if tokens <= 2 else 4


@helper
def cut_acts(words: int, memory: int, groups: int) -> int:
    """Lay out activations of `groups` groups at `memory`; returns where it ends."""
    a = i64_at(words)
    a[L.A_QUANTS] = memory
    a[L.A_SCALES] = memory + 32 * groups
    a[L.A_BIAS] = a[L.A_SCALES] + 4 * groups
    a[L.A_SUMS] = a[L.A_BIAS] + 4 * groups
    return a[L.A_SUMS] + 4 * groups


@helper
def clear_acts(words: int, first: int, last: int) -> None:
    """Make activations of groups [first, last), which nothing quantizes to, zero."""
    a = i64_at(words)
    clear(a[L.A_QUANTS] + 32 * first, 8 * (last - first))
    for array in (L.A_SCALES, L.A_BIAS, L.A_SUMS):
        clear(a[array] + 4 * first, last - first)


@helper
def add_sublayer(args: Any, x: int, y: int, post_norm: int, tmp: int) -> None:
    """x += residual_scale * y, with y normalized first where the model does so."""
    vectors, source = args[L.D_PAD] >> 4, y
    if post_norm != 0:
        rms_norm(y, post_norm, tmp, vectors, args[L.INVERSE_D], args[L.NORM_EPS])
        source = tmp
    axpy(args[L.RESIDUAL_SCALE], source, x, vectors)


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


@helper
def offset_of(address: int, bytes_: int) -> int:
    """Address arithmetic that keeps 0 (absent) at 0."""
    return address + bytes_ if address != 0 else 0


@helper
def key_rows(layer: Any) -> tuple[int, int]:
    """First tile of the k and of the v rows in the joint q, k, v output."""
    q_tiles = layer[L.Q + L.TILES]
    return q_tiles, q_tiles + layer[L.K + L.TILES]


@helper
def tile_of_qkv(layer: int, tile: int) -> tuple[int, int]:
    """Which matrix, and which of its tiles, gives a tile of the joint q, k, v output."""
    k_row, v_row = key_rows(i64_at(layer))
    if tile >= v_row:
        return layer + 8 * L.V, tile - v_row
    if tile >= k_row:
        return layer + 8 * L.K, tile - k_row
    return layer + 8 * L.Q, tile


@helper
def blocks_of(position: int, window: int) -> tuple[int, int]:
    """The range of blocks of 16 positions that the token at `position` sees."""
    oldest = max(0, position - window + 1) if window > 0 else 0
    return oldest >> 4, (position >> 4) + 1


def build(isa: Isa, blocks: SimpleNamespace, multiply: Any, barrier: Any, sparse_ffn: Any) -> Any:
    """Return decode(args address, tid)."""
    embed, gate = blocks.embed, blocks.gate
    attend_share = _build_attend_share(blocks)

    @helper
    def project_qkv(args: Any, layer: int, acts: int, tid: int, width: int) -> None:
        first, last = share(args[L.QKV_ROWS] >> 4, tid, args[L.THREADS])
        for tile in range(first, last):
            matrix, inner = tile_of_qkv(layer, tile)
            multiply(matrix, inner, acts, 0, width, args[L.QKV] + 64 * tile, 4 * args[L.QKV_ROWS])

    @helper
    def gate_and_up(
        args: Any, layer: int, acts: int, tid: int, memory: int, tokens: int, width: int
    ) -> None:
        """This thread's groups of 32 hidden neurons, quantized for the down projection."""
        tiles = i64_at(layer + 8 * L.GATE)[L.TILES]
        groups = i64_at(layer + 8 * L.DOWN)[L.GROUPS]
        hidden = i64_at(args[L.HIDDEN])
        first, last = share(groups, tid, args[L.THREADS])
        g, u = memory, memory + 128 * width
        for pair in range(first, last):
            for half in range(2):
                if 2 * pair + half < tiles:
                    tile = 2 * pair + half
                    multiply(layer + 8 * L.GATE, tile, acts, 0, width, g + 64 * half, 128)
                    multiply(layer + 8 * L.UP, tile, acts, 0, width, u + 64 * half, 128)
                else:
                    for token in range(width):
                        clear(g + 128 * token + 64, 16)
                        clear(u + 128 * token + 64, 16)
            gate(args, g, u, g, 2 * width)
            for token in range(tokens):
                quantize_one(g + 128 * token, hidden, pair, groups, 0, token, width)

    @helper
    def project(
        args: Any, matrix: int, acts: int, out: int, row: int, tid: int, width: int
    ) -> None:
        """A matrix times the step's tokens, to float32 rows `row` bytes apart."""
        first, last = share(i64_at(matrix)[L.TILES], tid, args[L.THREADS])
        for tile in range(first, last):
            multiply(matrix, tile, acts, 0, width, out + 64 * tile, row)

    compute_head = build_head(isa, multiply, barrier, cut_acts, project)

    @helper
    def leaves_out(args: Any, index: int) -> bool:
        """Whether this token skips neurons of this layer."""
        if args[L.SPARSE] == 0 or args[L.POSITION] < args[L.SINKS]:
            return False
        f = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index)
        return f[L.F_MODE] != L.MODE_DENSE and i64_at(args[L.REST])[index] == 0

    @helper
    def norm_tokens(
        args: Any, x: int, weight: int, normed: int, acts: int, tokens: int, width: int
    ) -> None:
        d_pad = args[L.D_PAD]
        for token in range(tokens):
            here = x + 4 * d_pad * token
            rms_norm(here, weight, normed, d_pad >> 4, args[L.INVERSE_D], args[L.NORM_EPS])
            quantize(normed, d_pad >> 5, acts, 0, token, width)

    @helper
    def add_tokens(args: Any, x: int, y: int, post_norm: int, tmp: int, tokens: int) -> None:
        for token in range(tokens):
            here = 4 * args[L.D_PAD] * token
            add_sublayer(args, x + here, y + here, post_norm, tmp)

    @helper
    def combine_tokens(
        args: Any, index: int, tid: int, attended: int, acts: int, tokens: int, width: int
    ) -> float:
        sharpness = 0.0
        for token in range(tokens):
            sharpness = combine(args, token, attended)
            quantize(attended, args[L.ATTENDED_PAD] >> 5, acts, 0, token, width)
        if tid == 0:
            f32_at(args[L.SHARPNESS])[index] = sharpness
        return sharpness

    @helper
    def decode(block: int, tid: int) -> None:
        args = i64_at(block)
        threads, team, tokens = args[L.THREADS], args[L.TEAM], args[L.N_TOKENS]
        width, d_pad, wide = step_width(tokens), args[L.D_PAD], args[L.ATTENDED_PAD]
        x = args[L.SCRATCH] + tid * args[L.SCRATCH_BYTES]
        normed = x + 4 * d_pad * width
        attended = normed + 4 * d_pad
        acts = attended + 4 * wide
        joined = acts + 8 * L.ACTS_WORDS
        groups = ((d_pad >> 5) + 3) >> 2 << 2  # rows of single neurons read whole registers
        memory = cut_acts(acts, joined + 8 * L.ACTS_WORDS, groups * width)
        clear_acts(acts, (d_pad >> 5) * width, groups * width)
        memory = (cut_acts(joined, memory, (wide >> 5) * width) + 63) >> 6 << 6
        for token in range(tokens):
            embed(args, i32_at(args[L.TOKENS])[token], x + 4 * d_pad * token)
        for index in range(args[L.N_LAYERS]):
            address = args[L.LAYERS] + 8 * L.LAYER_WORDS * index
            layer, y = i64_at(address), args[L.Y]
            norm_tokens(args, x, layer[L.ATTN_NORM], normed, acts, tokens, width)
            project_qkv(args, address, acts, tid, width)
            barrier(team, threads)
            attend_share(args, index, layer, tid, memory, tokens)
            barrier(team, threads)
            sharpness = combine_tokens(args, index, tid, attended, joined, tokens, width)
            project(args, address + 8 * L.O, joined, y, 4 * d_pad, tid, width)
            barrier(team, threads)
            add_tokens(args, x, y, layer[L.ATTN_POST_NORM], normed, tokens)
            norm_tokens(args, x, layer[L.FFN_NORM], normed, acts, tokens, width)
            if leaves_out(args, index):
                y = sparse_ffn(args, index, address, acts, tid, memory, sharpness)
            else:
                gate_and_up(args, address, acts, tid, memory, tokens, width)
                barrier(team, threads)
                if tid == 0 and args[L.SPARSE] != 0:
                    note_dense(args, index)
                project(args, address + 8 * L.DOWN, args[L.HIDDEN], y, 4 * d_pad, tid, width)
                barrier(team, threads)
            add_tokens(args, x, y, layer[L.FFN_POST_NORM], normed, tokens)
        if args[L.RESIDUAL] != 0:
            if tid == 0:
                copy(x, args[L.RESIDUAL], d_pad * tokens)
        else:
            norm_tokens(args, x, args[L.FINAL_NORM], normed, acts, tokens, width)
            compute_head(args, acts, tid, memory, tokens, width)
        barrier(team, threads)

    return decode


def _build_attend_share(blocks: SimpleNamespace) -> Any:
    keep, attend = blocks.keep, blocks.attend

    @helper
    def keep_new(
        args: Any, index: int, layer: Any, kv: int, token: int, begin: int, stop: int, memory: int
    ) -> None:
        """Put what the step's tokens up to `token` leave in blocks [begin, stop) into the cache.

        Whoever reads a block writes its new positions first. Two threads may write the same bytes,
        since tokens that begin a block split the others in another way.
        """
        dim, rows = args[L.HEAD_DIM], args[L.QKV_ROWS]
        k_row, v_row = key_rows(layer)
        key, tmp = memory, memory + 4 * args[L.HEAD_PAD]
        for new in range(token + 1):
            position = args[L.POSITION] + new
            if begin <= position >> 4 < stop:
                line = args[L.QKV] + 4 * rows * new
                table = layer[L.ROPE] + 4 * dim * position
                bias = offset_of(layer[L.K_BIAS], 4 * kv * dim)
                source = line + 4 * (16 * k_row + kv * dim)
                rope_head(args, source, bias, layer[L.K_NORM], table, 1.0, key)
                bias = offset_of(layer[L.V_BIAS], 4 * kv * dim)
                value = line + 4 * (16 * v_row + kv * dim)
                keep(args, index, kv, position, key, value, bias, tmp)

    @helper
    def rotate_queries(args: Any, layer: Any, kv: int, token: int, queries: int) -> None:
        """One token's queries of one key head."""
        dim, group = args[L.HEAD_DIM], args[L.N_HEADS] // args[L.KV_HEADS]
        table = layer[L.ROPE] + 4 * dim * (args[L.POSITION] + token)
        scale = float_of_bits(args[L.ATTN_SCALE])
        for g in range(group):
            head = kv * group + g
            bias = offset_of(layer[L.Q_BIAS], 4 * head * dim)
            source = args[L.QKV] + 4 * (args[L.QKV_ROWS] * token + head * dim)
            target = queries + 4 * args[L.HEAD_PAD] * g
            rope_head(args, source, bias, layer[L.Q_NORM], table, scale, target)

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
