"""Single kernels, every variant that runs here, against the oracle on shapes nobody would pick."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.config import ACTIVATIONS
from stem_runtime.kernels import TOKEN_BLOCK, available, oracle
from stem_runtime.kernels.cpu import layout as L
from stem_runtime.kernels.cpu.attention8 import value_rows
from stem_runtime.kernels.cpu.isa import VARIANTS as ISAS
from stem_runtime.kernels.jit import Entry, load_unit
from stem_runtime.quant import Kind, PackedMatrix, PlainMatrix, groups_of, pack

from .kernel_probe import SCORE_ROWS, VALUE_SHAPES

KINDS: dict[Kind, int] = {"int4": L.INT4, "int4m": L.INT4_MINIMA, "int8": L.INT8}
VARIANTS = [name for name, lacks in available().items() if not lacks]
FLOAT = np.finfo(np.float32)
few = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 2**32 - 1)
F32 = NDArray[np.float32]


class Probe:
    """Calls entries of the probe unit; arrays go as addresses, floats as their bits."""

    def __init__(self, variant: str) -> None:
        self.variant, self.isa = variant, ISAS[variant]
        self.entries: dict[str, Entry] = load_unit("tests.runtime.kernel_probe", variant)

    def __call__(self, name: str, *args: Any) -> None:
        block = np.array([self._word(arg) for arg in args], np.int64)
        self.entries[name](block.ctypes.data, 0)

    @staticmethod
    def _word(value: Any) -> int:
        if isinstance(value, np.ndarray):
            return int(value.ctypes.data)
        return bits(value) if isinstance(value, float) else value


def bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


@pytest.fixture(scope="session", params=VARIANTS)
def probe(request: pytest.FixtureRequest) -> Probe:
    return Probe(request.param)


# -- matrices


SCALES = ("usual", "negative", "subnormal", "huge", "zero", "mixed")
INPUTS = ("usual", "zero", "tiny", "huge", "spike", "ends")


def scales(rng: np.random.Generator, shape: tuple[int, int], mode: str) -> NDArray[np.float16]:
    size = {"subnormal": 2e-6, "huge": 6e4, "zero": 0.0}.get(mode, 0.01)
    values = rng.uniform(0.1, 1, shape) * size
    if mode in ("negative", "mixed"):
        values *= rng.choice([-1, 1], shape)
    if mode == "mixed":
        values *= 10.0 ** rng.integers(-5, 5, shape)
    return values.astype(np.float16)


def matrix(rng: np.random.Generator, rows: int, cols: int, kind: Kind, mode: str) -> PackedMatrix:
    groups, top = groups_of(cols), 256 if kind == "int8" else 16
    quants = rng.integers(0, top, (rows, 32 * groups), dtype=np.uint8)
    ends = rng.random(quants.shape) < rng.choice([0.0, 0.5, 1.0])
    quants = np.where(ends, rng.choice([0, top - 1], quants.shape), quants).astype(np.uint8)
    minima = scales(rng, (rows, groups), mode) if kind == "int4m" else None
    return pack(PlainMatrix(kind, quants, scales(rng, (rows, groups), mode), minima), "", cols)


OUTLIER = np.dtype([("column", "<i4"), ("value", "<f4")])
NO_OUTLIERS = np.zeros(1, OUTLIER)


def outliers_of(columns: NDArray[np.int64], values: F32) -> NDArray[np.void]:
    """As kernels read them, [count, n], of those [n, count] that the oracle takes apart."""
    apart = np.zeros(columns.T.shape, OUTLIER)
    apart["column"], apart["value"] = columns.T, values.T
    return apart if apart.size else NO_OUTLIERS


def inputs(rng: np.random.Generator, tokens: int, cols: int, mode: str) -> F32:
    x = rng.standard_normal((tokens, cols))
    if mode == "spike":
        x[:, rng.integers(cols)] = 1e4
    if mode == "ends":
        x = rng.choice([-1.0, 1.0], x.shape)
    x *= {"zero": 0.0, "tiny": 1e-31, "huge": 1e27}.get(mode, 1.0)
    return x.astype(np.float32)


@few
@given(
    seed=seeds,
    rows=st.integers(1, 50),
    cols=st.integers(1, 200),
    kind=st.sampled_from(list(KINDS)),
    mode=st.sampled_from(SCALES),
    how=st.sampled_from(INPUTS),
    step=st.sampled_from((*L.STEP_WIDTHS, None)),
    count=st.integers(0, 3),
)
def test_tiles_equal_the_oracle(
    probe: Probe,
    seed: int,
    rows: int,
    cols: int,
    kind: Kind,
    mode: str,
    how: str,
    step: int | None,
    count: int,
) -> None:
    rng = np.random.default_rng(seed)
    weights, tokens = matrix(rng, rows, cols, kind, mode), step or probe.isa.tokens
    x = inputs(rng, tokens, cols, how)
    rest, columns, values = oracle.without_outliers(x, count)
    quants, x_scales, sums = oracle.quantize_activations(rest)
    block = [
        np.ascontiguousarray(np.swapaxes(part, 0, 1))
        for part in (quants, x_scales, -8 * sums, (x_scales * sums).astype(np.float32))
    ]
    apart = outliers_of(columns, values)
    tiles = weights.joined()
    out = np.full((len(tiles), tokens, 20), 7.0, np.float32)
    for tile, target in zip(tiles, out, strict=True):
        name = f"tile_{KINDS[kind]}_{tokens}"
        probe(name, tile, *block, tiles.shape[1], apart, count, target, target.strides[0])
    got = np.swapaxes(out[:, :, :16], 1, 2).reshape(-1, tokens).T
    # sums of numbers that cancel are only as exact as the largest of them
    wide = oracle.scales_of(weights)
    dots = np.einsum("rgi,ngi->nrg", oracle.quants_of(weights), quants.astype(np.int64))
    terms = np.abs(wide[0] * dots) + np.abs(wide[1] * sums[:, None, :])
    size = (terms * x_scales[:, None, :]).sum(-1)
    size += np.einsum("rnk,nk->nr", np.abs(oracle.dequantize(weights))[:, columns], np.abs(values))
    size += np.einsum("rnk,nk->nr", np.abs(wide[1])[:, columns // 32], np.abs(values))
    error = np.abs(got[:, :rows] - oracle.matmul(weights, x, count))
    assert np.all(error <= 2e-6 * size + FLOAT.tiny)
    assert np.all(got[:, rows:] == 0), "rows of padding"
    assert np.all(out[:, :, 16:] == 7), "what is behind a tile's output"


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_products_do_not_overflow(probe: Probe, kind: Kind) -> None:
    top, groups = 255 if kind == "int8" else 15, 2
    quants, ones = np.full((16, 32 * groups), top, np.uint8), np.ones((16, groups), np.float16)
    minima = 0 * ones if kind == "int4m" else None
    tile = pack(PlainMatrix(kind, quants, ones, minima), "", 32 * groups).joined()[0]
    for tokens in (1, probe.isa.tokens):
        x = np.full((groups, tokens, 32), 127, np.int8)
        sums = np.full((groups, tokens), 127 * 32, np.int32)
        scale, out = np.ones((groups, tokens), np.float32), np.zeros((tokens, 16), np.float32)
        block = (x, scale, -8 * sums, sums.astype(np.float32))
        probe(f"tile_{KINDS[kind]}_{tokens}", tile, *block, groups, NO_OUTLIERS, 0, out, 64)
        weight = {"int4": 15 - 8, "int4m": 15, "int8": 255 - 128}[kind]
        assert np.all(out == weight * 127 * 32 * groups)


def test_one_token_equals_many_bit_for_bit(probe: Probe) -> None:
    rng = np.random.default_rng(5)
    shapes = itertools.product(KINDS.items(), (2, 4, probe.isa.tokens))
    for (kind, number), tokens in shapes:
        weights = matrix(rng, 16, 96, kind, "mixed").joined()[0]
        x, columns, values = oracle.without_outliers(inputs(rng, tokens, 96, "usual"), 2)
        quants, x_scales, sums = oracle.quantize_activations(x)
        apart = outliers_of(columns, values)
        block = (quants, x_scales, -8 * sums, (x_scales * sums).astype(np.float32))
        together = [np.ascontiguousarray(np.swapaxes(part, 0, 1)) for part in block]
        many, one = np.zeros((tokens, 16), np.float32), np.zeros((tokens, 16), np.float32)
        probe(f"tile_{number}_{tokens}", weights, *together, 3, apart, 2, many, 64)
        for token in range(tokens):
            alone = [np.ascontiguousarray(part[token]) for part in block]
            own = np.ascontiguousarray(apart[:, token])
            probe(f"tile_{number}_1", weights, *alone, 3, own, 2, one[token], 64)
        assert np.array_equal(many, one)


@few
@given(seed=seeds, groups=st.integers(1, 40), how=st.sampled_from((*INPUTS, "nan")))
def test_taking_the_largest_equals_the_oracle(
    probe: Probe, seed: int, groups: int, how: str
) -> None:
    rng = np.random.default_rng(seed)
    x = inputs(rng, 1, 32 * groups, "ends" if how == "nan" else how)
    x[0, rng.integers(x.size)] *= 2
    if how == "nan":  # belongs to its group's quants, and to no comparison
        x[0, rng.integers(x.size)] = np.nan
    found = np.zeros((4, 1), OUTLIER)
    rest, columns, values = oracle.without_outliers(np.where(np.isnan(x), 0, x), len(found))
    for entry in found:
        probe("take_largest", x, groups, entry)
    assert found["column"].tolist() == columns.T.tolist()
    assert np.array_equal(found["value"], values.T)
    assert np.array_equal(np.where(np.isnan(x), 0, x), rest)


@few
@given(seed=seeds, how=st.sampled_from((*INPUTS, "edge")))
def test_quantizing_equals_the_oracle(probe: Probe, seed: int, how: str) -> None:
    rng = np.random.default_rng(seed)
    if how == "edge":  # on both sides of what counts as nothing, and near the largest float
        x = rng.choice([1e-30, -1e-30, 1.1e-30, 9e-31, 0.0], (1, 32))
        x = (x * rng.choice([1.0, 3e68])).astype(np.float32)
    else:
        x = inputs(rng, 1, 32, how)
    want = oracle.quantize_activations(x)
    q, floats = np.full(32, 99, np.int8), np.full(2, 9, np.float32)
    bias = np.zeros(1, np.int32)
    probe("quantize", x, q, floats[:1], bias, floats[1:])
    assert np.abs(q - want[0].ravel().astype(int)).max() <= (how != "zero")
    assert np.mean(q == want[0].ravel()) > 0.9
    np.testing.assert_allclose(floats[0], want[1].ravel()[0], rtol=3e-7)
    assert bias[0] == -8 * q.sum(dtype=int)
    with np.errstate(over="ignore"):
        total = floats[0] * np.float32(q.sum(dtype=int))
    np.testing.assert_allclose(floats[1], total, rtol=3e-7)


@few
@given(
    seed=seeds,
    rows=st.integers(1, 40),
    cols=st.integers(1, 100),
    kind=st.sampled_from(list(KINDS)),
    mode=st.sampled_from(SCALES),
)
def test_embedding_rows_equal_the_oracle(
    probe: Probe, seed: int, rows: int, cols: int, kind: Kind, mode: str
) -> None:
    rng = np.random.default_rng(seed)
    weights, token = matrix(rng, rows, cols, kind, mode), int(rng.integers(rows))
    tiles = weights.joined()
    words, args = np.zeros(L.MATRIX_WORDS, np.int64), np.zeros(L.ARGS_WORDS, np.int64)
    words[L.TILE], words[L.TILE_BYTES] = tiles.ctypes.data, tiles.strides[0]
    words[L.KIND], words[L.TILES], words[L.GROUPS] = KINDS[kind], *tiles.shape[:2]
    args[L.EMBED], args[L.EMBED_SCALE], args[L.D_MODEL] = words.ctypes.data, bits(3.0), cols
    out = np.full(32 * tiles.shape[1], 9, np.float32)
    probe("embed", args, token, out)
    scale, offset = (float(np.abs(part[token]).max()) for part in oracle.scales_of(weights))
    near = 1e-6 * (256 * scale + offset)
    assert np.all(np.abs(out[:cols] - 3 * oracle.embedding_row(weights, token)) <= 3 * near)
    assert np.all(out[cols:] == 0)


# -- vectors


@few
@given(seed=seeds, length=st.integers(1, 120), size=st.sampled_from([0.0, 1e-12, 1.0, 1e12]))
def test_rms_norm_equals_the_oracle(probe: Probe, seed: int, length: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    width = -(-length // 16) * 16
    x, w = np.zeros((2, width), np.float32)
    x[:length], w[:length] = size * rng.standard_normal(length), rng.standard_normal(length)
    want, apart = oracle.rms_norm(x[:length], w[:length], 1e-6), np.ones(width, np.float32)
    for out in (apart, x):  # the last in place
        probe("rms_norm", x, w, out, width // 16, 1 / length, 1e-6)
        np.testing.assert_allclose(out[:length], want, rtol=3e-6, atol=1e-30)
        assert np.all(out[length:] == 0)


def test_axpy(probe: Probe) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 48)).astype(np.float32)
    want = y + np.float64(0.3) * x
    probe("axpy", 0.3, x, y, 3)
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gates_equal_the_oracle(probe: Probe, name: str) -> None:
    edges = [0.0, -0.0, 0.01, 1e-20, 60.0, -60.0, 88.0, -88.0, 200.0, -200.0, 1e4, -1e4, 3e5]
    gate = np.concatenate([edges, np.linspace(-12, 12, 2032 - len(edges))]).astype(np.float32)
    gate = np.append(gate, np.full(16, 0.25, np.float32))  # where fatrelu begins, exactly
    up = np.random.default_rng(2).standard_normal(len(gate)).astype(np.float32)
    want, out = oracle.ffn_hidden(name, gate, up, 0.25), np.zeros_like(gate)
    probe(f"gate_{name}", gate, up, out, len(gate) // 16, 0.25)
    np.testing.assert_allclose(out, want, rtol=4e-6, atol=1e-6)


@few
@given(seed=seeds, vectors=st.integers(1, 9), spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]))
def test_softmax_of_scores(probe: Probe, seed: int, vectors: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    scores = (spread * rng.standard_normal(16 * vectors)).astype(np.float32)
    scores[rng.random(len(scores)) < 0.3] = -1e30
    scores[rng.integers(len(scores))] = spread
    peak, total = np.full(1, rng.choice([-1e30, 0.5 * spread]), np.float32), np.zeros(1, np.float32)
    top = max(scores.max(), peak[0])
    probe("max_scores", scores, vectors, peak)
    assert peak[0] == top
    want = np.exp((scores - top).astype(np.float64))
    probe("exp_scores", scores, vectors, peak, total)
    np.testing.assert_allclose(scores, want, rtol=3e-6, atol=2e-38)
    np.testing.assert_allclose(total[0], want.sum(), rtol=3e-6)


def test_every_half_becomes_the_right_float(probe: Probe) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    finite = halves[np.isfinite(halves.view(np.float16))]
    finite = finite[: len(finite) // 16 * 16]
    for native in {probe.isa.native_half, False}:
        out = np.ones(len(finite), np.float32)
        probe(f"from_half_{native}", finite, out, len(finite) // 16)
        want = finite.view(np.float16).astype(np.float32)
        assert np.array_equal(out.view(np.uint32), want.view(np.uint32))


def test_floats_become_the_nearest_half(probe: Probe) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)  # ties
    rng = np.random.default_rng(3)
    random = (rng.standard_normal(4096) * 10.0 ** rng.integers(-12, 6, 4096)).astype(np.float32)
    below, far = np.nextafter(between, np.float32(0)), [1e30, 65519, 65520]
    x = np.concatenate([halves, between, below, random, far])
    x = np.concatenate([x, -x]).astype(np.float32)
    x = x[: len(x) // 16 * 16]
    want = np.clip(x, -65504, 65504).astype(np.float16).view(np.uint16)
    for native in {probe.isa.native_half, False}:
        out = np.zeros(len(x), np.uint16)
        probe(f"to_half_{native}", x, out, len(x) // 16)
        assert np.array_equal(out, want)


# -- attention


@pytest.mark.parametrize("rows", SCORE_ROWS)
@pytest.mark.parametrize("pad", [16, 48, 80, 128])
def test_scores(probe: Probe, rows: int, pad: int) -> None:
    rng = np.random.default_rng(pad)
    q = rng.standard_normal((rows, pad + 3)).astype(np.float32)
    keys = rng.standard_normal((pad, 16)).astype(np.float16)
    out = np.full((rows, 20), 7, np.float32)
    probe(f"score_{rows}", q, q.strides[0], keys, pad, out, out.strides[0])
    want = q[:, :pad].astype(np.float64) @ keys.astype(np.float64)
    np.testing.assert_allclose(out[:, :16], want, rtol=1e-5, atol=1e-5)
    assert np.all(out[:, 16:] == 7)


@pytest.mark.parametrize(("rows", "vectors"), VALUE_SHAPES)
@pytest.mark.parametrize("positions", [1, 2, 15, 33])
def test_values(probe: Probe, rows: int, vectors: int, positions: int) -> None:
    rng = np.random.default_rng(positions)
    p = rng.random((rows, positions + 3)).astype(np.float32)
    values = rng.standard_normal((positions, 16 * vectors + 5)).astype(np.float16)
    acc = rng.standard_normal((rows, 16 * vectors + 2)).astype(np.float32)
    want = acc.astype(np.float64)
    want[:, : 16 * vectors] += p[:, :positions].astype(np.float64) @ values[:, : 16 * vectors]
    args = (p, p.strides[0], values, values.strides[0], positions, acc, acc.strides[0])
    probe(f"value_{rows}_{vectors}", *args)
    np.testing.assert_allclose(acc, want, rtol=1e-5, atol=1e-5)


def cache_rows(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> F32:
    """Rows whose groups differ in size, some of them nothing but zeros."""
    x = size * rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 2, (*shape[:-1], 1))
    x *= rng.random((*shape[:-1], 1)) < 0.9
    return x.astype(np.float32)


@few
@given(seed=seeds, size=st.sampled_from([1.0, 1e-4, 1e-6, 1e-9, 1e4, 1e30]), ends=st.booleans())
def test_groups_are_rounded_for_the_cache(probe: Probe, seed: int, size: float, ends: bool) -> None:
    x = cache_rows(np.random.default_rng(seed), (12, 32), size)
    x = np.where(np.abs(x) > size / 2, np.sign(x), 0).astype(np.float32) if ends else x
    want, want_scales = oracle.round_cached(x)
    for native in {probe.isa.native_half, False}:
        quants, scales = np.full((12, 40), 7, np.int8), np.full(13, 7, np.float16)
        for row, line, at in zip(x, quants, range(12), strict=True):
            probe(f"round8_{native}", row, line, scales[at:])
        assert np.array_equal(scales[:12].view(np.uint16), want_scales[:, 0].view(np.uint16))
        assert np.array_equal(quants[:, :32], want[:, 0])
        assert np.all(quants[:, 32:] == 7)
        assert scales[12] == 7


def int8_chunks(keys: F32, values: F32, at: slice, room: int, empty: int) -> NDArray[np.uint8]:
    """An int8 cache [room/256, keys and values, bytes] of positions `at`; else `empty`.

    `keys` and `values` are the rows of those positions, `room` is a multiple of 256.
    """
    both = []
    for x in (keys, values):
        quants, scales = oracle.round_cached(x)
        groups = scales.shape[1]
        wide = np.full((room, groups, 32), empty, np.uint8)
        wide[at] = quants.astype(np.int16) + 128
        kept = np.full((room, groups), 257 * empty, np.uint16)
        kept[at] = scales.view(np.uint16)
        both.append((wide.reshape(-1, 16, 16, groups, 32), kept.reshape(-1, 16, 16, groups)))
    (key, key_scales), (value, value_scales) = both
    chunks = len(key)
    key = key.reshape(chunks, 16, 16, groups, 8, 4).transpose(0, 1, 3, 4, 2, 5)
    value = value.reshape(chunks, 16, 4, 4, groups, 32).transpose(0, 4, 1, 2, 5, 3)
    parts = [
        np.ascontiguousarray(key_scales.swapaxes(2, 3)).view(np.uint8),
        key.reshape(chunks, 16, groups, 512),
        np.ascontiguousarray(value_scales.transpose(0, 3, 1, 2)).view(np.uint8),
        value.reshape(chunks, groups, 16, 512),
    ]
    parts[2:] = [part.reshape(chunks, groups, -1) for part in parts[2:]]
    halves = [np.concatenate(parts[i : i + 2], axis=-1).reshape(chunks, -1) for i in (0, 2)]
    return np.stack(halves, axis=1)


@few
@given(
    seed=seeds,
    rows=st.integers(1, 4),
    blocks=st.integers(1, L.ATTENTION_BLOCKS),
    size=st.sampled_from([1.0, 1e-30, 0.0]),
    sharp=st.booleans(),
)
def test_values_of_an_int8_cache(
    probe: Probe, seed: int, rows: int, blocks: int, size: float, sharp: bool
) -> None:
    rng, rows = np.random.default_rng(seed), min(rows, value_rows(probe.isa))
    p = size * rng.random((rows, 16 * blocks + 3))
    p = (p ** (20 if sharp else 1)).astype(np.float32)
    x = cache_rows(rng, (16 * blocks, 32), 1.0)
    quants, scales = oracle.round_cached(x)
    room = 16 * L.ATTENTION_BLOCKS
    cache = int8_chunks(x, x, slice(len(x)), room, 0)[0, 1]
    kept, wide = cache[: 2 * room], cache[2 * room :]
    acc = rng.standard_normal((rows, 35)).astype(np.float32)
    shares = p[:, : 16 * blocks] * scales[:, 0].astype(np.float64)
    exact = acc.astype(np.float64)
    exact[:, :32] += shares @ quants[:, 0].astype(np.float64)
    # a weight is off by half a step of 1/16383 of the largest
    step = shares.max(axis=1, keepdims=True) / (2**14 - 1)
    memory = np.zeros((4, L.ATTENTION_BLOCKS, 64), np.uint8)
    args = (p, p.strides[0], kept, wide, blocks, acc, acc.strides[0], memory)
    probe(f"value8_{rows}", *args)
    bound = 0.51 * step * np.abs(quants[:, 0].astype(np.int64)).sum(axis=0)
    assert np.all(np.abs(acc - exact)[:, :32] <= bound + 1e-5 * np.abs(exact[:, :32]) + 1e-6)
    assert np.array_equal(acc[:, 32:], exact[:, 32:])


attention_cases = given(
    seed=seeds,
    group=st.integers(1, 9),
    queries=st.integers(1, 4),
    head_dim=st.sampled_from([2, 16, 20, 48, 64, 72, 128]),
    before=st.integers(0, 300),
    window=st.sampled_from([0, 1, 5, 16, 17, 100]),
    size=st.sampled_from([0.0, 0.3, 5.0]),
)


@few
@attention_cases
def test_attention_over_an_int8_cache_equals_the_oracle(
    probe: Probe,
    seed: int,
    group: int,
    queries: int,
    head_dim: int,
    before: int,
    window: int,
    size: float,
) -> None:
    """The second of two key heads; whatever lies in the cache behind the newest adds nothing."""
    rng = np.random.default_rng(seed)
    pad, length, rows = -(-head_dim // 32) * 32, before + queries, group * queries
    room = (length // 256 + 1) * 256
    k = (size * rng.standard_normal((length, 1, head_dim))).astype(np.float32)
    v = rng.standard_normal((length, 1, head_dim)).astype(np.float32)
    one = int8_chunks(k[:, 0], v[:, 0], slice(length), room, 99)
    cache = np.stack([np.full_like(one, 0x44), one])
    q = np.zeros((queries, group, pad), np.float32)
    q[:, :, :head_dim] = rng.standard_normal((queries, group, head_dim))
    args = np.zeros(L.ARGS_WORDS, np.int64)
    args[L.N_HEADS], args[L.KV_HEADS], args[L.HEAD_PAD] = 2 * group, 2, pad
    args[L.HEAD_DIM], args[L.HEAD_BYTES], args[L.CACHE] = head_dim, one.nbytes, L.CACHE_INT8
    args[L.KEYS], args[L.VALUES] = (cache[:, :, i].ctypes.data for i in (0, 1))
    acc, state = np.ones((rows, pad), np.float32), np.ones((rows, 2), np.float32)
    scores = np.full(L.attention_bytes(rows, pad) + 64, 3, np.uint8)
    first = max(0, before - window + 1) // 16 if window else 0
    last = (length - 1) // 16 + 1
    part = np.ones(rows * (pad + 2), np.float32)
    probe("attend", args, 0, 1, q, rows, before, window, first, last, acc, state, scores, part)
    kept = oracle.as_cached(q[:, :, :head_dim], k, v, np.int8)
    want = oracle.attention(*kept, scale=1.0, window=window)
    got = (acc / state[:, 1:]).reshape(queries, group, pad)
    np.testing.assert_allclose(got[:, :, :head_dim], want, rtol=1e-3, atol=1e-3)
    assert np.all(got[:, :, head_dim:] == 0)
    assert np.all(scores[-64:] == 3), "what is behind its memory"


@few
@attention_cases
def test_attention_equals_the_oracle(
    probe: Probe,
    seed: int,
    group: int,
    queries: int,
    head_dim: int,
    before: int,
    window: int,
    size: float,
) -> None:
    """The second of two key heads; whatever lies in the cache behind the newest is not read."""
    rng = np.random.default_rng(seed)
    pad, length, rows = -(-head_dim // 16) * 16, before + queries, group * queries
    room = (length // 16 + 2) * 16
    k = (size * rng.standard_normal((length, 1, head_dim))).astype(np.float16)
    v = rng.standard_normal((length, 1, head_dim)).astype(np.float16)
    keys = np.full((2, room, pad), 9, np.float16)
    values = np.full((2, room, pad), np.nan, np.float16)
    keys[1, :length], values[1, :length] = 0, 0
    keys[1, :length, :head_dim], values[1, :length, :head_dim] = k[:, 0], v[:, 0]
    keys = np.ascontiguousarray(keys.reshape(2, room // 16, 16, pad).swapaxes(2, 3))
    q = np.zeros((queries, group, pad), np.float32)
    q[:, :, :head_dim] = rng.standard_normal((queries, group, head_dim))
    args = np.zeros(L.ARGS_WORDS, np.int64)
    args[L.N_HEADS], args[L.KV_HEADS], args[L.HEAD_PAD] = 2 * group, 2, pad
    args[L.HEAD_DIM], args[L.HEAD_BYTES] = head_dim, 2 * room * pad
    args[L.KEYS], args[L.VALUES] = keys.ctypes.data, values.ctypes.data
    acc, state = np.ones((rows, pad), np.float32), np.ones((rows, 2), np.float32)
    scores = np.full((rows, 16 * L.ATTENTION_BLOCKS), 3, np.float32)
    first = max(0, before - window + 1) // 16 if window else 0
    last = (length - 1) // 16 + 1
    part = np.ones(rows * (pad + 2), np.float32)
    probe("attend", args, 0, 1, q, rows, before, window, first, last, acc, state, scores, part)
    want = oracle.attention(q[:, :, :head_dim], k, v, scale=1.0, window=window)
    got = (acc / state[:, 1:]).reshape(queries, group, pad)
    np.testing.assert_allclose(got[:, :, :head_dim], want, rtol=2e-4, atol=2e-4)
    assert np.all(got[:, :, head_dim:] == 0)


@few
@given(seed=seeds, half=st.integers(1, 40), biased=st.booleans(), normed=st.booleans(), p=seeds)
def test_heads_are_rotated_and_kept(
    probe: Probe, seed: int, half: int, biased: bool, normed: bool, p: int
) -> None:
    """rope_head and keep: position p of key head 1 of 2 in layer 1, and nothing else."""
    rng = np.random.default_rng(seed)
    dim, room = 2 * half, 48
    pad, position = -(-dim // 16) * 16, p % room
    x, value, bias, norm = rng.standard_normal((4, dim)).astype(np.float32)
    inv_freq = rng.random(half)
    angles = position * inv_freq
    table = np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
    args = np.zeros(L.ARGS_WORDS, np.int64)
    args[L.N_HEADS], args[L.KV_HEADS], args[L.HEAD_BYTES] = 4, 2, 2 * room * pad
    args[L.HEAD_DIM], args[L.HEAD_PAD], args[L.NORM_EPS] = dim, pad, bits(1e-6)
    key, tmp = np.ones((2, pad), np.float32)
    probe("rope_head", args, x, bias if biased else 0, norm if normed else 0, table, 0.5, key)
    want = x.astype(np.float64) + (bias if biased else 0)
    if normed:
        want = oracle.rms_norm(want, norm, 1e-6)
    want = 0.5 * oracle.rope(want[None, None], [position], inv_freq.tolist())[0, 0]
    np.testing.assert_allclose(key[:dim], want, rtol=2e-5, atol=2e-5)
    assert np.all(key[dim:] == 0)

    keys, values = np.full((2, 4, room * pad), 9, np.float16)
    args[L.KEYS], args[L.VALUES] = keys.ctypes.data, values.ctypes.data
    rotated = key.copy()
    probe("keep", args, 1, 1, position, key, value, bias if biased else 0, tmp)
    keys = keys.reshape(4, room // 16, pad, 16)
    values = values.reshape(4, room, pad)
    kept = keys[3, position // 16, :, position % 16].copy()
    assert np.array_equal(kept, rotated.astype(np.float16))
    expected = (value + (bias if biased else np.float32(0))).astype(np.float16)
    assert np.array_equal(values[3, position, :dim], expected)
    assert np.all(values[3, position, dim:] == 0)
    keys[3, position // 16, :, position % 16] = 9
    values[3, position] = 9
    assert np.all(keys == 9)
    assert np.all(values == 9)


@few
@given(seed=seeds, dim=st.integers(1, 100), position=st.integers(0, 511), biased=st.booleans())
def test_a_position_is_kept_in_int8(
    probe: Probe, seed: int, dim: int, position: int, biased: bool
) -> None:
    """Of key head 1 of 2 in layer 1, and nothing else."""
    rng, room, pad = np.random.default_rng(seed), 512, -(-dim // 32) * 32
    x, value, bias = rng.standard_normal((3, dim)).astype(np.float32)
    key, tmp = np.zeros(pad, np.float32), np.ones(pad, np.float32)
    key[:dim] = x
    args = np.zeros(L.ARGS_WORDS, np.int64)
    added = value + (bias if biased else np.float32(0))
    at = slice(position, position + 1)
    one = int8_chunks(x[None], added[None], at, room, 9)
    args[L.N_HEADS], args[L.KV_HEADS], args[L.HEAD_BYTES] = 4, 2, one.nbytes
    args[L.HEAD_DIM], args[L.HEAD_PAD], args[L.CACHE] = dim, pad, L.CACHE_INT8
    found = np.full((4, *one.shape), 9, np.uint8)
    args[L.KEYS], args[L.VALUES] = (found[:, :, i].ctypes.data for i in (0, 1))
    probe("keep", args, 1, 1, position, key, value, bias if biased else 0, tmp)
    expected = np.full_like(found, 9)
    expected[3] = one
    assert np.array_equal(found, expected)


def test_token_blocks_are_those_of_the_kernels() -> None:
    assert {name: isa.tokens for name, isa in ISAS.items()} == TOKEN_BLOCK
