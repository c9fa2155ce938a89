"""Packed matrices times vectors on the device, against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.kernels import oracle
from stem_runtime.kernels.gpu.layout import (
    Activations,
    DeviceMatrix,
    chunks_of,
    group_words,
    head_words,
)
from stem_runtime.kernels.gpu.matvec import SplitSums, embed, matvec, splits_of
from stem_runtime.quant import Kind, PackedMatrix
from stem_runtime.quant.layout import CHUNKS, GROUP_BYTES

from ..test_kernels import INPUTS, SCALES, inputs, matrix

KINDS: tuple[Kind, ...] = ("int4", "int4m", "int8")
few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32 - 1)
F32 = NDArray[np.float32]


def activations(x: F32, device: str) -> Activations:
    """`x` [b, cols] as the oracle rounds it."""
    quants, scales, sums = oracle.quantize_activations(x)
    words = np.ascontiguousarray(quants).view(np.int32)
    return Activations(*(torch.from_numpy(part).to(device) for part in (words, scales, sums)))


def sizes(weights: PackedMatrix, x: F32) -> NDArray[np.float64]:
    """Sums of the terms' sizes [b, rows]: as exact as these are sums of terms that cancel.

    A term is what four columns give: a group is not summed up as integers as a whole.
    """
    quants, x_scales, _ = oracle.quantize_activations(x)
    fours = quants.reshape(*quants.shape[:2], 8, 4).astype(np.int64)
    stored = oracle.quants_of(weights)
    dots = np.einsum("rgqi,ngqi->nrgq", stored.reshape(*stored.shape[:2], 8, 4), fours)
    scale, offset = oracle.scales_of(weights)
    terms = np.abs(scale[:, :, None] * dots)
    terms += np.abs(offset[:, :, None] * fours.sum(-1)[:, None])
    total: NDArray[np.float64] = (terms.sum(-1) * x_scales[:, None, :]).sum(-1)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_a_group_are_those_of_the_files(kind: Kind) -> None:
    assert 4 * group_words(kind) == GROUP_BYTES[kind]
    assert chunks_of(kind) == CHUNKS[kind]
    assert 4 * head_words(kind) == GROUP_BYTES[kind] - 64 * CHUNKS[kind]
    assert group_words(kind) % 4 == 0, "loads of 128 bits"


@few
@given(
    seed=seeds,
    rows=st.integers(1, 40),
    cols=st.integers(1, 150),
    batch=st.integers(1, 8),
    kind=st.sampled_from(KINDS),
    mode=st.sampled_from(SCALES),
    how=st.sampled_from(INPUTS),
)
@example(seed=0, rows=8, cols=31, batch=5, kind="int8", mode="huge", how="usual")
def test_products_equal_the_oracle(
    device: str, seed: int, rows: int, cols: int, batch: int, kind: Kind, mode: str, how: str
) -> None:
    rng = np.random.default_rng(seed)
    weights, x = matrix(rng, rows, cols, kind, mode), inputs(rng, batch, cols, how)
    out = torch.full((batch, rows + 3), 7.0, device=device)
    matvec(out, DeviceMatrix.of(weights, device), *activations(x, device))
    got = out.cpu().numpy()
    error = np.abs(got[:, :rows] - oracle.matmul(weights, x))
    assert np.all(error <= 2e-6 * sizes(weights, x) + np.finfo(np.float32).tiny)
    assert np.all(got[:, rows:] == 7), "what is behind the rows"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [3, 35, 66])
def test_what_is_added_and_multiplied(device: str, kind: Kind, groups: int) -> None:
    """A whole tile and part of one, in one, two and four splits of their columns."""
    rng = np.random.default_rng(groups)
    weights = matrix(rng, 21, 32 * groups - 5, kind, "usual")
    x = inputs(rng, 2, weights.cols, "usual")
    bias, rest = rng.standard_normal(21), rng.standard_normal((2, 24))
    add = torch.from_numpy(rest.astype(np.float32)).to(device)
    split, on_device = SplitSums.empty(2, device), DeviceMatrix.of(weights, device)

    def product(out: torch.Tensor) -> NDArray[np.float32]:
        matvec(
            out,
            on_device,
            *activations(x, device),
            bias=torch.from_numpy(bias.astype(np.float32)).to(device),
            add=add,
            scale=0.5,
            split=split,
        )
        return out.cpu().numpy()

    apart = product(torch.zeros_like(add))
    error = np.abs(apart[:, :21] - (rest[:, :21] + 0.5 * (oracle.matmul(weights, x) + bias)))
    assert np.all(error <= 2e-6 * (sizes(weights, x) + np.abs(bias) + np.abs(rest[:, :21])))
    assert not split.arrived.any(), "ready for the next product"
    again = product(add)  # what is added is where the result goes
    assert np.array_equal(again[:, :21], apart[:, :21])
    assert np.array_equal(again[:, 21:], rest[:, 21:].astype(np.float32))


def test_one_vector_equals_many_bit_for_bit(device: str) -> None:
    rng = np.random.default_rng(5)
    for kind in KINDS:
        weights = DeviceMatrix.of(matrix(rng, 16, 96, kind, "mixed"), device)
        x = inputs(rng, 3, 96, "usual")
        many, one = torch.zeros((3, 16), device=device), torch.zeros((3, 16), device=device)
        matvec(many, weights, *activations(x, device))
        for i in range(3):
            matvec(one[i : i + 1], weights, *activations(x[i : i + 1], device))
        assert torch.equal(many, one)


@given(tiles=st.integers(1, 20000), groups=st.integers(1, 2000), batch=st.integers(1, 8))
def test_splits_fit_their_memory(tiles: int, groups: int, batch: int) -> None:
    splits, memory = splits_of(tiles, groups), SplitSums.empty(batch, "meta")
    assert splits.bit_count() == 1
    assert splits == 1 or tiles <= len(memory.arrived)
    assert splits == 1 or splits * tiles * batch * 16 <= len(memory.sums)


def test_few_tiles_are_split() -> None:
    assert splits_of(32, 256) == 16
    assert splits_of(32, 64) == 4, "but into no less than 16 groups"
    assert splits_of(9496, 64) == 1


@few
@given(
    seed=seeds,
    rows=st.integers(1, 40),
    cols=st.integers(1, 100),
    kind=st.sampled_from(KINDS),
    mode=st.sampled_from(SCALES),
)
def test_embedding_rows_equal_the_oracle(
    device: str, seed: int, rows: int, cols: int, kind: Kind, mode: str
) -> None:
    rng = np.random.default_rng(seed)
    weights, tokens = matrix(rng, rows, cols, kind, mode), rng.integers(0, rows, 2)
    out = torch.full((2, cols + 3), 7.0, device=device)
    on_device = torch.from_numpy(tokens.astype(np.int32)).to(device)
    embed(out, DeviceMatrix.of(weights, device), on_device, 3.0)
    want = 3 * oracle.dequantize(weights)[tokens]
    scale, offset = (np.abs(part[tokens]).max() for part in oracle.scales_of(weights))
    got = out.cpu().numpy()
    assert np.all(np.abs(got[:, :cols] - want) <= 3e-6 * (256 * scale + offset))
    assert np.all(got[:, cols:] == 7), "what is behind the columns"
