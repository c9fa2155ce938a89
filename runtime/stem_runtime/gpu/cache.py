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

    Of layers from `first` on: `layer` counts from there.

    `keys` and `values` are float16 [layer, cache, kv_head, capacity, head_dim]. All of it is taken
    at once, since a captured step keeps the addresses.
    """

    def __init__(
        self,
        config: ModelConfig,
        count: int,
        capacity: int,
        device: torch.device,
        first: int = 0,
    ) -> None:
        self.capacity, self.first = capacity, first
        shape = (config.n_layers - first, count, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=torch.float16, device=device)
        self.values = torch.zeros_like(self.keys)


class GpuCache(KVCache):
    """What `KVCache` is to the CPU: the same tokens and knowledge of neurons, another memory.

    `captured` is known only where `heat` is collected.

    It is number `slot` of its `family`, of whose memory `device_keys` and `device_values`, float16
    [layer, kv_head, capacity, head_dim], are views. `sampler` chooses the tokens of its text, None
    while nobody asks. `host` has the keys and values of layers that run on the CPU.
    """

    def __init__(self, config: ModelConfig, family: CacheFamily, slot: int) -> None:
        # the base would map memory of the host; only what callers see of a cache is the same
        self._begin(config, family.capacity, family.capacity)
        self.sampler: DeviceSampler | None = None
        self._take(family, slot, None)

    def _take(self, family: CacheFamily, slot: int, host: KVCache | None) -> None:
        self.family, self.slot, self.host = family, slot, host
        self.device_keys = family.keys[:, slot]
        self.device_values = family.values[:, slot]

    @property
    def first(self) -> int:
        """The first layer whose keys and values are on the device."""
        return self.family.first

    def move_to(self, other: GpuCache) -> None:
        """Take over the memory of another cache, which has read the same tokens."""
        self._take(other.family, other.slot, other.host)
        self.rest = other.rest

    @property
    def nbytes(self) -> int:
        """Bytes of the positions that are filled."""
        full = self.device_keys.nbytes + self.device_values.nbytes
        held = 0 if self.host is None else self.host.nbytes
        return full * self.length // self.room + held


def new_caches(
    config: ModelConfig, count: int, capacity: int, device: torch.device, first: int = 0
) -> tuple[GpuCache, ...]:
    """A family of caches for the layers from `first` on."""
    family = CacheFamily(config, count, capacity, device, first)
    return tuple(GpuCache(config, family, slot) for slot in range(count))
