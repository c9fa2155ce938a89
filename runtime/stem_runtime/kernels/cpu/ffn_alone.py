"""The FFN of one layer by itself, for whoever computes the rest of a token elsewhere."""

from __future__ import annotations

from typing import Any

from . import layout as L
from .activations import clear_acts, cut_acts, quantize
from .plain import copy
from .simd import f32_at, i64_at
from .vector import helper


def build(sparse_ffn: Any, barrier: Any) -> Any:
    """Return ffn(args address, tid): what layer FFN_LAYER adds for the normed input at X, into Y.

    How sharp the token's attention was is read from the layer's place in SHARPNESS.
    """

    @helper
    def ffn(block: int, tid: int) -> None:
        args = i64_at(block)
        d_pad, index = args[L.D_PAD], args[L.FFN_LAYER]
        groups = ((d_pad >> 5) + 3) >> 2 << 2  # rows of single neurons read whole registers
        acts = args[L.SCRATCH] + tid * args[L.SCRATCH_BYTES]
        x = cut_acts(acts, acts + 8 * L.ACTS_WORDS, groups, args[L.APART])
        clear_acts(acts, d_pad >> 5, groups)
        copy(args[L.X], x, d_pad)  # quantizing changes it
        quantize(x, d_pad >> 5, acts, 0, 0, 1)
        layer = args[L.LAYERS] + 8 * L.LAYER_WORDS * index
        sharpness = f32_at(args[L.SHARPNESS])[index]
        y = sparse_ffn(args, index, layer, acts, tid, (x + 63) >> 6 << 6, sharpness)
        if tid == 0:
            copy(y, args[L.Y], d_pad)
        # the caller changes `args` as soon as it returns, so no thread may still be reading them
        barrier(args[L.TEAM], args[L.THREADS])

    return ffn
