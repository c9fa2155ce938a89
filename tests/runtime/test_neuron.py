"""Single neurons: how their weights are laid out, and the products with them, on every variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.kernels import oracle
from stem_runtime.kernels.cpu import layout as L
from stem_runtime.kernels.cpu.masks import SHARED_COST
from stem_runtime.quant import Kind, PackedMatrix, groups_of
from stem_runtime.sparsity.head import row_major
from stem_runtime.sparsity.neurons import bits_of, columns_of, mask_of, rows_of, shared_of

from .test_kernels import (
    FLOAT,
    INPUTS,
    KINDS,
    SCALES,
    VARIANTS,
    Probe,
    few,
    inputs,
    matrix,
    outliers_of,
    seeds,
)

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
kinds = st.sampled_from(list(KINDS))
FILLERS = (0x00, 0xFF)
"""Bytes behind what a kernel may read; the second makes floats that spoil any sum."""


@pytest.fixture(scope="session", params=VARIANTS)
def probe(request: pytest.FixtureRequest) -> Probe:
    return Probe(request.param)


def guarded(array: NDArray[Any], filler: int) -> U8:
    """The bytes of an array and a cache line behind them."""
    return np.append(np.ascontiguousarray(array).view(np.uint8).ravel(), np.full(64, filler, "u1"))


# -- layouts, read byte by byte from their descriptions


def halves(raw: U8, count: int) -> NDArray[np.float64]:
    return np.ascontiguousarray(raw[..., : 2 * count]).view("<f2").astype(np.float64)


def weight(kind: Kind, quants: Any, scale: Any, minimum: Any) -> F32:
    offset = {"int4": -8 * scale, "int4m": minimum, "int8": -128 * scale}[kind]
    values: F32 = (scale * np.asarray(quants, np.float64) + offset).astype(np.float32)
    return values


def read_row(kind: Kind, row: U8, cols: int) -> F32:
    even = (groups_of(cols) + 1) // 2 * 2
    each = 32 if kind == "int8" else 16
    quants, rest = row[: each * even], row[each * even :]
    scales, minima = halves(rest, even), halves(rest[2 * even :], even if kind == "int4m" else 0)
    values = np.zeros(cols, np.float32)
    for column in range(cols):
        group, place = divmod(column, 32)
        if kind == "int8":
            quant = int(quants[column])
        else:
            byte = int(quants[16 * group + place % 16])
            quant = byte >> 4 if place >= 16 else byte & 15
        minimum = minima[group] if kind == "int4m" else 0.0
        values[column] = weight(kind, quant, scales[group], minimum)
    return values


def read_column(kind: Kind, column: U8, shared: U8, rows: int) -> F32:
    width = -(-rows // 64) * 64
    quants = np.zeros(width, np.int64)
    for start in range(0, width, 64 if kind == "int8" else 128):
        if kind == "int8":
            for byte in range(64):
                lane, v, i = byte // 16, byte % 16 // 4, byte % 4
                quants[start + 16 * v + 4 * lane + i] = column[start + byte]
            continue
        whole = width - start >= 128
        for byte in range(64 if whole else 32):
            lane, v, i = byte // 16, byte % 16 // 4, byte % 4
            first = start + (32 if whole else 16) * v + 4 * lane + i
            quants[first] = column[start // 2 + byte] & 15
            quants[first + (16 if whole else 8)] = column[start // 2 + byte] >> 4
    scales = halves(shared, width)
    minima = halves(shared[2 * width :], width) if kind == "int4m" else scales
    assert not scales[rows:].any()
    return weight(kind, quants, scales, minima)[:rows]


@settings(max_examples=25, deadline=None)
@given(seed=seeds, rows=st.integers(1, 300), cols=st.integers(1, 70), kind=kinds)
def test_rows_and_columns_are_the_tiles_in_another_order(
    seed: int, rows: int, cols: int, kind: Kind
) -> None:
    weights = matrix(np.random.default_rng(seed), rows, cols, kind, "mixed")
    want = oracle.dequantize(weights)
    flat, columns, shared = rows_of(weights), columns_of(weights), shared_of(weights)
    groups = groups_of(cols)
    assert flat.shape == (rows, L.row_bytes(KINDS[kind], groups))
    assert columns.shape == (cols, L.column_bytes(KINDS[kind], rows))
    assert shared.shape == (groups, L.shared_bytes(KINDS[kind], rows))
    assert flat.shape[1] % 64 == columns.shape[1] % 64 == 0
    for row in {0, rows // 2, rows - 1}:
        np.testing.assert_array_equal(read_row(kind, flat[row], cols), want[row])
    for column in {0, cols // 2, cols - 1}:
        found = read_column(kind, columns[column], shared[column // 32], rows)
        np.testing.assert_array_equal(found, want[:, column])


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_masks_hold_a_bit_for_each_neuron(bits: list[bool]) -> None:
    mask = mask_of(np.array(bits))
    assert mask.dtype == np.uint32
    assert len(mask) == groups_of(len(bits))
    assert bits_of(mask, len(bits)).tolist() == bits
    found = [32 * word + i for word in range(len(mask)) for i in range(32) if mask[word] >> i & 1]
    assert found == [i for i, bit in enumerate(bits) if bit], "padding bits are zero"


# -- products


@few
@given(
    seed=seeds,
    cols=st.integers(1, 300),
    kind=kinds,
    mode=st.sampled_from(SCALES),
    how=st.sampled_from(INPUTS),
    count=st.integers(0, 3),
    quads=st.integers(0, 2),
)
def test_rows_equal_the_oracle(
    probe: Probe, seed: int, cols: int, kind: Kind, mode: str, how: str, count: int, quads: int
) -> None:
    """Rows of a list of neurons, some of them twice, that lie anywhere; and nobody else's."""
    rng = np.random.default_rng(seed)
    weights, x = matrix(rng, 7, cols, kind, mode), inputs(rng, 1, cols, how)
    rest, columns, values = oracle.without_outliers(x, count)
    quants, scales, sums = (part[0] for part in oracle.quantize_activations(rest))
    groups, start = len(scales), 64 * int(rng.integers(2))
    parts = (quants, scales, -8 * sums, (scales * sums).astype(np.float32))
    even = [np.pad(p, [(0, groups % 2)] + [(0, 0)] * (p.ndim - 1)) for p in parts]
    listed = rng.integers(7, size=4 * quads + L.ROWS_AHEAD).astype(np.int32)
    wanted = np.unique(listed[: 4 * quads])
    found = np.full((2, 9), 7.0, np.float32)
    for filler, out in zip(FILLERS, found, strict=True):
        block = [guarded(part, filler) for part in even]
        apart = guarded(outliers_of(columns, values), filler)
        acts = np.array([*(part.ctypes.data for part in block), apart.ctypes.data, count], np.int64)
        rows = [guarded(row, filler) for row in rows_of(weights)]
        places = np.array([row.ctypes.data - start for row in rows], np.int64)
        lines = rows_of(weights).shape[1] // 64 + int(rng.integers(2))
        pairs, numbers = (groups + 1) // 2, guarded(listed, filler)
        probe(f"rows_{KINDS[kind]}", numbers, quads, places, start, lines, acts, pairs, out[1:])
    assert np.array_equal(found[0], found[1]), "what is behind row or activations counts"
    assert np.all(np.delete(found[0], 1 + wanted) == 7)
    # a group's sum is split over lanes, each with its share of the offset: those cancel in the end
    wide, offset = oracle.scales_of(weights), 128 if kind == "int8" else 8
    large = np.abs(oracle.quants_of(weights)) + offset
    dots = np.einsum("rgi,gi->rg", large, np.abs(quants.astype(np.int64)))
    terms = np.abs(wide[0] * dots) + np.abs(wide[1] * sums)
    size = (terms * scales).sum(-1)
    apart_size = np.abs(wide[0]) * large.max(-1) + np.abs(wide[1])
    size += apart_size[:, columns[0] // 32] @ np.abs(values[0])
    error = np.abs(found[0, 1:8] - oracle.matmul(weights, x, count)[0])
    assert np.all(error[wanted] <= 2e-6 * size[wanted] + FLOAT.tiny)


@few
@given(
    seed=seeds,
    cols=st.integers(1, 300),
    mode=st.sampled_from(SCALES),
    how=st.sampled_from(INPUTS),
    count=st.integers(0, 3),
    many=st.integers(0, 9),
)
def test_rows_of_the_head_equal_the_oracle(
    probe: Probe, seed: int, cols: int, mode: str, how: str, count: int, many: int
) -> None:
    """Those of a list, however many; what is behind the list, the rows or the input is not used."""
    rng = np.random.default_rng(seed)
    weights, x = matrix(rng, 7, cols, "int8", mode), inputs(rng, 1, cols, how)
    rest, columns, values = oracle.without_outliers(x, count)
    quants, scales, sums = (part[0] for part in oracle.quantize_activations(rest))
    listed = rng.integers(7, size=many).astype(np.int32)
    found = np.full((2, 9), 7.0, np.float32)
    for filler, out in zip(FILLERS, found, strict=True):
        parts = (quants, scales, -8 * sums, scales, outliers_of(columns, values))
        block = [guarded(part, filler) for part in parts]
        acts = np.array([*(part.ctypes.data for part in block), count], np.int64)
        rows, numbers = guarded(row_major(weights), filler), guarded(listed, filler)
        probe("head_rows", rows, numbers, many, acts, len(scales), out[1:])
    assert np.array_equal(found[0], found[1])
    wanted = np.unique(listed)
    assert np.all(np.delete(found[0], 1 + wanted) == 7)
    large = np.abs(oracle.quants_of(weights)) + 128
    scale = np.abs(oracle.scales_of(weights)[0])
    dots = np.einsum("rgi,gi->rg", large, np.abs(quants.astype(np.int64)))
    size = (scale * dots * scales).sum(-1)
    size += (scale * large.max(-1))[:, columns[0] // 32] @ np.abs(values[0])
    error = np.abs(found[0, 1:8] - oracle.matmul(weights, x, count)[0])
    assert np.all(error[wanted] <= 2e-6 * size[wanted] + FLOAT.tiny)


def added(weights: PackedMatrix, group: int, quants: Any, scale: Any) -> tuple[Any, Any]:
    """What columns of one group add to an output, float64 [rows], and the size of its terms."""
    scales, offsets = (part[:, group] for part in oracle.scales_of(weights))
    dots = oracle.quants_of(weights)[:, group].astype(np.int64) @ quants.astype(np.int64)
    total = int(quants.sum(dtype=np.int64))
    size = np.abs(scales * dots) + np.abs(offsets * total)
    return (scales * dots + offsets * total) * scale, size * scale


@few
@given(
    seed=seeds,
    rows=st.integers(1, 300),
    cols=st.integers(1, 100),
    kind=kinds,
    mode=st.sampled_from(SCALES),
    how=st.sampled_from(INPUTS),
    share=st.floats(0, 1),
)
def test_columns_equal_the_oracle(
    probe: Probe, seed: int, rows: int, cols: int, kind: Kind, mode: str, how: str, share: float
) -> None:
    """Some neurons of some group are added to what is already there, and nothing else happens."""
    rng = np.random.default_rng(seed)
    weights, group = matrix(rng, rows, cols, kind, mode), int(rng.integers(groups_of(cols)))
    there = min(32, cols - 32 * group)
    members = np.unique(np.append(np.flatnonzero(rng.random(there) < share), rng.integers(there)))
    hidden = np.zeros((1, 32), np.float32)
    hidden[0, members] = inputs(rng, 1, len(members), how)[0]
    quants, scale, sums = (part[0, 0] for part in oracle.quantize_activations(hidden))
    quads, chunks, begin = -(-len(members) // 4), -(-rows // 64), 64 * int(rng.integers(2))
    start = (rng.standard_normal(64 * chunks) * rng.choice([0.0, 1.0])).astype(np.float32)
    found = np.zeros((2, 64 * chunks), np.float32)
    for filler, out in zip(FILLERS, found, strict=True):
        columns = [guarded(column, filler) for column in columns_of(weights)]
        places = np.array([column.ctypes.data - begin for column in columns], np.int64)
        listed = np.append(32 * group + members, [0] * (-len(members) % 4)).astype(np.int32)
        values = np.append(quants[members], np.zeros(-len(members) % 4, np.int8))
        y = guarded(start, 0x55)
        words = [
            guarded(np.array([word]), filler)
            for word in (scale, -8 * sums, np.float32(scale * sums))
        ]
        acts = np.array([0, *(word.ctypes.data for word in words)], np.int64)
        following = rng.integers(cols, size=4 * int(rng.integers(3))).astype(np.int32)
        probe(
            f"columns_{KINDS[kind]}",
            guarded(shared_of(weights)[group], filler),
            guarded(listed, filler),
            places,
            begin,
            guarded(values, filler),
            quads,
            acts,
            chunks,
            y,
            shared_of(weights)[0],
            following,
            len(following) // 4,
        )
        out[:] = y[:-64].view(np.float32)
        assert np.all(y[-64:] == 0x55), "what is behind the output"
    assert np.array_equal(found[0], found[1]), "what is behind the inputs counts"
    change, size = added(weights, group, quants, float(scale))
    error = np.abs(found[0, :rows] - start[:rows] - change)
    assert np.all(error <= 2e-6 * (size + np.abs(start[:rows])) + FLOAT.tiny)
    assert np.array_equal(found[0, rows:], start[rows:]), "rows of padding"


# -- tests and shares


def test_only_what_is_over_the_cutoff_passes(probe: Probe) -> None:
    values = np.array([1.0, np.nextafter(np.float32(1), np.float32(2)), np.nan, np.inf] * 8, "f4")
    mask = np.full(2, 7, np.uint32)
    probe("passing", values, 1.0, mask)
    assert mask.tolist() == [0xAAAAAAAA, 7]
    probe("passing", -values, 0.0, mask)
    assert mask[0] == 0


@few
@given(seed=seeds, mask=st.integers(0, 2**32 - 1))
def test_values_under_a_mask(probe: Probe, seed: int, mask: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.standard_normal((2, 40)).astype(np.float32)
    values[rng.integers(32)] = rng.choice([np.nan, np.inf, 0.0])
    kept, bits = values.copy(), bits_of(np.array([mask], np.uint32), 32)
    probe("keep_masked", kept, mask)
    np.testing.assert_array_equal(kept[:32], np.where(bits, values[:32], 0))
    spread = np.full(40, 7, np.float32)
    probe("spread", weights, mask, spread)
    np.testing.assert_array_equal(spread[:32][bits], weights[: bits.sum()])
    assert np.all(spread[:32][~bits] == 0)
    assert np.all(spread[32:] == 7)
    weighed = np.full(40, 7, np.float32)
    probe("weigh", values, weights, weighed)
    np.testing.assert_array_equal(weighed[:32], np.abs(values[:32]) * weights[:32])
    assert np.array_equal(kept[32:], values[32:])
    assert np.all(weighed[32:] == 7)
    total = np.full(2, 7, np.float32)
    probe("total", weights, total)
    np.testing.assert_allclose(total, [weights[:32].astype(np.float64).sum(), 7], atol=1e-5)


@few
@given(
    masks=st.lists(st.sampled_from([0, 0, 1, 3 << 20, 2**32 - 1]), min_size=1, max_size=40),
    threads=st.integers(1, 9),
)
def test_neurons_are_dealt_evenly(probe: Probe, masks: list[int], threads: int) -> None:
    """Every group is one thread's, and no share is more than a group over an even one."""
    words, share = np.array(masks, np.uint32), np.zeros(2, np.int64)
    costs = np.array([mask.bit_count() + SHARED_COST if mask else 0 for mask in masks])
    end = 0
    for thread in range(threads):
        probe("deal", words, len(words), thread, threads, share)
        assert share[0] == end
        end = int(share[1])
        assert costs[share[0] : end].sum() <= costs.sum() / threads + costs.max()
    assert end == len(words)
