"""The packed layout against its definition, and every GGML type against the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stem_runtime.errors import FormatError
from stem_runtime.quant import (
    Kind,
    PackedMatrix,
    PlainMatrix,
    dequantize_plain,
    pack,
    pack_int4,
    pack_int8,
    tiles_shape,
    unpack,
    unpack_plain,
)
from stem_runtime.quant.ggml import BLOCKS, KEPT_AS, BlockType, keep, to_float
from stem_runtime.quant.rounding import quantize

from .tiny import random_matrix

KINDS: tuple[Kind, ...] = ("int4", "int4m", "int8")
kinds = st.sampled_from(KINDS)
rows_cols = st.tuples(st.integers(1, 50), st.integers(1, 100))


def value_by_definition(m: PackedMatrix, row: int, col: int) -> np.float32:
    """One weight, read as the layout's docstring says."""
    tile, r, group, within = row // 16, row % 16, col // 32, col % 32
    scale = np.float32(m.scales[tile, group, r])
    if m.kind == "int8":
        chunk, i = divmod(within, 4)
        return scale * np.float32(int(m.quants[tile, group, chunk, 4 * r + i]) - 128)
    chunk, i = divmod(within, 8)
    byte = m.quants[tile, group, chunk, 4 * r + i % 4]
    nibble = np.float32(byte & 15 if i < 4 else byte >> 4)
    if m.minima is None:
        return scale * (nibble - np.float32(8))
    return scale * nibble + np.float32(m.minima[tile, group, r])


@given(kinds, rows_cols, st.integers(0, 2**32 - 1), st.data())
def test_unpack_follows_the_definition(
    kind: Kind, shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    matrix = random_matrix(np.random.default_rng(seed), *shape, kind)
    values = unpack(matrix)
    assert values.shape == shape
    for _ in range(20):
        row = data.draw(st.integers(0, shape[0] - 1))
        col = data.draw(st.integers(0, shape[1] - 1))
        assert values[row, col] == value_by_definition(matrix, row, col)


@given(kinds, rows_cols, st.integers(0, 2**32 - 1))
def test_packing_loses_nothing_and_pads_with_zero_scales(
    kind: Kind, shape: tuple[int, int], seed: int
) -> None:
    matrix = random_matrix(np.random.default_rng(seed), *shape, kind)
    plain = unpack_plain(matrix)
    again = pack(plain, "", shape[1])
    assert again.joined().shape == tiles_shape(*shape, kind)
    for part, array in arrays(again).items():
        assert np.array_equal(array, arrays(matrix)[part])
    padding = unpack(PackedMatrix("", again.scales.shape[0] * 16, shape[1], kind, **arrays(again)))
    assert not padding[shape[0] :].any()


def arrays(matrix: PackedMatrix) -> dict[str, np.ndarray]:
    parts = {"quants": matrix.quants, "scales": matrix.scales, "minima": matrix.minima}
    return {part: array for part, array in parts.items() if array is not None}


def test_pack_int4_and_int8_take_plain_arrays() -> None:
    scales = np.array([[0.5, 2]], np.float16)
    nibbles = np.arange(64, dtype=np.uint8)[None] % 16
    steps = np.repeat(scales.astype(np.float32), 32, axis=1)
    assert np.array_equal(unpack(pack_int4(nibbles, scales)), (nibbles - 8.0) * steps)
    minima = np.array([[-1, 3]], np.float16)
    offsets = np.repeat(minima.astype(np.float32), 32, axis=1)
    assert np.array_equal(unpack(pack_int4(nibbles, scales, minima)), nibbles * steps + offsets)
    signed = np.arange(-32, 32, dtype=np.int8)[None] * 4
    assert np.array_equal(unpack(pack_int8(signed, scales)), signed * steps)


def test_pack_refuses_scales_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="disagree"):
        pack(PlainMatrix("int8", np.zeros((4, 64), np.uint8), np.zeros((4, 1), np.float16)))


def raw_blocks(kind: BlockType, rows: int, blocks: int) -> np.ndarray:
    """Random rows of any type, with finite fp16 scales."""
    size = BLOCKS[kind][1]
    rng = np.random.default_rng(size)
    raw = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    places = {"Q6_K": [208], "Q8_0": [0], "Q4_0": [0], "Q5_0": [0]}.get(kind, [0, 2])
    if kind in ("F32", "F16", "BF16"):
        code = {"F32": "<f4", "F16": "<f2", "BF16": "<f4"}[kind]
        values = rng.standard_normal((rows, blocks)).astype(code).view(np.uint8)
        raw = values.reshape(rows, blocks, -1)[:, :, -size:]
        places = []
    for place in places:
        scale = rng.standard_normal((rows, blocks, 1)).astype(np.float16)
        raw[:, :, place : place + 2] = scale.view(np.uint8)
    return np.ascontiguousarray(raw.reshape(rows, blocks * size))


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_type_dequantizes_as_the_gguf_package_does(kind: BlockType) -> None:
    raw = raw_blocks(kind, 5, 6)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(to_float(kind, raw), expected)


