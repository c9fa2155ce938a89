"""The slow NumPy truth that every kernel is tested against.

Written from the definitions, one step at a time, and sharing nothing with the code it judges: the
packed layout is read element by element from its description, and everything that is not integer
arithmetic is float64. Inputs may be of any float type; results are float64 unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig

GROUP = 32
TILE = 16
OUTLIERS = 2
"""Elements of an input that stay floats, but for the down projection's; see `matmul`."""
SMALLEST_PEAK = 1e-30
"""A group of activations that nowhere exceeds this is taken as all zero."""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
FloatArray = NDArray[np.floating]


class Packed(Protocol):
    """What the oracle reads of a quantized matrix; see `stem_runtime.quant.layout`."""

    @property
    def kind(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def quants(self) -> NDArray[np.uint8]: ...
    @property
    def scales(self) -> NDArray[np.float16]: ...
    @property
    def minima(self) -> NDArray[np.float16] | None: ...


class PackedWeights(Protocol):
    """What the oracle reads of a packed model."""

    @property
    def config(self) -> ModelConfig: ...
    def matrix(self, name: str) -> Packed: ...
    def vector(self, name: str) -> F32: ...


def quants_of(matrix: Packed) -> NDArray[np.int32]:
    """Stored quants as integers [rows, groups, 32]: 0..15 for int4 kinds, -128..127 for int8."""
    tiles, groups = matrix.quants.shape[:2]
    result = np.zeros((tiles * TILE, groups, GROUP), np.int32)
    stored = matrix.quants.astype(np.int32)
    for lane in range(TILE):
        rows = slice(lane, tiles * TILE, TILE)
        for chunk in range(stored.shape[2]):
            for i in range(4):
                byte = stored[:, :, chunk, 4 * lane + i]
                if matrix.kind == "int8":
                    result[rows, :, 4 * chunk + i] = byte - 128
                else:
                    result[rows, :, 8 * chunk + i] = byte & 15
                    result[rows, :, 8 * chunk + 4 + i] = byte >> 4
    return result[: matrix.rows]


def scales_of(matrix: Packed) -> tuple[F64, F64]:
    """Scale and offset [rows, groups] such that a weight is scale * quant + offset."""
    scales = _rows_by_groups(matrix.scales, matrix.rows)
    if matrix.kind == "int4":
        return scales, -8 * scales
    if matrix.minima is None:
        return scales, np.zeros_like(scales)
    return scales, _rows_by_groups(matrix.minima, matrix.rows)


def _rows_by_groups(packed: NDArray[np.float16], rows: int) -> F64:
    """[tiles, groups, 16] -> float64 [rows, groups]."""
    return np.swapaxes(packed, 1, 2).reshape(-1, packed.shape[1])[:rows].astype(np.float64)


def dequantize(matrix: Packed) -> F32:
    """The weights as float32 [rows, cols]."""
    scales, offsets = scales_of(matrix)
    weights: F64 = scales[:, :, None] * quants_of(matrix) + offsets[:, :, None]
    return weights.reshape(matrix.rows, -1)[:, : matrix.cols].astype(np.float32)


def embedding_row(matrix: Packed, token: int) -> F32:
    """Row `token` as float32 [cols]."""
    row: F32 = dequantize(matrix)[token]
    return row


def quantize_activations(x: FloatArray) -> tuple[NDArray[np.int8], F32, NDArray[np.int32]]:
    """Round `x` [..., n] to int8 in groups of 32, the last one filled up with zeros.

    Returns quants [..., groups, 32], float32 scales [..., groups] and the sum of each group's
    quants, int32 [..., groups]. The scale is max|x| / 127; a quant is x * (127 / max|x|), in
    float32, rounded half to even. x is about scale * quant.
    """
    single = x.astype(np.float32)
    missing = -single.shape[-1] % GROUP
    padded = np.pad(single, [(0, 0)] * (single.ndim - 1) + [(0, missing)])
    grouped = padded.reshape(*single.shape[:-1], -1, GROUP)
    peak = np.abs(grouped).max(axis=-1)
    peak = np.where(peak > SMALLEST_PEAK, peak, np.float32(0))
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    quants = np.rint(grouped * inverse[..., None]).astype(np.int8)
    scales = (peak / np.float32(127)).astype(np.float32)
    sums: NDArray[np.int32] = quants.sum(axis=-1, dtype=np.int32)
    return quants, scales, sums


def round_cached(x: FloatArray) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round `x` [..., n] as an int8 cache keeps it, in groups of 32 filled up with zeros.

    Returns quants [..., groups, 32] and scales [..., groups]: max|x| / 127 in float32, then the
    nearest float16. A quant is x * (1 / scale), in float32, rounded half to even, -127 to 127.
    """
    single = x.astype(np.float32)
    missing = -single.shape[-1] % GROUP
    padded = np.pad(single, [(0, 0)] * (single.ndim - 1) + [(0, missing)])
    grouped = padded.reshape(*single.shape[:-1], -1, GROUP)
    factors = np.abs(grouped).max(axis=-1) * np.float32(1 / 127)
    scales = np.minimum(factors, np.float32(65504)).astype(np.float16)
    kept = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), kept, out=np.zeros_like(kept), where=kept > 0)
    quants = np.rint(np.clip(grouped * inverse[..., None], -127, 127)).astype(np.int8)
    return quants, scales


def without_outliers(x: FloatArray, count: int) -> tuple[F32, NDArray[np.int64], F32]:
    """Take the `count` largest of |x| out of every row of `x` [n, cols].

    Returns the rest with zeros in their places, and their columns and values, [n, count], the
    largest first and of equal ones the leftmost.
    """
    rest = x.astype(np.float32)
    lines, columns = np.arange(len(rest)), np.zeros((len(rest), count), np.int64)
    values = np.zeros((len(rest), count), np.float32)
    for rank in range(count):
        columns[:, rank] = np.abs(rest).argmax(axis=1)
        values[:, rank] = rest[lines, columns[:, rank]]
        rest[lines, columns[:, rank]] = 0
    return rest, columns, values


def matmul(matrix: Packed, x: FloatArray, outliers: int = 0) -> F64:
    """`x` [n, cols] times the transposed matrix, with int8 activations -> [n, rows].

    Per group: an exact integer dot product, then both scales; the offset of the weights (-8 or the
    minimum) comes in through the sum of the activations' quants. The `outliers` largest elements
    of each input are not rounded, so that their groups are rounded as finely as the rest of them
    allows: the mixed-precision decomposition of LLM.int8() (Dettmers et al., 2022), with as many
    single elements for every token instead of whole columns.
    """
    weights = quants_of(matrix)
    scales, offsets = scales_of(matrix)
    rest, columns, values = without_outliers(x, outliers)
    quants, x_scales, sums = quantize_activations(rest)
    dots = np.einsum("rgi,ngi->nrg", weights, quants.astype(np.int32)).astype(np.float64)
    per_group = scales * dots + offsets * sums[:, None, :]
    out: F64 = (per_group * x_scales[:, None, :].astype(np.float64)).sum(axis=-1)
    whole = scales[:, :, None] * weights + offsets[:, :, None]
    apart = whole.reshape(len(weights), -1)[:, columns]
    out += np.einsum("rnk,nk->nr", apart, values.astype(np.float64))
    return out


def matvec(matrix: Packed, x: FloatArray, outliers: int = 0) -> F64:
    """`matmul` for one vector [cols] -> [rows]."""
    out: F64 = matmul(matrix, x[None], outliers)[0]
    return out


def rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> F64:
    """`x / sqrt(mean(x^2) + eps) * weight` along the last axis."""
    wide = x.astype(np.float64)
    mean = np.mean(wide * wide, axis=-1, keepdims=True)
    out: F64 = wide / np.sqrt(mean + eps) * weight.astype(np.float64)
    return out


def rope(x: FloatArray, positions: Sequence[int], inv_freq: Sequence[float]) -> F64:
    """Rotate `x` [n, heads, head_dim], the i-th with the (i + head_dim/2)-th element of a head."""
    angles = np.outer(np.asarray(positions, np.float64), np.asarray(inv_freq, np.float64))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    half = x.shape[-1] // 2
    first, second = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(q: FloatArray, k: FloatArray, v: FloatArray, *, scale: float, window: int = 0) -> F64:
    """Causal attention of the last n of m positions over all m.

    `q` [n, n_heads, head_dim]; `k`, `v` [m, kv_heads, head_dim], m >= n, of float16 to judge an
    engine whose cache is. Query head h reads key-value head h // (n_heads / kv_heads). With a
    `window` a query sees itself and the window - 1 positions before. Returns the shape of `q`.
    """
    n, n_heads, _ = q.shape
    m, kv_heads, _ = k.shape
    out = np.zeros(q.shape, np.float64)
    for i in range(n):
        last = m - n + i
        seen = slice(max(0, last + 1 - window) if window else 0, last + 1)
        for head in range(n_heads):
            shared = head // (n_heads // kv_heads)
            scores = k[seen, shared].astype(np.float64) @ q[i, head].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            out[i, head] = weights / weights.sum() @ v[seen, shared].astype(np.float64)
    return out


def as_cached(
    q: FloatArray, k: FloatArray, v: FloatArray, cache_type: type[np.number]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Queries, keys and values [n, heads, head_dim] as attention finds them in such a cache.

    With np.int8 the queries are rounded, too, as activations are before any other product.
    """
    if cache_type is not np.int8:
        return q, k.astype(cache_type), v.astype(cache_type)

    def wide(x: FloatArray, quants: NDArray[np.int8], scales: FloatArray) -> F64:
        values: F64 = quants.astype(np.float64) * scales[..., None]
        return values.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]

    rounded = wide(q, *quantize_activations(q)[:2])
    return rounded, wide(k, *round_cached(k)), wide(v, *round_cached(v))


