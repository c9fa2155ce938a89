"""The arithmetic of the kernels in plain torch operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..config import ModelConfig
from ..kernels.gpu.matrix import DeviceMatrix
from ..quant import GROUP, TILE
from ..quant.layout import ZERO_QUANT

Tensor = torch.Tensor

_SLICE = 1 << 24
"""Weights that are dequantized at a time, 64 MiB of float32."""
_SMALLEST_PEAK = 1e-30


def dequantize(matrix: DeviceMatrix, first: int = 0, last: int | None = None) -> Tensor:
    """Tiles [first, last) of a matrix as float32 [16 * tiles, 32 * groups]."""
    tiles = matrix.tiles[first:last]
    count, groups, _ = tiles.shape
    minima = matrix.kind == "int4m"
    scales = tiles[:, :, :32].contiguous().view(torch.float16)
    chunks = tiles[:, :, 64 if minima else 32 :].reshape(count, groups, -1, TILE, 4)
    if matrix.kind == "int8":
        quants = chunks.permute(0, 3, 1, 2, 4)
    else:
        quants = torch.stack((chunks & 15, chunks >> 4), 3).permute(0, 4, 1, 2, 3, 5)
    values = quants.reshape(count, TILE, groups, GROUP).to(torch.float32)
    if not minima:
        values = values - ZERO_QUANT[matrix.kind]
    values = values * _by_rows(scales)
    if minima:
        values = values + _by_rows(tiles[:, :, 32:64].contiguous().view(torch.float16))
    return values.reshape(count * TILE, groups * GROUP)


def _by_rows(halves: Tensor) -> Tensor:
    """float16 [tiles, groups, 16] -> float32 [tiles, 16, groups, 1]."""
    return halves.to(torch.float32).transpose(1, 2).unsqueeze(-1)


def rounded(x: Tensor) -> Tensor:
    """What is left of float32 [..., n] after rounding to int8, filled up to groups of 32."""
    padded = F.pad(x, (0, -x.shape[-1] % GROUP))
    grouped = padded.reshape(*padded.shape[:-1], -1, GROUP)
    peak = grouped.abs().amax(-1, keepdim=True)
    peak = torch.where(peak > _SMALLEST_PEAK, peak, 0.0)
    inverse = torch.where(peak > 0, 127.0 / peak, 0.0)
    return (torch.round(grouped * inverse) * (peak / 127.0)).flatten(-2)


def linear(matrix: DeviceMatrix, x: Tensor) -> Tensor:
    """float32 [n, cols] times the transposed matrix, rounded on the way -> [n, rows]."""
    tiles, groups, _ = matrix.tiles.shape
    step, inputs = max(1, _SLICE // (TILE * GROUP * groups)), rounded(x)
    parts = [inputs @ dequantize(matrix, first, first + step).T for first in range(0, tiles, step)]
    return torch.cat(parts, -1)[:, : matrix.rows]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` along the last axis."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def hidden_of(config: ModelConfig, gate: Tensor, up: Tensor) -> Tensor:
    """`act(gate) * up`, the input of the down projection."""
    match config.activation:
        case "silu":
            return F.silu(gate) * up
        case "gelu":
            return F.gelu(gate) * up
        case "gelu_tanh":
            return F.gelu(gate, approximate="tanh") * up
        case "relu":
            return F.relu(gate) * up
        case "fatrelu":
            return torch.where(gate > config.activation_param, gate, 0.0) * up
        case "relu2":
            return F.relu(gate).square() * up
        case "drelu":
            return F.relu(gate) * F.relu(up)
        case other:
            raise ValueError(f"no activation {other!r}")
