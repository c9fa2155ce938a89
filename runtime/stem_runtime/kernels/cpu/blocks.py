"""The parts of a layer that decode and prefill share, as numba helpers over addresses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from numba.extending import intrinsic

from . import cache8
from . import layout as L
from .attention import score_kernel, value_kernel
from .isa import Isa
from .simd import (
    Builder,
    const,
    exp,
    f32_at,
    i64_at,
    ir,
    splat,
    types,
    u8_at,
    u16_at,
)
from .vector import (
    exp_scores,
    float_of_bits,
    gate_kernels,
    helper,
    max_scores,
    prefetch,
    quantize_group,
    to_half_kernel,
)

MASKED = -1e30


@intrinsic
def exp_of(_context: Any, _x: Any) -> Any:
    """e**x of one float32."""

    def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Any:
        return b.extract_element(exp(b, splat(b, args[0])), ir.Constant(ir.IntType(32), 0))

    return types.float32(types.float32), codegen


@helper
def quantize(src: int, groups: int, acts: int, block: int, lane: int, tokens: int) -> None:
    """Quantize one token's `groups` * 32 floats into lane `lane` of a block of activations."""
    a = i64_at(acts)
    for group in range(groups):
        quantize_one(src + 128 * group, a, group, groups, block, lane, tokens)


@helper
def quantize_one(
    src: int, a: Any, group: int, groups: int, block: int, lane: int, tokens: int
) -> None:
    item = (block * groups + group) * tokens + lane
    quantize_group(
        src,
        a[L.A_QUANTS] + 32 * item,
        a[L.A_SCALES] + 4 * item,
        a[L.A_BIAS] + 4 * item,
        a[L.A_SUMS] + 4 * item,
    )


@helper
def clear(address: int, floats: int) -> None:
    values = f32_at(address)
    for i in range(floats):
        values[i] = 0.0


@helper
def copy(source: int, target: int, floats: int) -> None:
    x, y = f32_at(source), f32_at(target)
    for i in range(floats):
        y[i] = x[i]


@helper
def share(total: int, tid: int, threads: int) -> tuple[int, int]:
    """The range of `total` equal pieces that belongs to one thread."""
    return total * tid // threads, total * (tid + 1) // threads


@helper
def rope_head(
    args: Any, src: int, bias: int, norm: int, table: int, scale: float, dst: int
) -> None:
    """One head of q or k: bias, norm, rotation and scale, from `src` to the padded `dst`."""
    head_dim = args[L.HEAD_DIM]
    half = head_dim // 2
    x, y, angles = f32_at(src), f32_at(dst), f32_at(table)
    for i in range(head_dim):
        y[i] = x[i]
    if bias != 0:
        b = f32_at(bias)
        for i in range(head_dim):
            y[i] += b[i]
    if norm != 0:
        w = f32_at(norm)
        total = 0.0
        for i in range(head_dim):
            total += y[i] * y[i]
        eps = float_of_bits(args[L.NORM_EPS])
        factor = 1.0 / (total / head_dim + eps) ** 0.5
        for i in range(head_dim):
            y[i] = types.float32(y[i] * factor) * w[i]
    for i in range(half):
        cos, sin = angles[i], angles[half + i]
        low, high = y[i], y[half + i]
        y[i] = types.float32(scale) * (low * cos - high * sin)
        y[half + i] = types.float32(scale) * (high * cos + low * sin)
    for i in range(head_dim, args[L.HEAD_PAD]):
        y[i] = 0.0


def build(isa: Isa) -> SimpleNamespace:
    """The helpers whose code depends on the instruction set."""
    int8 = cache8.build(isa)
    return SimpleNamespace(
        embed=_build_embed(isa),
        keep=_build_keep(isa, int8),
        gate=_build_gate(),
        attend=_build_attend(isa, int8),
    )


def _build_embed(isa: Isa) -> Any:
    native = isa.native_half

    @intrinsic
    def half_of(_context: Any, _bits: Any) -> Any:
        from .simd import half_to_float

        def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Any:
            wide = half_to_float(b, splat(b, args[0]), native)
            return b.extract_element(wide, const(ir.IntType(32), 0))

        return types.float32(types.uint16), codegen

    @helper
    def embed(args: Any, token: int, out: int) -> None:
        """Row `token` of the embedding, scaled, as float32 [d_pad]."""
        m = i64_at(args[L.EMBED])
        groups, kind = m[L.GROUPS], m[L.KIND]
        tile, lane = token >> 4, token & 15
        scale = types.float32(float_of_bits(args[L.EMBED_SCALE]))
        row = m[L.TILE] + tile * m[L.TILE_BYTES]
        y = f32_at(out)
        for group in range(groups):
            here = row + group * L.GROUP_BYTES[kind]
            d = half_of(u16_at(here)[lane]) * scale
            if kind == L.INT8:
                q = u8_at(here + 32 + 4 * lane)
                for i in range(32):
                    quant = types.int64(q[(i >> 2) * 64 + (i & 3)]) - 128
                    y[32 * group + i] = d * types.float32(quant)
                continue
            low, q = types.float32(-8.0) * d, u8_at(here + 32 + 4 * lane)
            if kind == L.INT4_MINIMA:
                low, q = half_of(u16_at(here + 32)[lane]) * scale, u8_at(here + 64 + 4 * lane)
            for i in range(32):
                byte = q[(i >> 3) * 64 + (i & 3)]
                nibble = (byte >> 4) if (i & 4) else (byte & 15)
                y[32 * group + i] = d * types.float32(nibble) + low
        for i in range(args[L.D_MODEL], 32 * groups):
            y[i] = 0.0  # a minimum belongs to padding too

    return embed


