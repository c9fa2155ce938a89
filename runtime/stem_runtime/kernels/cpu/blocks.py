"""The parts of a layer that decode and prefill share, as numba helpers over addresses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from numba.extending import intrinsic

from . import attend, cache8
from . import layout as L
from .isa import Isa
from .simd import Builder, const, f32_at, i64_at, ir, splat, types, u8_at, u16_at
from .vector import axpy, float_of_bits, gate_kernels, helper, rms_norm, to_half_kernel


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
def add_sublayer(args: Any, x: int, y: int, post_norm: int, tmp: int) -> None:
    """x += residual_scale * y, with y normalized first where the model does so."""
    vectors, source = args[L.D_PAD] >> 4, y
    if post_norm != 0:
        rms_norm(y, post_norm, tmp, vectors, args[L.INVERSE_D], args[L.NORM_EPS])
        source = tmp
    axpy(args[L.RESIDUAL_SCALE], source, x, vectors)


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


@helper
def rotate_queries(args: Any, layer: Any, kv: int, token: int, queries: int) -> None:
    """One token's queries of one key head, float32 [queries per key head, HEAD_PAD]."""
    dim, group = args[L.HEAD_DIM], args[L.N_HEADS] // args[L.KV_HEADS]
    table = layer[L.ROPE] + 4 * dim * (args[L.POSITION] + token)
    scale = float_of_bits(args[L.ATTN_SCALE])
    for g in range(group):
        head = kv * group + g
        bias = offset_of(layer[L.Q_BIAS], 4 * head * dim)
        source = args[L.QKV] + 4 * (args[L.QKV_ROWS] * token + head * dim)
        target = queries + 4 * args[L.HEAD_PAD] * g
        rope_head(args, source, bias, layer[L.Q_NORM], table, scale, target)


def build(isa: Isa) -> SimpleNamespace:
    """The helpers whose code depends on the instruction set."""
    keep, attention = _build_keep(isa), attend.build(isa)
    return SimpleNamespace(
        embed=_build_embed(isa),
        keep=keep,
        keep_token=_build_keep_token(keep),
        gate=_build_gate(),
        ready=attention.ready,
        attend=attention.attend,
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


def _build_keep(isa: Isa) -> Any:
    to_half, keep8 = to_half_kernel(isa.native_half), cache8.build_keep(isa)

    @helper
    def keep(
        args: Any, layer: int, head: int, position: int, key: int, value: int, bias: int, tmp: int
    ) -> None:
        """Put one position of a key head into the cache: the rotated key, the raw value.

        `tmp` is HEAD_PAD floats of the caller's; the key is overwritten.
        """
        pad, dim = args[L.HEAD_PAD], args[L.HEAD_DIM]
        index = layer * args[L.KV_HEADS] + head
        head_at = index * args[L.HEAD_BYTES]
        keys, values = args[L.KEYS] + head_at, args[L.VALUES] + head_at
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
            keep8(keys, values, position, pad >> 5, key, tmp)
            return
        to_half(key, key, pad >> 4)
        k = u16_at(keys + (position >> 4) * pad * 32 + 2 * (position & 15))
        halves = u16_at(key)
        for d in range(pad):
            k[16 * d] = halves[d]
        to_half(tmp, values + position * pad * 2, pad >> 4)

    return keep


def _build_keep_token(keep: Any) -> Any:
    @helper
    def keep_token(args: Any, index: int, layer: Any, kv: int, token: int, memory: int) -> None:
        """Rotate one key of a token and put it and its value into the cache.

        `memory` is 2 * HEAD_PAD floats of the caller's.
        """
        dim, position = args[L.HEAD_DIM], args[L.POSITION] + token
        k_row, v_row = key_rows(layer)
        key, tmp = memory, memory + 4 * args[L.HEAD_PAD]
        line = args[L.QKV] + 4 * args[L.QKV_ROWS] * token
        table = layer[L.ROPE] + 4 * dim * position
        bias = offset_of(layer[L.K_BIAS], 4 * kv * dim)
        source = line + 4 * (16 * k_row + kv * dim)
        rope_head(args, source, bias, layer[L.K_NORM], table, 1.0, key)
        bias = offset_of(layer[L.V_BIAS], 4 * kv * dim)
        value = line + 4 * (16 * v_row + kv * dim)
        keep(args, index, kv, position, key, value, bias, tmp)

    return keep_token


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
