"""Where things lie on the device: packed matrices, quantized activations, split sums.

A packed matrix keeps its bytes as they are on disk (see `stem_runtime.quant.layout`); the kernels
read them as int32 words. A (tile, group) is 8 words of scales, for int4m 8 words of minima, then
the quants: word 16c + r has four bytes (eight nibbles) of row r. Every (tile, group) begins at a
multiple of 16 bytes, so four neighbouring words are one load of 128 bits.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
import triton

from ...quant import groups_of
from ...quant.layout import GROUP
from .matrix import DeviceMatrix as DeviceMatrix


@triton.constexpr_function
def chunks_of(kind: str) -> int:
    """Chunks of 16 words in one (tile, group), which are the last of its words."""
    return 8 if kind == "int8" else 4


@triton.constexpr_function
def head_words(kind: str) -> int:
    """Words of scales and minima, with which a (tile, group) begins."""
    return 16 if kind == "int4m" else 8


@triton.constexpr_function
def group_words(kind: str) -> int:
    """int32 words of one (tile, group)."""
    return head_words(kind) + 16 * chunks_of(kind)


class Activations(NamedTuple):
    """Static buffers of activations rounded to int8 in groups of 32, for b sequences.

    Word j of a group has its columns 4j to 4j+3, the first in the lowest byte. Groups that fill up
    the last 32 columns are zero.
    """

    words: torch.Tensor
    """int32 [b, groups, 8]"""
    scales: torch.Tensor
    """float32 [b, groups]; a value is about scale * quant"""
    sums: torch.Tensor
    """int32 [b, groups]: the sum of each group's quants"""

    @classmethod
    def empty(cls, batch: int, cols: int, device: torch.device | str) -> Self:
        """Buffers for `batch` vectors of `cols` columns, all zero."""
        groups = groups_of(cols)
        return cls(
            torch.zeros((batch, groups, GROUP // 4), dtype=torch.int32, device=device),
            torch.zeros((batch, groups), dtype=torch.float32, device=device),
            torch.zeros((batch, groups), dtype=torch.int32, device=device),
        )
