"""What the kernels of sparse FFNs read: neurons in device memory, their tests, what they report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ...quant import GROUP, Kind, PackedMatrix, groups_of
from ...sparsity.neurons import LayerNeurons, bits_of, mask_of, record_sizes
from .compact import COUNTERS


@dataclass(frozen=True, slots=True)
class DeviceNeurons:
    """One layer's FFN neuron by neuron in the memory of a device; see `sparsity.neurons`.

    `records` int32 [ffn, words] and `shared` float16 [groups, values] are the same bytes as there.
    Rows of up begin `up` words and columns of down `down` words into a record, rows of gate with
    it; `parts` says what is there. `kinds` are those of gate, up and down. `weights` and `norms`
    float32 [32 * groups], `core` and `alive` masks int32 [groups].

    Where only some neurons lie on the device `records` are theirs, one after the other, `held` is
    their masks int32 [groups], `starts` int32 [groups] the number of each group's first record, and
    no other is `alive`.
    """

    records: torch.Tensor
    shared: torch.Tensor
    up: int
    down: int
    parts: str
    kinds: tuple[Kind, Kind, Kind]
    d_model: int
    weights: torch.Tensor
    norms: torch.Tensor
    core: torch.Tensor
    alive: torch.Tensor
    starts: torch.Tensor | None = None
    held: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        layer: LayerNeurons,
        gate: PackedMatrix,
        up: PackedMatrix,
        down: PackedMatrix,
        device: torch.device | str,
        resident: NDArray[np.uint32] | None = None,
    ) -> Self:
        """Upload a layer's neurons, or those in the masks `resident` [groups]; the matrices are
        those that it was made from.
        """
        stored = layer.stored
        gate_bytes, up_bytes, _ = record_sizes(gate, up, down, stored.parts)

        def padded(values: NDArray[np.float32]) -> torch.Tensor:
            return _upload(np.pad(values, (0, -len(values) % GROUP)), device)

        records, alive, starts, held = stored.records, layer.alive, None, None
        if resident is not None:
            here = bits_of(resident, gate.rows)
            masks = mask_of(here)
            records, alive = records[here], alive & masks
            counts = np.bitwise_count(masks).astype(np.int32)
            starts = _upload(np.cumsum(counts, dtype=np.int32) - counts, device)
            held = _upload(masks.view(np.int32), device)
        return cls(
            _upload(records.view(np.int32), device),
            _upload(stored.shared.view(np.float16), device),
            gate_bytes // 4,
            (gate_bytes + up_bytes) // 4,
            stored.parts,
            (gate.kind, up.kind, down.kind),
            down.rows,
            padded(layer.weights),
            padded(layer.norms),
            _upload(layer.core.view(np.int32), device),
            _upload(alive.view(np.int32), device),
            starts,
            held,
        )


class Attention(NamedTuple):
    """How the attention of b tokens moves their cut-offs: less is left out where it is sharp."""

    sharpness: torch.Tensor
    """float32 [b, n_heads]: the largest weight of each head; their mean is how sharp it is"""
    rule: torch.Tensor
    """float32 [2]: a plan's strength by the spread of the layer's sharpness, and its mean"""
    moved: torch.Tensor
    """float32 [b, 2]: receives the cut-offs that hold, from the first launch for the next ones"""


class FfnTests(NamedTuple):
    """What the neurons of one layer must pass, for b sequences; read from device memory, so that
    a plan can change without capturing a step anew.
    """

    cutoffs: torch.Tensor
    """float32 [b, 2]: of potentials and of contributions"""
    core: torch.Tensor
    """int32 [groups]: who passes always; all zero for a plan without a core"""
    bounds: torch.Tensor | None = None
    """int32 [b, 2]: the least and the most that may pass the gate test, or None"""
    attention: Attention | None = None
    """what both cut-offs are multiplied by, or None for 1"""

    @property
    def settled(self) -> torch.Tensor:
        """The cut-offs that hold once the first launch is done, float32 [b, 2]."""
        return self.cutoffs if self.attention is None else self.attention.moved

    @classmethod
    def empty(cls, batch: int, ffn: int, device: torch.device | str, *, bounds: bool) -> Self:
        """Tests that everyone passes who adds anything."""
        limits = torch.tensor([[0, ffn]] * batch, dtype=torch.int32, device=device)
        return cls(
            torch.zeros((batch, 2), dtype=torch.float32, device=device),
            torch.zeros(groups_of(ffn), dtype=torch.int32, device=device),
            limits if bounds else None,
        )


class Followers(NamedTuple):
    """Whom neurons that are added make candidates of the next layer, for b sequences."""

    names: torch.Tensor
    """int32 [32 * groups, k]: neurons of the next layer that each of this one names, -1 for none"""
    implied: torch.Tensor
    """int32 [b, groups]: masks of the next layer's, to which those that are named are added"""


class Tally(NamedTuple):
    """What a layer reports of b sequences. Everything is added to what is there."""

    counts: torch.Tensor
    """int32 [b, COUNTERS]: how many neurons, in the order of `neuron_tables.COUNTS`"""
    captured: torch.Tensor
    """float32 [b]: the contributions of those that were added"""
    heat: torch.Tensor
    """float32 [b, 32 * groups]: the contribution of each that passed the gate test"""

    @classmethod
    def empty(cls, batch: int, ffn: int, device: torch.device | str) -> Self:
        heat = torch.zeros((batch, GROUP * groups_of(ffn)), dtype=torch.float32, device=device)
        counts = torch.zeros((batch, COUNTERS), dtype=torch.int32, device=device)
        return cls(counts, torch.zeros(batch, dtype=torch.float32, device=device), heat)


def _upload(array: NDArray[np.generic], device: torch.device | str) -> torch.Tensor:
    # what is mapped from a profile cannot be written to, which torch warns of
    return torch.from_numpy(np.array(array)).to(device)
