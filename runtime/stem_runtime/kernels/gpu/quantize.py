"""Rounding activations to int8 in groups of 32, alone or as the end of an RMS norm.

The same numbers as `oracle.quantize_activations`: scale max|x| / 127, quants x * (127 / max|x|) in
float32, rounded half to even.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl

from .dot import round_even
from .layout import Activations

_GROUPS = 32
"""Groups of one program of `quantize`."""


def quantize(acts: Activations, x: torch.Tensor, cols: int) -> None:
    """Round the first `cols` columns of `x`, float32 [b, at least cols], into `acts`."""
    batch, groups = acts.scales.shape
    _quantize[(triton.cdiv(groups, _GROUPS), batch)](
        *acts, x, x.stride(0), cols, groups, GROUPS=_GROUPS
    )


def norm_quantize(acts: Activations, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """Round `x / sqrt(mean(x^2) + eps) * weight` into `acts`.

    `x` float32 [b, at least cols], `weight` float32 [cols].
    """
    batch, groups = acts.scales.shape
    padded = triton.next_power_of_2(groups)
    _norm_quantize[(batch,)](
        *acts,
        x,
        x.stride(0),
        weight,
        eps,
        weight.shape[0],
        groups,
        GROUPS=padded,
        num_warps=min(16, max(4, padded // 16)),
    )


def rms_norm(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """`x / sqrt(mean(x^2) + eps) * weight` into `out`, which may be `x`.

    `out` and `x` float32 [b, at least cols], `weight` float32 [cols].
    """
    cols = weight.shape[0]
    _rms_norm[(x.shape[0],)](
        out,
        out.stride(0),
        x,
        x.stride(0),
        weight,
        eps,
        cols,
        COLS=triton.next_power_of_2(cols),
        num_warps=8,
    )


@triton.jit
def store_quantized(words, scales, sums, x, group, groups, GROUPS: tl.constexpr):
    """Round `x` float32 [GROUPS, 8, 4] and store it as the groups from `group` on.

    `words`, `scales` and `sums` point to the first of one sequence's `groups` groups.
    """
    peak = tl.max(tl.max(tl.abs(x), axis=2), axis=1)
    peak = tl.where(peak > 1e-30, peak, 0.0)
    inverse = tl.where(peak > 0.0, tl.div_rn(127.0, tl.where(peak > 0.0, peak, 1.0)), 0.0)
    quants = round_even(x * inverse[:, None, None])
    at = group + tl.arange(0, GROUPS)
    valid = at < groups
    shift = 8 * tl.arange(0, 4)
    packed = tl.sum((quants & 255) << shift[None, None, :], axis=2)
    word = tl.arange(0, 8)
    tl.store(words + at[:, None] * 8 + word[None, :], packed, mask=valid[:, None])
    tl.store(scales + at, tl.div_rn(peak, 127.0), mask=valid)
    tl.store(sums + at, tl.sum(tl.sum(quants, axis=2), axis=1), mask=valid)


@triton.jit
def columns_of_groups(group, GROUPS: tl.constexpr):
    """The columns [GROUPS, 8, 4] of the groups from `group` on."""
    at = group + tl.arange(0, GROUPS)
    word = tl.arange(0, 8)
    byte = tl.arange(0, 4)
    return at[:, None, None] * 32 + word[None, :, None] * 4 + byte[None, None, :]


@triton.jit
def _quantize(words, scales, sums, x, x_stride, cols, groups, GROUPS: tl.constexpr):
    group = tl.program_id(0) * GROUPS
    row = tl.program_id(1)
    column = columns_of_groups(group, GROUPS)
    values = tl.load(x + row * x_stride + column, mask=column < cols, other=0.0)
    store_quantized(
        words + row * groups * 8,
        scales + row * groups,
        sums + row * groups,
        values,
        group,
        groups,
        GROUPS,
    )


@triton.jit
def _norm_quantize(
    words, scales, sums, x, x_stride, weight, eps, cols, groups, GROUPS: tl.constexpr
):
    row = tl.program_id(0)
    column = columns_of_groups(0, GROUPS)
    values = tl.load(x + row * x_stride + column, mask=column < cols, other=0.0)
    factor = tl.load(weight + column, mask=column < cols, other=0.0)
    square = tl.sum(tl.sum(tl.sum(values * values, axis=2), axis=1), axis=0)
    normed = values * (1.0 / tl.sqrt_rn(square / cols + eps)) * factor
    store_quantized(
        words + row * groups * 8,
        scales + row * groups,
        sums + row * groups,
        normed,
        0,
        groups,
        GROUPS,
    )


@triton.jit
def _rms_norm(out, out_stride, x, x_stride, weight, eps, cols, COLS: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, COLS)
    values = tl.load(x + row * x_stride + column, mask=column < cols, other=0.0)
    factor = tl.load(weight + column, mask=column < cols, other=0.0)
    normed = values * (1.0 / tl.sqrt_rn(tl.sum(values * values, axis=0) / cols + eps))
    tl.store(out + row * out_stride + column, normed * factor, mask=column < cols)
