"""Products of many tokens against the plain product with the dequantized matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.kernels import oracle
from stem_runtime.kernels.gpu.layout import DeviceMatrix
from stem_runtime.kernels.gpu.prefill import matmul
from stem_runtime.quant import Kind, PackedMatrix, PlainMatrix, groups_of, pack

F64 = NDArray[np.float64]
few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ROUNDING = 2.0**-7
"""Of bfloat16 where bits are cut off, as the interpreter does it; chips round to the nearest."""


def random_matrix(rng: np.random.Generator, rows: int, cols: int, kind: Kind) -> PackedMatrix:
    shape = rows, groups_of(cols)
    quants = rng.integers(0, 256 if kind == "int8" else 16, (rows, 32 * shape[1]), dtype=np.uint8)
    scales = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)
    minima = rng.standard_normal(shape).astype(np.float16) if kind == "int4m" else None
    return pack(PlainMatrix(kind, quants, scales.astype(np.float16), minima), "", cols)


def product(device: str, matrix: PackedMatrix, x: torch.Tensor) -> F64:
    """The kernel's product; whatever lies beside the operands must not count or be overwritten."""
    wide = torch.full((len(x), matrix.cols + 5), torch.nan, dtype=torch.bfloat16)
    wide[:, : matrix.cols] = x
    out = torch.full((len(x), matrix.rows + 3), -1.0, device=device)
    matmul(
        out[:, : matrix.rows],
        DeviceMatrix.of(matrix, device),
        wide.to(device)[:, : matrix.cols],
    )
    assert (out[:, matrix.rows :] == -1.0).all()
    return out[:, : matrix.rows].cpu().double().numpy()


def check(device: str, rows: int, cols: int, count: int, kind: Kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = random_matrix(rng, rows, cols, kind)
    x = torch.from_numpy(rng.standard_normal((count, cols))).to(torch.bfloat16)
    weights, exact = oracle.dequantize(matrix).astype(np.float64), x.double().numpy()
    error = np.abs(product(device, matrix, x) - exact @ weights.T)
    # the rounding of weights, and of float32 sums
    assert (error <= (ROUNDING + cols * 2.0**-23) * (np.abs(exact) @ np.abs(weights.T))).all()


@few
@given(
    rows=st.integers(1, 100),
    cols=st.integers(1, 200),
    count=st.integers(1, 40),
    kind=st.sampled_from(("int4", "int4m", "int8")),
    seed=st.integers(0, 2**32 - 1),
)
@example(rows=33, cols=97, count=17, kind="int4", seed=0)
@example(rows=33, cols=97, count=17, kind="int4m", seed=0)
@example(rows=33, cols=97, count=17, kind="int8", seed=0)
def test_any_shape(device: str, rows: int, cols: int, count: int, kind: Kind, seed: int) -> None:
    check(device, rows, cols, count, kind, seed)


def test_more_tokens_and_rows_than_one_block_takes(device: str) -> None:
    check(device, 1600, 64, 330, "int4", 1)


@pytest.mark.parametrize("kind", ["int4", "int4m", "int8"])
def test_weights_that_bfloat16_can_hold_are_exact(device: str, kind: Kind) -> None:
    """Unit vectors read them back one by one."""
    rng = np.random.default_rng(3)
    quants = rng.integers(0, 256 if kind == "int8" else 16, (48, 64), dtype=np.uint8)
    powers = (2.0 ** rng.integers(-20, 10, (48, 2))).astype(np.float16)
    minima = powers * np.float16(-4) if kind == "int4m" else None
    matrix = pack(PlainMatrix(kind, quants, powers, minima))
    read = product(device, matrix, torch.eye(64, dtype=torch.bfloat16))
    np.testing.assert_array_equal(read.T, oracle.dequantize(matrix))
