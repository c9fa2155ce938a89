"""Memory that a step of decoding works in, which keeps its addresses from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ..config import ModelConfig
from ..kernels.gpu.attention import Partials, choose_splits
from ..kernels.gpu.layout import Activations
from ..kernels.gpu.matvec import SplitSums
from ..kernels.gpu.rope import rope_table
from .cache import CacheFamily, GpuCache

Tensor = torch.Tensor


class Buffers:
    """All that a step of one token for each of `batch` sequences writes to, apart from caches.

    `x` float32 [batch, d_model] is the residual stream, `y` what a sublayer adds to it where that
    is normed first. `given` int32 [3, batch] are the `tokens` that a step reads, their `positions`
    and the `slots` of their caches. A step that chooses tokens leaves in it what the next one
    needs.
    """

    def __init__(
        self, config: ModelConfig, batch: int, split: SplitSums, device: torch.device
    ) -> None:
        attended = config.n_heads * config.head_dim

        def floats(count: int) -> Tensor:
            return torch.zeros((batch, count), dtype=torch.float32, device=device)

        self.batch = batch
        self.given = torch.zeros((3, batch), dtype=torch.int32, device=device)
        self.tokens, self.positions, self.slots = self.given
        self.x, self.y = floats(config.d_model), floats(config.d_model)
        self.qkv = floats(attended + 2 * config.kv_heads * config.head_dim)
        self.attended = floats(attended)
        self.logits = floats(config.vocab_size)
        self.inputs = Activations.empty(batch, config.d_model, device)
        self.joined = Activations.empty(batch, attended, device)
        self.hidden = Activations.empty(batch, config.ffn_dim, device)
        self.split = split
        self._known: list[list[int]] | None = None

    def give(self, caches: Sequence[GpuCache], tokens: Sequence[int]) -> None:
        """Let the next step read one token for each cache; nothing is copied that is there."""
        wanted = [list(tokens), [c.length for c in caches], [c.slot for c in caches]]
        if wanted != self._known:
            pinned = self.given.device.type == "cuda"
            rows = torch.tensor(wanted, dtype=torch.int32, pin_memory=pinned)
            # pinned memory is not used again before the copy was made
            self.given.copy_(rows, non_blocking=True)
        self._known = None

    def follows(self, token: int, position: int, slot: int) -> None:
        """Know what a step of one sequence that chose a token has left in `given`."""
        self._known = [[token], [position], [slot]]


@dataclass(frozen=True, slots=True)
class Place:
    """What belongs to a family of caches: its memory, its angles, its recorded steps.

    `angles` are for layers that see everything, and for those with a window. `partials` are where
    queries are split, by the number of sequences.
    """

    keys: Tensor
    values: Tensor
    angles: dict[bool, Tensor]
    partials: dict[int, Partials] = field(default_factory=dict)
    steps: dict[object, Callable[[], None]] = field(default_factory=dict)

    @classmethod
    def of(cls, family: CacheFamily, config: ModelConfig) -> Place:
        device, tables = family.keys.device, dict[bool, Tensor]()
        kinds = {False: config.rope_inv_freq, True: config.rope_local_inv_freq}
        for local, frequencies in kinds.items():
            if frequencies:
                tables[local] = rope_table(frequencies, family.capacity, device)
        return cls(family.keys, family.values, tables)

    def reserve(self, batch: int, config: ModelConfig) -> None:
        """Take room for the parts of `batch` tokens' attention, unless it is there."""
        if batch not in self.partials:
            device, sizes = self.keys.device, (config.n_heads, config.head_dim)
            splits = choose_splits(
                batch, config.kv_heads, config.head_dim, self.keys.shape[3], _processors(device)
            )
            self.partials[batch] = Partials.empty(batch, *sizes, splits, device)


def _processors(device: torch.device) -> int:
    """Streaming multiprocessors of a card."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
