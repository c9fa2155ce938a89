"""A step of decoding whose FFNs are split: hot neurons on the card, cold ones on the CPU.

The card attends and gives the FFN's input to the CPU; both compute their neurons at the same time,
and the card adds what comes back. What lies between is recorded as CUDA graphs. Prompts are read
with whole FFNs, which pass through the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ..formats.packed import PackedModel
from ..host_ffns import HostFfns
from ..kernels.gpu.matvec import embed
from ..kernels.gpu.quantize import norm_quantize, rms_norm
from ..kernels.gpu.sample import DeviceSampler
from ..neuron_tables import COUNTS
from ..sparsity.neurons import Neurons
from ..sparsity.plan import FfnPlan
from .buffers import Buffers, Place
from .cache import GpuCache
from .graph import captured
from .sparse import SparseFfns
from .step import TritonStep
from .torch_step import F32, Tensor
from .weights import Layer

_DENSE = COUNTS.index("dense")


class SplitStep(TritonStep):
    """`cold` has the neurons that are not in the masks `hot`, uint32 [n_layers, groups].

    Every step reads one token of one cache.
    """

    def __init__(
        self,
        model: PackedModel,
        neurons: Neurons,
        device: torch.device,
        hot: NDArray[np.uint32],
        cold: HostFfns,
    ) -> None:
        super().__init__(model, neurons, device, resident=hot)
        config, pinned = model.config, device.type == "cuda"
        self._cold = cold
        self._normed, self._added = (torch.zeros((1, config.d_model), device=device) for _ in "io")
        self._given, self._returned = (torch.zeros(config.d_model, pin_memory=pinned) for _ in "io")
        self._sharp = torch.zeros(config.n_heads, pin_memory=pinned)
        self._arrived = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._attends = False

    def decode_batch(
        self, caches: Sequence[GpuCache], tokens: Sequence[int], *, sparse: bool = False
    ) -> Tensor:
        """The logits after one token of each cache, float32 [n, vocab], one after the other."""
        rows, counts = [], np.zeros_like(self._counts)
        for cache, token in zip(caches, tokens, strict=True):
            rows.append(self.decode(cache, token, sparse=sparse).clone())
            counts += self.counts
        self._counts, self._counted = counts, None
        return torch.stack(rows)

    def set_plan(self, plan: FfnPlan | None) -> None:
        super().set_plan(plan)
        self._cold.set_plan(plan)
        self._attends = plan is not None and plan.attention > 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last sparse token, int64 [n_layers, 8]: the columns of `neuron_tables.COUNTS`."""
        if self._counted is None:
            return self._counts
        counts = self._counted.counts + self._cold.counts
        counts[:, _DENSE] = counts[:, _DENSE] > 0
        return counts

    def _step(
        self,
        caches: Sequence[GpuCache],
        tokens: Sequence[int],
        sparse: bool,
        sampler: DeviceSampler | None = None,
    ) -> Buffers:
        (cache,) = caches
        place, b, ffns = self._place(cache.family), self._buffers_of(1), self._ffns[1]
        place.reserve(1, self._config)
        structure = ffns.begin(caches, sparse=sparse)
        self._cold.begin(cache, sparse=sparse)
        key = structure, None if sampler is None else (cache.slot, sampler.variant)
        b.give(caches, tokens)
        if key not in place.steps:
            place.steps[key] = self._chain(b, place, ffns, sampler)
        place.steps[key]()
        if sparse:
            self._counted = ffns
            if cache.heat is not None:
                self._note(cache, ffns.captured[0], ffns.heat[0])
        return b

    def _note(self, cache: GpuCache, captured: F32, heat: F32) -> None:
        # the CPU has added its own heat
        super()._note(cache, captured + self._cold.captured, heat)

    def _chain(
        self, b: Buffers, place: Place, ffns: SparseFfns, sampler: DeviceSampler | None
    ) -> Callable[[], None]:
        """All of a step: what the card does between two crossings, and the crossings."""
        device, layers = self._weights.device, self._weights.layers
        last = len(layers) - 1
        changed = () if sampler is None else (b.given, *sampler.changing)

        def begin() -> None:
            assert self._weights.embed is not None
            ffns.clear()
            embed(b.x, self._weights.embed, b.tokens, self._config.embed_scale)
            self._to_ffn(b, place, ffns, 0)

        def go_on(index: int) -> None:
            b.y.add_(self._added)
            self._add_y(b, layers[index].vectors.get("ffn_post_norm"))
            if index < last:
                self._to_ffn(b, place, ffns, index + 1)
            else:
                self._choose(b, sampler)

        first = captured(begin, device)
        hot = [captured(partial(self._hot, b, ffns, *pair), device) for pair in layers.items()]
        rest = [captured(partial(go_on, i), device, changed if i == last else ()) for i in layers]

        def run() -> None:
            first()
            for index in layers:
                self._cross(index, ffns, hot[index])
                rest[index]()

        return run

    def _to_ffn(self, b: Buffers, place: Place, ffns: SparseFfns, index: int) -> None:
        """A layer up to its FFN's input."""
        layer, eps = self._weights.layers[index], self._config.norm_eps
        self._attention(b, layer, index, place, ffns.sharpness[index])
        norm_quantize(b.inputs, b.x, layer.vectors["ffn_norm"], eps)
        rms_norm(self._normed, b.x, layer.vectors["ffn_norm"], eps)

    @staticmethod
    def _hot(b: Buffers, ffns: SparseFfns, index: int, layer: Layer) -> None:
        ffns.add(index, layer, b.y, b.inputs, b.hidden, b.split)

    def _cross(self, index: int, ffns: SparseFfns, hot: Callable[[], None]) -> None:
        """What the CPU's neurons add to a layer, into `_added`, while the card computes its own."""
        waits = self._arrived is not None
        self._given.copy_(self._normed[0], non_blocking=waits)
        if self._attends:
            self._sharp.copy_(ffns.sharpness[index, 0], non_blocking=waits)
        if self._arrived is not None:
            self._arrived.record()
        hot()
        if self._arrived is not None:
            self._arrived.synchronize()
        sharpness = float(self._sharp.mean()) if self._attends else 0.0
        added = self._cold.add(index, self._given.numpy(), sharpness)
        # the card has taken what was returned before, or it would not have given this layer's input
        self._returned.copy_(torch.from_numpy(added))
        self._added[0].copy_(self._returned, non_blocking=waits)
