"""The keys and values of the tokens read so far, in the memory of a device."""

from __future__ import annotations

import torch

from ..config import ModelConfig
from ..kv_cache import KVCache


class GpuCache(KVCache):
    """What `KVCache` is to the CPU: the same tokens and knowledge of neurons, another memory.

    `captured` is known only where `heat` is collected.

    `device_keys` and `device_values` are float16 [layer, kv_head, capacity, head_dim]. All of it is
    taken at once, since a captured step keeps the addresses.
    """

    def __init__(self, config: ModelConfig, capacity: int, device: torch.device) -> None:
        # the base would map memory of the host; only what callers see of a cache is the same
        self._begin(config, capacity, capacity)
        shape = (config.n_layers, config.kv_heads, capacity, config.head_dim)
        self.device_keys = torch.zeros(shape, dtype=torch.float16, device=device)
        self.device_values = torch.zeros_like(self.device_keys)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions that are filled."""
        full = self.device_keys.nbytes + self.device_values.nbytes
        return full * self.length // self.room