def _build_keep(isa: Isa, int8: SimpleNamespace) -> Any:
    to_half, keep8 = to_half_kernel(isa.native_half), int8.keep

    @helper
    def keep(
        args: Any, layer: int, head: int, position: int, key: int, value: int, bias: int, tmp: int
    ) -> None:
        """Put one position of a key head into the cache: the rotated key, the raw value.

        `tmp` is HEAD_PAD floats of the caller's; the key is overwritten.
        """
        pad, dim = args[L.HEAD_PAD], args[L.HEAD_DIM]
        index = layer * args[L.KV_HEADS] + head
        block = index * (args[L.CAPACITY] >> 4) + (position >> 4)
        v, y = f32_at(value), f32_at(tmp)
        for d in range(dim):
            y[d] = v[d]
        if bias != 0:
            b = f32_at(bias)
            for d in range(dim):
                y[d] += b[d]
        for d in range(dim, pad):
            y[d] = 0.0
        if args[L.CACHE] == L.CACHE_INT8:
            here = block * pad * L.INT8_BYTES
            keep8(args[L.KEYS] + here, args[L.VALUES] + here, position & 15, pad >> 5, key, tmp)
            return
        to_half(key, key, pad >> 4)
        k = u16_at(args[L.KEYS] + block * pad * 32 + 2 * (position & 15))
        halves = u16_at(key)
        for d in range(pad):
            k[16 * d] = halves[d]
        row = index * args[L.CAPACITY] + position
        to_half(tmp, args[L.VALUES] + row * pad * 2, pad >> 4)

    return keep


def _build_gate() -> Any:
    """gate(args, g, u, out, n/16): the activation, chosen at run time."""
    from ...config import ACTIVATIONS

    kernels = [gate_kernels[name] for name in ACTIVATIONS]
    silu, gelu, gelu_tanh, relu, fatrelu, relu2, drelu = kernels

    @helper
    def gate(args: Any, g: int, u: int, out: int, vectors: int) -> None:
        kind, parameter = args[L.ACTIVATION], args[L.ACTIVATION_PARAM]
        if kind == 0:
            silu(g, u, out, vectors, parameter)
        elif kind == 1:
            gelu(g, u, out, vectors, parameter)
        elif kind == 2:
            gelu_tanh(g, u, out, vectors, parameter)
        elif kind == 3:
            relu(g, u, out, vectors, parameter)
        elif kind == 4:
            fatrelu(g, u, out, vectors, parameter)
        elif kind == 5:
            relu2(g, u, out, vectors, parameter)
        else:
            drelu(g, u, out, vectors, parameter)

    return gate


def _build_attend(isa: Isa, int8: SimpleNamespace) -> Any:
    native = isa.native_half
    quantize_rows8, scores_of8, add_values8 = int8.quantize_rows, int8.scores_of, int8.add_values
    score8, score4, score3, score2, score1 = (_score(rows, native) for rows in (8, 4, 3, 2, 1))
    wide4, wide3, wide2, wide1 = (_value(rows, 4, native) for rows in (4, 3, 2, 1))
    slim4, slim3, slim2, slim1 = (_value(rows, 1, native) for rows in (4, 3, 2, 1))
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
                    if step == 4:
                        wide4(source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    elif step == 3:
                        wide3(source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    elif step == 2:
                        wide2(source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    else:
                        wide1(source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    column += 64
                else:
                    if step == 4:
                        slim4(source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    elif step == 3:
                        slim3(source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    elif step == 2:
                        slim2(source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
                    else:
                        slim1(source, row_bytes, v, 2 * pad, positions, y, 4 * pad)
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
        before_head = (layer * args[L.KV_HEADS] + head) * (args[L.CAPACITY] >> 4) * block_bytes
        keys, values = args[L.KEYS] + before_head, args[L.VALUES] + before_head
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
            count = min(L.ATTENTION_BLOCKS, last - block)
            start = 16 * block
            for i in range(block, block + count):
                here, out = keys + i * block_bytes, scores + 64 * (i - block)
                if narrow:
                    scores_of8(quants, rows, here, pad >> 5, out)
                    prefetch(values + i * block_bytes, (block_bytes >> 6) + 1)
                    if i + L.ATTENTION_BLOCKS < last:
                        following = here + L.ATTENTION_BLOCKS * block_bytes
                        prefetch(following, (block_bytes >> 6) + 1)
                else:
                    scores_of(q, rows, here, pad, out)
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
            here = values + block * block_bytes
            if narrow:
                add_values8(scores, rows, here, pad >> 5, count, acc, memory)
            else:
                seen = min(16 * count, newest + 1 - start)
                add_values(scores, rows, here, pad, seen, acc)
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


def _value(rows: int, vectors: int, native: bool) -> Any:
    intrinsic = value_kernel(rows, vectors, native)

    @helper
    def value(p: int, ps: int, v: int, vs: int, positions: int, acc: int, acc_s: int) -> None:
        intrinsic(p, ps, v, vs, positions, acc, acc_s)

    return value
