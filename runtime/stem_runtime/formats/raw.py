"""A tensor as it lies in a source file."""

from __future__ import annotations

from dataclasses import dataclass

from ..quant.ggml import BlockType
from ..quant.layout import U8


@dataclass(frozen=True, slots=True)
class RawTensor:
    """`data` is uint8 [rows, bytes of a row] over the mapped file, rows of the last dimension."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    data: U8
