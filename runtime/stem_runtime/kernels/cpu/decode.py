"""One token through the whole model, run by every thread of the team at once.

Each thread keeps its own copy of the residual stream and quantizes its own activations: repeating
that little work costs less than a barrier. Barriers stand only where a thread needs what others
computed: five a layer.
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
def cut_acts(words: int, memory: int, groups: int) -> int:
    """Lay out activations of `groups` groups of one token at `memory`; returns where it ends."""
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
def combine(args: Any, out: int) -> float:
    """Join the threads' partial attention: float32 [heads * head_dim], zeros up to the padding.

    Returns how sharp it is: a head's largest weight, on average over the heads.
    """
    sharpness = 0.0
    heads, dim = args[L.N_HEADS], args[L.HEAD_DIM]
    threads, stride = args[L.THREADS], args[L.HEAD_PAD] + 16
    for head in range(heads):
        peak, total = -1e38, 0.0
        for thread in range(threads):
            part = f32_at(args[L.PARTIALS] + 4 * stride * (thread * heads + head))
            if part[1] > 0.0:
                peak = max(peak, part[0])
        y = f32_at(out + 4 * dim * head)
        for d in range(dim):
            y[d] = 0.0
        for thread in range(threads):
            part = f32_at(args[L.PARTIALS] + 4 * stride * (thread * heads + head))
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


def build(isa: Isa, blocks: SimpleNamespace, multiply: Any, barrier: Any, sparse_ffn: Any) -> Any:
    """Return decode(args address, tid)."""
    embed, keep, gate, attend = blocks.embed, blocks.keep, blocks.gate, blocks.attend

    @helper
    def project_qkv(args: Any, layer: int, acts: int, tid: int) -> None:
        first, last = share(args[L.QKV_ROWS] >> 4, tid, args[L.THREADS])
        for tile in range(first, last):
            matrix, inner = tile_of_qkv(layer, tile)
            multiply(matrix, inner, acts, 0, 1, args[L.QKV] + 64 * tile, 0)

    @helper
    def attend_share(args: Any, index: int, layer: Any, tid: int, memory: int) -> None:
        """Attention of this thread's share of all (key head, block of positions)."""
        heads, kv_heads, dim, pad = (
            args[L.N_HEADS],
            args[L.KV_HEADS],
            args[L.HEAD_DIM],
            args[L.HEAD_PAD],
        )
        group, position, window = heads // kv_heads, args[L.POSITION], layer[L.WINDOW]
        partials = args[L.PARTIALS] + 4 * tid * heads * (pad + 16)
        oldest = max(0, position - window + 1) if window > 0 else 0
        start, end = oldest >> 4, (position >> 4) + 1
        first, last = share(kv_heads * (end - start), tid, args[L.THREADS])
        table = layer[L.ROPE] + 4 * dim * position
        queries, acc = memory, memory + 4 * pad * group
        stats = acc + 4 * pad * group
        key, tmp = stats + 8 * group, stats + 8 * group + 4 * pad
        scores = (tmp + 4 * pad + 63) >> 6 << 6
        scale = float_of_bits(args[L.ATTN_SCALE])
        k_row, v_row = key_rows(layer)
        for head in range(heads):
            f32_at(partials + 4 * head * (pad + 16))[1] = 0.0
        for kv in range(kv_heads):
            begin = max(first - kv * (end - start), 0) + start
            stop = min(last - kv * (end - start), end - start) + start
            if begin >= stop:
                continue
            if stop == end:  # whoever reads the newest block writes the new position first
                bias = offset_of(layer[L.K_BIAS], 4 * kv * dim)
                rope_head(
                    args,
                    args[L.QKV] + 4 * (16 * k_row + kv * dim),
                    bias,
                    layer[L.K_NORM],
                    table,
                    1.0,
                    key,
                )
                value = args[L.QKV] + 4 * (16 * v_row + kv * dim)
                bias = offset_of(layer[L.V_BIAS], 4 * kv * dim)
                keep(args, index, kv, position, key, value, bias, tmp)
            for g in range(group):
                head = kv * group + g
                bias = offset_of(layer[L.Q_BIAS], 4 * head * dim)
                source = args[L.QKV] + 4 * head * dim
                target = queries + 4 * pad * g
                rope_head(args, source, bias, layer[L.Q_NORM], table, scale, target)
            attend(
                args, index, kv, queries, group, position, window, begin, stop, acc, stats, scores
            )
            for g in range(group):
                part = f32_at(partials + 4 * (kv * group + g) * (pad + 16))
                state, y = f32_at(stats + 8 * g), f32_at(acc + 4 * pad * g)
                part[0], part[1] = state[0], state[1]
                for d in range(pad):
                    part[16 + d] = y[d]

    @helper
    def gate_and_up(args: Any, layer: int, acts: int, tid: int, memory: int) -> None:
        """This thread's groups of 32 hidden neurons, quantized for the down projection."""
        tiles = i64_at(layer + 8 * L.GATE)[L.TILES]
        groups = i64_at(layer + 8 * L.DOWN)[L.GROUPS]
        hidden = i64_at(args[L.HIDDEN])
        first, last = share(groups, tid, args[L.THREADS])
        g, u = memory, memory + 128
        for pair in range(first, last):
            for half in range(2):
                if 2 * pair + half < tiles:
                    tile = 2 * pair + half
                    multiply(layer + 8 * L.GATE, tile, acts, 0, 1, g + 64 * half, 0)
                    multiply(layer + 8 * L.UP, tile, acts, 0, 1, u + 64 * half, 0)
                else:
                    clear(g + 64 * half, 16)
                    clear(u + 64 * half, 16)
            gate(args, g, u, g, 2)
            quantize_one(g, hidden, pair, groups, 0, 0, 1)

    @helper
    def project(args: Any, matrix: int, acts: int, out: int, tid: int) -> None:
        first, last = share(i64_at(matrix)[L.TILES], tid, args[L.THREADS])
        for tile in range(first, last):
            multiply(matrix, tile, acts, 0, 1, out + 64 * tile, 0)

    compute_head = build_head(isa, multiply, barrier, cut_acts, project)

    @helper
    def leaves_out(args: Any, index: int) -> bool:
        """Whether this token skips neurons of this layer."""
        if args[L.SPARSE] == 0 or args[L.POSITION] < args[L.SINKS]:
            return False
        f = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index)
        return f[L.F_MODE] != L.MODE_DENSE and i64_at(args[L.REST])[index] == 0

    @helper
    def decode(block: int, tid: int) -> None:
        args = i64_at(block)
        threads, team = args[L.THREADS], args[L.TEAM]
        d_pad, wide = args[L.D_PAD], args[L.ATTENDED_PAD]
        x = args[L.SCRATCH] + tid * args[L.SCRATCH_BYTES]
        normed = x + 4 * d_pad
        attended = normed + 4 * d_pad
        acts = attended + 4 * wide
        joined = acts + 8 * L.ACTS_WORDS
        groups = ((d_pad >> 5) + 3) >> 2 << 2  # rows of single neurons read whole registers
        memory = cut_acts(acts, joined + 8 * L.ACTS_WORDS, groups)
        clear_acts(acts, d_pad >> 5, groups)
        memory = (cut_acts(joined, memory, wide >> 5) + 63) >> 6 << 6
        vectors, inverse, eps = d_pad >> 4, args[L.INVERSE_D], args[L.NORM_EPS]
        embed(args, i32_at(args[L.TOKENS])[0], x)
        for index in range(args[L.N_LAYERS]):
            address = args[L.LAYERS] + 8 * L.LAYER_WORDS * index
            layer = i64_at(address)
            rms_norm(x, layer[L.ATTN_NORM], normed, vectors, inverse, eps)
            quantize(normed, d_pad >> 5, acts, 0, 0, 1)
            project_qkv(args, address, acts, tid)
            barrier(team, threads)
            attend_share(args, index, layer, tid, memory)
            barrier(team, threads)
            sharpness = combine(args, attended)
            if tid == 0:
                f32_at(args[L.SHARPNESS])[index] = sharpness
            quantize(attended, wide >> 5, joined, 0, 0, 1)
            project(args, address + 8 * L.O, joined, args[L.Y], tid)
            barrier(team, threads)
            add_sublayer(args, x, args[L.Y], layer[L.ATTN_POST_NORM], normed)
            rms_norm(x, layer[L.FFN_NORM], normed, vectors, inverse, eps)
            quantize(normed, d_pad >> 5, acts, 0, 0, 1)
            y = args[L.Y]
            if leaves_out(args, index):
                y = sparse_ffn(args, index, address, acts, tid, memory, sharpness)
            else:
                gate_and_up(args, address, acts, tid, memory)
                barrier(team, threads)
                if tid == 0 and args[L.SPARSE] != 0:
                    note_dense(args, index)
                project(args, address + 8 * L.DOWN, args[L.HIDDEN], y, tid)
                barrier(team, threads)
            add_sublayer(args, x, y, layer[L.FFN_POST_NORM], normed)
        if args[L.RESIDUAL] != 0:
            if tid == 0:
                copy(x, args[L.RESIDUAL], d_pad)
        else:
            rms_norm(x, args[L.FINAL_NORM], normed, vectors, inverse, eps)
            quantize(normed, d_pad >> 5, acts, 0, 0, 1)
            compute_head(args, acts, tid, memory)
        barrier(team, threads)

    return decode
