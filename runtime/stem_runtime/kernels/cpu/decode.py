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

from . import decode_attention
from . import layout as L
from .activations import clear_acts, cut_acts, quantize, quantize_one
from .blocks import add_sublayer, tile_of_qkv
from .decode_attention import combine
from .ffn import note_dense
from .head import build as build_head
from .isa import Isa
from .plain import clear, copy, share
from .simd import f32_at, i32_at, i64_at
from .vector import helper, rms_norm


@helper
def step_width(tokens: int) -> int:
    """The tokens that are multiplied by at a time where there are so many."""
    return tokens if tokens in L.STEP_WIDTHS else L.STEP_TOKENS


def build(isa: Isa, blocks: SimpleNamespace, multiply: Any, barrier: Any, sparse_ffn: Any) -> Any:
    """Return decode(args address, tid)."""
    embed, gate = blocks.embed, blocks.gate
    attend_share = decode_attention.build(blocks)

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

    compute_head = build_head(isa, multiply, barrier, project)

    @helper
    def leaves_out(args: Any, index: int) -> bool:
        """Whether this token skips neurons of this layer."""
        if args[L.SPARSE] == 0 or args[L.POSITION] < args[L.SINKS]:
            return False
        f = i64_at(args[L.FFN] + 8 * L.FFN_WORDS * index)
        return f[L.F_MODE] != L.MODE_DENSE and i32_at(args[L.REST])[2 * index] == 0

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
        args: Any,
        index: int,
        window: int,
        tid: int,
        memory: int,
        attended: int,
        acts: int,
        tokens: int,
        width: int,
    ) -> float:
        sharpness = 0.0
        for token in range(tokens):
            sharpness = combine(args, token, window, memory, attended)
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
        apart = args[L.APART] * width
        groups = ((d_pad >> 5) + 3) >> 2 << 2  # rows of single neurons read whole registers
        memory = cut_acts(acts, joined + 8 * L.ACTS_WORDS, groups * width, apart)
        clear_acts(acts, (d_pad >> 5) * width, groups * width)
        memory = (cut_acts(joined, memory, (wide >> 5) * width, apart) + 63) >> 6 << 6
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
            sharpness = combine_tokens(
                args, index, layer[L.WINDOW], tid, memory, attended, joined, tokens, width
            )
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