def ffn_hidden(activation: str, gate: FloatArray, up: FloatArray, param: float = 0.0) -> F64:
    """`act(gate) * up`, the input of the down projection; names as in `config.ACTIVATIONS`."""
    g, u = gate.astype(np.float64), up.astype(np.float64)
    if activation == "drelu":
        return np.maximum(g, 0.0) * np.maximum(u, 0.0)
    if activation == "fatrelu":
        return np.where(g > param, g, 0.0) * u
    return _ACTIVATIONS[activation](g) * u


_erfc = np.vectorize(math.erfc, otypes=[np.float64])
_ACTIVATIONS: dict[str, Callable[[F64], F64]] = {
    "silu": lambda g: g / (1 + np.exp(-np.maximum(g, -700.0))),
    "gelu": lambda g: g * _erfc(-g / math.sqrt(2)) / 2,
    "gelu_tanh": lambda g: g / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))),
    "relu": lambda g: np.maximum(g, 0.0),
    "relu2": lambda g: np.maximum(g, 0.0) ** 2,
}


Linear = Callable[[str, F64], F64]
Ffn = Callable[[int, F64], F64]


def forward(config: ModelConfig, get: Callable[[str], FloatArray], tokens: Sequence[int]) -> F32:
    """Logits [n, vocab] after each of `tokens`, in float64 throughout.

    `get` returns plain weights by their packed names ("embed", "layers.0.q", ...).
    """

    def linear(name: str, x: F64) -> F64:
        return x @ get(name).astype(np.float64).T

    return _forward(config, get("embed")[list(tokens)], get, linear, np.float64)


