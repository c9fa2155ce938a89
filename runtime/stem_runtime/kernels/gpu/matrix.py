"""A packed matrix in the memory of a device; the one module here that does without Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from ...quant import Kind, PackedMatrix


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """A packed matrix of (rows, cols) in the memory of a device.

    `tiles` is uint8 [tiles, groups, GROUP_BYTES[kind]], contiguous.
    """

    tiles: torch.Tensor
    rows: int
    cols: int
    kind: Kind

    @classmethod
    def of(cls, matrix: PackedMatrix, device: torch.device | str) -> Self:
        """Upload `matrix`."""
        tiles = torch.from_numpy(matrix.joined()).to(device)
        return cls(tiles, matrix.rows, matrix.cols, matrix.kind)

    @property
    def words(self) -> torch.Tensor:
        """The same bytes as int32 [tiles, groups, words]; see `layout.group_words`."""
        return self.tiles.view(torch.int32)

    @property
    def groups(self) -> int:
        """Groups of 32 columns in a row, the last one perhaps partly padding."""
        return self.tiles.shape[1]