@pytest.mark.parametrize("kind", KEPT_AS)
def test_kept_types_keep_every_bit(kind: BlockType) -> None:
    raw = raw_blocks(kind, 20, 6)
    plain = keep(kind, raw)
    assert plain.kind == KEPT_AS[kind]
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    values = unpack(pack(plain))
    if kind == "Q4_K":  # scales of two levels become one fp16
        assert np.allclose(values, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
        return
    assert np.array_equal(values, expected)
    size = BLOCKS[kind][1]
    assert np.array_equal(
        plain.scales,
        np.ascontiguousarray(raw.reshape(20, -1, size)[:, :, :2]).view(np.float16)[..., 0],
    )


def test_q4_k_scales_are_rounded_once() -> None:
    raw = raw_blocks("Q4_K", 4, 2)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType.Q4_K).reshape(4, -1, 32)
    plain = keep("Q4_K", raw)
    quants = plain.quants.reshape(4, -1, 32)
    for scale_bit, other in ((-1, 1), (1, -1)):  # within half a step of fp16 either way
        scale = np.nextafter(plain.scales, np.float16(np.inf * scale_bit)).astype(np.float32)
        reach = np.abs(scale - plain.scales)[..., None] * quants
        assert plain.minima is not None
        minimum = np.nextafter(plain.minima, np.float16(np.inf * other)).astype(np.float32)
        reach = reach + np.abs(minimum - plain.minima)[..., None]
        error = np.abs(dequantize_plain(plain).reshape(expected.shape) - expected)
        assert (error <= reach + 1e-6).all()


finite = st.floats(-1e4, 1e4, width=32)


@given(st.lists(finite, min_size=1, max_size=100), st.sampled_from(["int4", "int8"]))
def test_rounding_is_never_worse_than_the_plain_rule(values: list[float], kind: Kind) -> None:
    """Against nearest rounding with the scale that just fits the largest weight."""
    x = np.array([values], np.float32)
    rounded = dequantize_plain(quantize(x, kind))[:, : x.shape[1]]
    top = {"int4": 7, "int8": 127}[kind]
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(-1, 32)
    scale = np.abs(padded).max(axis=1, keepdims=True) / top
    steps = np.divide(padded, scale, out=np.zeros_like(padded), where=scale > 1e-6)
    plain = (np.rint(steps) * scale).reshape(1, -1)[:, : x.shape[1]]
    # the scale is a half, which moves every weight by up to 2**-11 of the largest
    largest = np.abs(x).max()
    allowed = ((np.abs(plain - x) + largest * 2**-11) ** 2).sum() * 1.05
    allowed += (largest * 1e-3) ** 2 * x.size + 1e-9
    assert ((rounded - x) ** 2).sum() <= allowed


def test_rounding_pays_for_the_search_over_scales() -> None:
    x = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    error = np.sqrt(((dequantize_plain(quantize(x, "int4")) - x) ** 2).mean())
    assert error < 0.083  # 0.092 with the scale that fits the largest weight
    assert np.abs(dequantize_plain(quantize(x, "int8")) - x).max() < 0.021


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_weights_on_the_grid_stay_put(kind: Kind) -> None:
    low, high = {"int4": (-8, 7), "int8": (-127, 127)}[kind]
    steps = np.random.default_rng(1).integers(low, high + 1, (7, 96))
    steps[:, ::32] = low
    x = (steps * 0.25).astype(np.float32)
    assert np.array_equal(dequantize_plain(quantize(x, kind)), x)


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("tiny", [0.0, 1e-30, 1e-44])
def test_groups_of_nothing_become_zero(kind: Kind, tiny: float) -> None:
    plain = quantize(np.full((3, 40), tiny, np.float32), kind)
    assert not dequantize_plain(plain).any()


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_weights_that_are_no_numbers_are_refused(kind: Kind, bad: float) -> None:
    x = np.ones((40, 96), np.float32)
    x[17, 33] = bad
    with pytest.raises(FormatError, match="not a finite number"):
        quantize(x, kind)
