"""The oracle against the definitions it states: exact cases and properties."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stem_runtime.config import ACTIVATIONS
from stem_runtime.formats.packed import open_packed
from stem_runtime.kernels import oracle
from stem_runtime.quant import Kind, unpack

from .tiny import random_matrix, random_packed, rope_inv_freq, tiny_config

KINDS: tuple[Kind, ...] = ("int4", "int4m", "int8")
kinds = st.sampled_from(KINDS)
sizes = st.integers(1, 70)
seeds = st.integers(0, 2**32 - 1)
finite = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=40, deadline=None)
@given(kinds, sizes, sizes, seeds)
def test_reads_the_layout_as_the_packer_writes_it(
    kind: Kind, rows: int, cols: int, seed: int
) -> None:
    matrix = random_matrix(np.random.default_rng(seed), rows, cols, kind)
    weights = oracle.dequantize(matrix)
    np.testing.assert_allclose(weights, unpack(matrix), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(oracle.embedding_row(matrix, rows - 1), weights[-1])


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), sizes), elements=finite))
def test_activations_round_to_the_nearest_quant(x: np.ndarray) -> None:
    quants, scales, sums = oracle.quantize_activations(x)
    groups = -(-x.shape[1] // 32)
    assert quants.shape == (len(x), groups, 32)
    np.testing.assert_array_equal(sums, quants.astype(int).sum(-1))
    back = (scales.astype(np.float64)[..., None] * quants).reshape(len(x), -1)
    error = np.abs(back[:, : x.shape[1]] - x).reshape(len(x), -1)
    allowed = np.repeat(0.5001 * scales + oracle.SMALLEST_PEAK, 32, axis=1)[:, : x.shape[1]]
    assert np.all(error <= allowed)
    assert not quants.reshape(len(x), -1)[:, x.shape[1] :].any()


def test_activations_round_half_to_even() -> None:
    x = np.array([127.0, 0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    quants, scales, sums = oracle.quantize_activations(x)
    assert quants[0, :6].tolist() == [127, 0, 2, 2, 0, -2]
    assert scales.tolist() == [1.0]
    assert sums.tolist() == [129]


@pytest.mark.parametrize("peak", [0.0, 1e-45, 1e-38])
def test_vanishing_activations_are_zero(peak: float) -> None:
    quants, scales, sums = oracle.quantize_activations(np.full(32, peak, np.float32))
    assert not quants.any()
    assert scales.tolist() == [0.0]
    assert sums.tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(kinds, st.integers(1, 9), sizes, seeds)
def test_outliers_leave_the_others_finely_rounded(
    kind: Kind, rows: int, cols: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = random_matrix(rng, rows, cols, kind)
    x = rng.uniform(-1, 1, (3, cols)).astype(np.float32)
    lines, places = np.arange(3)[:, None], np.stack([rng.permutation(cols)[:2] for _ in x])
    x[lines, places] = np.array([1000.0, -2000.0])[: places.shape[1]]
    weights = np.abs(oracle.dequantize(matrix)).astype(np.float64)
    error = np.abs(oracle.matmul(matrix, x, oracle.OUTLIERS) - x @ oracle.dequantize(matrix).T)
    assert np.all(error <= 0.0041 * weights.sum(axis=1) + 1e-6 * np.abs(x) @ weights.T)
    rest, columns, values = oracle.without_outliers(x, places.shape[1])
    assert np.abs(rest).max(initial=0) <= 1
    assert [set(row) for row in columns.tolist()] == [set(row) for row in places.tolist()]
    assert np.array_equal(values, x[lines, columns])


@settings(max_examples=40, deadline=None)
@given(kinds, sizes, sizes, seeds)
def test_matmul_is_the_product_with_rounded_activations(
    kind: Kind, rows: int, cols: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = random_matrix(rng, rows, cols, kind)
    x = rng.standard_normal((2, cols))
    quants, scales, _ = oracle.quantize_activations(x)
    rounded = (quants * scales[..., None].astype(np.float64)).reshape(2, -1)[:, :cols]
    expected = rounded @ oracle.dequantize(matrix).T.astype(np.float64)
    result = oracle.matmul(matrix, x)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(oracle.matvec(matrix, x[0]), result[0])


def test_rms_norm_of_a_known_vector() -> None:
    x, weight = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    expected = [3 / np.sqrt(12.5), 8 / np.sqrt(12.5)]
    np.testing.assert_allclose(oracle.rms_norm(x, weight, 0.0), expected)
    np.testing.assert_allclose(oracle.rms_norm(x, weight, 12.5), np.divide(expected, np.sqrt(2)))


def test_rope_turns_pairs_half_a_head_apart() -> None:
    turned = oracle.rope(np.array([[[1.0, 0.0, 0.0, 2.0]]]), [1], [np.pi / 2, np.pi])
    np.testing.assert_allclose(turned, [[[0.0, 0.0, 1.0, -2.0]]], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000), seeds)
def test_rope_scores_depend_on_distance_only(start: int, gap: int, seed: int) -> None:
    q, k = np.random.default_rng(seed).standard_normal((2, 1, 1, 16))
    freq = rope_inv_freq(16)
    scores = [
        float(np.sum(oracle.rope(q, [at + gap], freq) * oracle.rope(k, [at], freq)))
        for at in (0, start)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 14), st.sampled_from([1, 2, 4]), seeds)
def test_attention_is_a_masked_softmax(n: int, window: int, kv_heads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((n, 4, 8))
    k, v = rng.standard_normal((2, n, kv_heads, 8))
    repeat = 4 // kv_heads
    scores = np.einsum("ihd,jhd->hij", q, np.repeat(k, repeat, 1)) * 0.5
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    hidden = (distance < 0) | ((distance >= window) & (window > 0))
    weights = np.exp(np.where(hidden, -np.inf, scores))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("hij,jhd->ihd", weights, np.repeat(v, repeat, 1))
    result = oracle.attention(q, k, v, scale=0.5, window=window)
    np.testing.assert_allclose(result, expected, atol=1e-12)
    last = oracle.attention(q[-1:], k, v, scale=0.5, window=window)
    np.testing.assert_array_equal(last, result[-1:])


@pytest.mark.parametrize(
    ("activation", "gate", "up", "hidden"),
    [
        ("silu", 1.0, 2.0, 2 * 0.7310585786300049),
        ("silu", -2000.0, 1.0, 0.0),
        ("gelu", 1.0, 1.0, 0.8413447460685429),
        ("gelu", -1.0, 1.0, -0.15865525393145707),
        ("gelu_tanh", 1.0, 1.0, 0.8411919906082768),
        ("relu", -1.0, 3.0, 0.0),
        ("relu", 2.0, -3.0, -6.0),
        ("relu2", 3.0, -1.0, -9.0),
        ("fatrelu", 0.25, 1.0, 0.0),
        ("fatrelu", 0.5, 2.0, 1.0),
        ("drelu", 2.0, -3.0, 0.0),
        ("drelu", 2.0, 3.0, 6.0),
    ],
)
def test_activations_at_known_points(
    activation: str, gate: float, up: float, hidden: float
) -> None:
    result = oracle.ffn_hidden(activation, np.array([gate]), np.array([up]), 0.25)
    np.testing.assert_allclose(result, [hidden], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_passes_zero_and_grows(activation: str) -> None:
    gate = np.array([0.0, 5.0, 10.0])
    hidden = oracle.ffn_hidden(activation, gate, np.ones(3), 0.01)
    assert hidden[0] == 0
    assert 4.9 < hidden[1] < hidden[2]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "minicpm"])
def test_later_tokens_do_not_change_earlier_logits(family: str, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config(family), vocab_size=64)
    model = open_packed(random_packed(tmp_path / "model", config))

    def get(name: str) -> np.ndarray:
        short = name.rsplit(".", 1)[-1]
        vector = "norm" in short or "bias" in short
        return model.vector(name) if vector else oracle.dequantize(model.matrix(name))

    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    whole = oracle.forward(config, get, tokens)
    np.testing.assert_allclose(oracle.forward(config, get, tokens[:4]), whole[:4], atol=1e-5)
    packed = oracle.forward_packed(model, tokens)
    assert np.sqrt(np.mean((packed - whole) ** 2)) < 0.1 * whole.std()
