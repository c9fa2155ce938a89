"""The keys and values of the tokens read so far, in float16."""

from __future__ import annotations

import numpy as np

from .config import ModelConfig
from .errors import UsageError

BLOCK = 16
"""Positions whose keys lie together; capacities are rounded up to it."""


class KVCache:
    """Keys float16 [layer, kv_head, capacity/16, head_pad, 16], values [..., capacity, head_pad].

    head_pad is head_dim rounded up to 16. Memory is used only as positions are filled. `tokens`
    are the ids whose keys and values are held, in order.
    """

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        self.capacity = capacity
        self.room = -(-capacity // BLOCK) * BLOCK
        head_pad = -(-config.head_dim // 16) * 16
        heads = config.n_layers * config.kv_heads
        self.keys = np.zeros((heads, self.room // BLOCK, head_pad, BLOCK), np.uint16)
        self.values = np.zeros((heads, self.room, head_pad), np.uint16)
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions that are filled."""
        full = self.keys.nbytes + self.values.nbytes
        return full * self.length // self.room

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises UsageError if there are fewer."""
        if not 0 <= length <= self.length:
            raise UsageError(f"The cache holds {self.length} tokens, not {length}.")
        del self.tokens[length:]
