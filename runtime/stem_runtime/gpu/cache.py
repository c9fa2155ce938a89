"""The keys and values of the tokens read so far, in the memory of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..config import ModelConfig
from ..kv_cache import KVCache

if TYPE_CHECKING:
    from ..kernels.gpu.sample import DeviceSampler


class CacheFamily:
    """The memory of `count` caches for `capacity` tokens each, which steps may read together.

    `keys` and `values` are float16 [layer, cache, kv_head, capacity, head_dim]. All of it is taken
    at once, since a captured step keeps the addresses.
    """

    def __init__(
        self, config: ModelConfig, count: int, capacity: int, device: torch.device
    ) -> None:
        self.capacity = capacity
        shape = (config.n_layers, count, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=torch.float16, device=device)
        self.values = torch.zeros_like(self.keys)


class GpuCache(KVCache):
    """What `KVCache` is to the CPU: the same tokens and knowledge of neurons, another memory.

    `captured` is known only where `heat` is collected.

    It is number `slot` of its `family`, of whose memory `device_keys` and `device_values`, float16
    [layer, kv_head, capacity, head_dim], are views. `sampler` chooses the tokens of its text, None
    while nobody asks.
    """

    def __init__(self, config: ModelConfig, family: CacheFamily, slot: int) -> None:
        # the base would map memory of the host; only what callers see of a cache is the same
        self._begin(config, family.capacity, family.capacity)
        self.family, self.slot = family, slot
        self.device_keys = family.keys[:, slot]
        self.device_values = family.values[:, slot]
        self.sampler: DeviceSampler | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the positions that are filled."""
        full = self.device_keys.nbytes + self.device_values.nbytes
        return full * self.length // self.room


def new_caches(
    config: ModelConfig, count: int, capacity: int, device: torch.device
) -> tuple[GpuCache, ...]:
    """A family of caches."""
    family = CacheFamily(config, count, capacity, device)
    return tuple(GpuCache(config, family, slot) for slot in range(count))
