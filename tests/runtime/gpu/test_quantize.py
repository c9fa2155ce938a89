"""Activations rounded on the device, against the oracle."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.kernels import oracle
from stem_runtime.kernels.gpu.dot import dp4a, round_even
from stem_runtime.kernels.gpu.layout import Activations
from stem_runtime.kernels.gpu.quantize import norm_quantize, quantize, rms_norm

from ..test_kernels import INPUTS, inputs

few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@triton.jit
def _probe_dot(out, a, b, c):
    at = tl.arange(0, 64)
    tl.store(out + at, dp4a(tl.load(a + at), tl.load(b + at), tl.load(c + at)))


@triton.jit
def _probe_round(out, x):
    at = tl.arange(0, 64)
    tl.store(out + at, round_even(tl.load(x + at)))


def bytes_of(acts: Activations) -> NDArray[np.int8]:
    """The quants int8 [b, groups, 32]."""
    words = acts.words.cpu().numpy()
    return words.view(np.int8).reshape(*words.shape[:2], 32)


def used(batch: int, cols: int, device: str) -> Activations:
    """Buffers that hold what an earlier step has left."""
    acts = Activations.empty(batch, cols, device)
    for part in acts:
        part.fill_(7)
    return acts


def test_dot_of_four_bytes(device: str) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(-128, 128, (2, 64, 4), dtype=np.int8)
    a[:2], b[:2] = -128, [[-128], [127]]  # the largest sums of either sign
    c = rng.integers(-(2**20), 2**20, 64, dtype=np.int32)
    words = [torch.from_numpy(x.view(np.int32).ravel()).to(device) for x in (a, b, c)]
    out = torch.zeros(64, dtype=torch.int32, device=device)
    _probe_dot[(1,)](out, *words)
    want = (a.astype(np.int32) * b).sum(-1) + c
    assert np.array_equal(out.cpu().numpy(), want)


def test_halves_are_rounded_to_even(device: str) -> None:
    x = np.linspace(-128, 127.5, 64, dtype=np.float32)
    x[:6] = [0.5, 1.5, -0.5, -2.5, 126.5, 0.49999997]
    out = torch.zeros(64, dtype=torch.int32, device=device)
    _probe_round[(1,)](out, torch.from_numpy(x).to(device))
    assert np.array_equal(out.cpu().numpy(), np.rint(x).astype(np.int32))


@few
@given(
    seed=seeds,
    batch=st.integers(1, 3),
    cols=st.integers(1, 150),
    how=st.sampled_from((*INPUTS, "edge")),
)
def test_quantizing_equals_the_oracle(
    device: str, seed: int, batch: int, cols: int, how: str
) -> None:
    rng = np.random.default_rng(seed)
    if how == "edge":  # on both sides of what counts as nothing, and near the largest float
        x = rng.choice([1e-30, -1e-30, 1.1e-30, 9e-31, 0.0], (batch, cols))
        x = (x * rng.choice([1.0, 3e68])).astype(np.float32)
    else:
        x = inputs(rng, batch, cols, how)
    acts = used(batch, cols, device)
    behind = np.full((batch, 5), 1e9, np.float32)
    quantize(acts, torch.from_numpy(np.concatenate([x, behind], axis=1)).to(device), cols)
    quants, scales, sums = oracle.quantize_activations(x)
    assert np.array_equal(bytes_of(acts), quants)
    assert np.array_equal(acts.scales.cpu().numpy(), scales)
    assert np.array_equal(acts.sums.cpu().numpy(), sums)


def test_many_groups_are_quantized_by_several_programs(device: str) -> None:
    x = inputs(np.random.default_rng(2), 2, 32 * 33 + 1, "usual")
    acts = used(2, x.shape[1], device)
    quantize(acts, torch.from_numpy(x).to(device), x.shape[1])
    quants, scales, _ = oracle.quantize_activations(x)
    assert np.array_equal(bytes_of(acts), quants)
    assert np.array_equal(acts.scales.cpu().numpy(), scales)


@few
@given(
    seed=seeds,
    batch=st.integers(1, 3),
    cols=st.integers(1, 150),
    size=st.sampled_from([0.0, 1e-12, 1.0, 1e12]),
)
def test_norm_equals_the_oracle(device: str, seed: int, batch: int, cols: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    x = (size * rng.standard_normal((batch, cols + 3))).astype(np.float32)
    weight = rng.standard_normal(cols).astype(np.float32)
    want = oracle.rms_norm(x[:, :cols], weight, 1e-6)
    on_device = torch.from_numpy(x).to(device), torch.from_numpy(weight).to(device)

    acts = used(batch, cols, device)
    norm_quantize(acts, *on_device, 1e-6)
    quants, scales, _ = oracle.quantize_activations(want)
    apart = np.abs(bytes_of(acts).astype(int) - quants)
    assert apart.max() <= 1
    assert np.mean(apart) < 0.02, "only what lies near a half may be rounded otherwise"
    np.testing.assert_allclose(acts.scales.cpu().numpy(), scales, rtol=3e-6)
    assert np.array_equal(acts.sums.cpu().numpy(), bytes_of(acts).sum(-1, dtype=np.int32))

    rms_norm(on_device[0], *on_device, 1e-6)
    got = on_device[0].cpu().numpy()
    np.testing.assert_allclose(got[:, :cols], want, rtol=3e-6, atol=1e-30)
    assert np.array_equal(got[:, cols:], x[:, cols:]), "what is behind the columns"