def forward_packed(
    model: PackedWeights,
    tokens: Sequence[int],
    ffn: Ffn | None = None,
    cache_type: type[np.number] = np.float16,
    outliers: int = OUTLIERS,
) -> F32:
    """Logits [n, vocab] as an engine should give them: int8 activations and a KV cache of a type.

    `ffn` replaces the FFNs: from a layer's number and its normed input [n, d] to its output.
    `outliers` of every input but the down projections' stay floats (none on a GPU).
    """

    def linear(name: str, x: F64) -> F64:
        return matmul(model.matrix(name), x, 0 if name.endswith("down") else outliers)

    embedded = dequantize(model.matrix("embed"))[list(tokens)]
    return _forward(model.config, embedded, model.vector, linear, cache_type, ffn)


def _forward(
    config: ModelConfig,
    embedded: FloatArray,
    vector: Callable[[str], FloatArray],
    linear: Linear,
    cache_type: type[np.number],
    ffn: Ffn | None = None,
) -> F32:
    eps = config.norm_eps
    x = embedded.astype(np.float64) * config.embed_scale
    for i in range(config.n_layers):
        name = f"layers.{i}."
        y = _attention_layer(
            config, i, rms_norm(x, vector(name + "attn_norm"), eps), vector, linear, cache_type
        )
        if config.post_norms:
            y = rms_norm(y, vector(name + "attn_post_norm"), eps)
        x = x + config.residual_scale * y
        y = rms_norm(x, vector(name + "ffn_norm"), eps)
        y = ffn(i, y) if ffn else _whole_ffn(config, i, y, linear)
        if config.post_norms:
            y = rms_norm(y, vector(name + "ffn_post_norm"), eps)
        x = x + config.residual_scale * y
    x = rms_norm(x, vector("norm"), eps)
    logits = linear("embed" if config.tied_head else "head", x)
    return (config.logit_scale * logits).astype(np.float32)


def _whole_ffn(config: ModelConfig, i: int, x: F64, linear: Linear) -> F64:
    gate, up = linear(f"layers.{i}.gate", x), linear(f"layers.{i}.up", x)
    hidden = ffn_hidden(config.activation, gate, up, config.activation_param)
    return linear(f"layers.{i}.down", hidden)


def _attention_layer(
    config: ModelConfig,
    i: int,
    x: F64,
    vector: Callable[[str], FloatArray],
    linear: Linear,
    cache_type: type[np.number],
) -> F64:
    name, n, window = f"layers.{i}.", len(x), config.layer_windows[i]
    local = window and config.rope_local_inv_freq
    inv_freq = config.rope_local_inv_freq if local else config.rope_inv_freq

    def project(which: str) -> FloatArray:
        y = linear(name + which, x)
        if config.qkv_bias:
            y = y + vector(f"{name}{which}_bias").astype(np.float64)
        y = y.reshape(n, -1, config.head_dim)
        if config.qk_norm and which != "v":
            y = rms_norm(y, vector(f"{name}{which}_norm"), config.norm_eps)
        return y if which == "v" else rope(y, range(n), inv_freq)

    q, k, v = as_cached(project("q"), project("k"), project("v"), cache_type)
    mixed = attention(q, k, v, scale=config.attn_scale, window=window)
    return linear(name + "o", mixed.reshape(n, -1))
