"""One token of each of some sequences through the model in Triton's kernels, and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from ..formats.packed import PackedModel
from ..kernels.gpu.attention import decode_attention, prefill_attention
from ..kernels.gpu.ffn import hidden_values
from ..kernels.gpu.layout import Activations, DeviceMatrix
from ..kernels.gpu.matvec import SplitSums, embed, matvec
from ..kernels.gpu.prefill import matmul
from ..kernels.gpu.quantize import norm_quantize, quantize, rms_norm
from ..kernels.gpu.rope import rope_store
from ..kernels.gpu.sample import DeviceSampler
from ..neuron_tables import COUNTS
from ..sparsity.neurons import Neurons
from ..sparsity.plan import FfnPlan
from .buffers import Buffers, Place
from .cache import CacheFamily, GpuCache
from .graph import captured
from .host_layers import HostLayers
from .sparse import SparseFfns
from .torch_step import TorchStep
from .weights import Layer

_FEW = 8
"""Tokens that are multiplied as vectors, with rounded activations; more are a matrix."""

Tensor = torch.Tensor


class TritonStep(TorchStep):
    """A step of decoding is one CUDA graph over static buffers; prompts are read launch by launch.

    A graph is good for all caches of a family, for a number of them, and for what steps launch.
    """

    def __init__(
        self,
        model: PackedModel,
        neurons: Neurons | None,
        device: torch.device,
        host: HostLayers | None = None,
        resident: NDArray[np.uint32] | None = None,
    ) -> None:
        """With the masks `resident` FFNs are split; see `SplitStep`."""
        super().__init__(model, neurons, device, host, lent=resident is not None)
        self._split = SplitSums.empty(_FEW, device)
        self._buffers: dict[int, Buffers] = {}
        self._ffns: dict[int, SparseFfns] = {}
        if neurons is not None:
            self._ffns[1] = SparseFfns(model, neurons, device, resident)
        self._counts = np.zeros((model.config.n_layers, len(COUNTS)), np.int64)
        self._counted: SparseFfns | None = None
        self._places: WeakKeyDictionary[CacheFamily, Place] = WeakKeyDictionary()

    def decode(self, cache: GpuCache, token: int, *, sparse: bool = False) -> Tensor:
        """The logits after one token, float32 [vocab], which the next step overwrites."""
        return self._step((cache,), (token,), sparse).logits[0]

    def decode_batch(
        self, caches: Sequence[GpuCache], tokens: Sequence[int], *, sparse: bool = False
    ) -> Tensor:
        """The logits after one token of each of some caches of a family, float32 [n, vocab]."""
        alike = self._alike(caches) if sparse else [range(len(caches))]
        if len(alike) == 1:
            return self._step(caches, tokens, sparse).logits
        out = torch.empty((len(caches), self._config.vocab_size), device=self._weights.device)
        counts = np.zeros_like(self._counts)
        for rows in alike:
            step = self._step([caches[row] for row in rows], [tokens[row] for row in rows], sparse)
            for row, logits in zip(rows, step.logits, strict=True):
                out[row] = logits
            counts += self.counts
        self._counts, self._counted = counts, None
        return out

    def follow(self, cache: GpuCache, token: int, *, sparse: bool = False) -> tuple[int, int]:
        sampler = cache.sampler
        assert sampler is not None
        buffers = self._step((cache,), (token,), sparse, sampler)
        chosen, status = sampler.read()
        buffers.follows(chosen, cache.length + 1, cache.slot)
        return chosen, status

    def set_plan(self, plan: FfnPlan | None) -> None:
        super().set_plan(plan)
        for ffns in self._ffns.values():
            ffns.set_plan(plan)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last sparse step, int64 [n_layers, 8]: the columns of `neuron_tables.COUNTS`,
        summed over its sequences."""
        return self._counts if self._counted is None else self._counted.counts

    @property
    def sharpness(self) -> NDArray[np.float32]:
        """How sharp the attention of the last token decoded by itself was, float32 [n_layers]."""
        return self._ffns[1].mean_sharpness

    def _alike(self, caches: Sequence[GpuCache]) -> list[list[int]]:
        """Which of the caches go together: those whose steps leave out neurons in one way."""
        groups: dict[object, list[int]] = {}
        for row, cache in enumerate(caches):
            groups.setdefault(self._ffns[1].structure(cache), []).append(row)
        return list(groups.values())

    def _step(
        self,
        caches: Sequence[GpuCache],
        tokens: Sequence[int],
        sparse: bool,
        sampler: DeviceSampler | None = None,
    ) -> Buffers:
        """Run the step of some caches of a family; `logits` of what it returns are the results."""
        batch, place = len(caches), self._place(caches[0].family)
        place.reserve(batch, self._config)
        buffers = self._buffers_of(batch)
        ffns = self._ffns_of(batch) if sparse else None
        structure = None if ffns is None else ffns.begin(caches)
        key = batch, structure, None if sampler is None else (caches[0].slot, sampler.variant)
        buffers.give(caches, tokens)
        if key not in place.steps:
            # neither cache nor family: what a key of `_places` has must not keep it
            left_out = None if structure is None else ffns
            changed = () if sampler is None else (buffers.given, *sampler.changing)
            place.steps[key] = captured(
                lambda: self._run(buffers, place, left_out, sampler),
                self._weights.device,
                changed,
            )
        if self._host is not None:
            for row, cache, token in zip(buffers.x, caches, tokens, strict=True):
                row.copy_(self._begin(cache, (token,), sparse)[0])
        place.steps[key]()
        self._counted = ffns or self._counted
        if ffns is not None and any(cache.heat is not None for cache in caches):
            # what nobody collects stays on the device: fetching it waits for the step
            for cache, captured_, heat in zip(caches, ffns.captured, ffns.heat, strict=True):
                if cache.heat is not None:
                    self._note(cache, captured_, heat)
        return buffers

    def _place(self, family: CacheFamily) -> Place:
        if family not in self._places:
            self._places[family] = Place.of(family, self._config)
        return self._places[family]

    def _buffers_of(self, batch: int) -> Buffers:
        if batch not in self._buffers:
            device = self._weights.device
            with torch.inference_mode(False):
                self._buffers[batch] = Buffers(self._config, batch, self._split, device)
        return self._buffers[batch]

    def _ffns_of(self, batch: int) -> SparseFfns | None:
        if self._ffns and batch not in self._ffns:
            # plans are set outside of inference as well
            with torch.inference_mode(False):
                self._ffns[batch] = self._ffns[1].of(batch)
        return self._ffns.get(batch)

    def _run(
        self, b: Buffers, place: Place, ffns: SparseFfns | None, sampler: DeviceSampler | None
    ) -> None:
        """All launches of a step, with `ffns` for the layers that leave neurons out."""
        config, weights = self._config, self._weights
        known = self._ffns_of(b.batch)
        if ffns is not None:
            ffns.clear()
        if weights.embed is not None:
            embed(b.x, weights.embed, b.tokens, config.embed_scale)
        for index, layer in weights.layers.items():
            sharpness = None if known is None else known.sharpness[index]
            self._attention(b, layer, index, place, sharpness)
            norm_quantize(b.inputs, b.x, layer.vectors["ffn_norm"], config.norm_eps)
            post_norm = layer.vectors.get("ffn_post_norm")
            if ffns is not None and ffns.runs(index):
                ffns.add(index, layer, b.y, b.inputs, b.hidden, b.split)
                self._add_y(b, post_norm)
                continue
            rule = config.activation, config.activation_param
            hidden_values(b.hidden, b.inputs, layer.gate, layer.up, *rule)
            self._add_product(b, layer.down, b.hidden, post_norm)
        self._choose(b, sampler)

    def _choose(self, b: Buffers, sampler: DeviceSampler | None) -> None:
        """The head, and the token that is chosen by it."""
        norm_quantize(b.inputs, b.x, self._weights.norm, self._config.norm_eps)
        matvec(b.logits, self._weights.head, *b.inputs, split=b.split)
        if sampler is not None:
            sampler.sample(b.logits, b.given)

    def _attention(
        self, b: Buffers, layer: Layer, index: int, place: Place, sharpness: Tensor | None
    ) -> None:
        """Attention of one token per sequence, added to the residual stream."""
        config, vectors = self._config, layer.vectors
        norm_quantize(b.inputs, b.x, vectors["attn_norm"], config.norm_eps)
        first = 0
        for matrix in layer.qkv:
            rows = slice(first, first + matrix.rows)
            bias = None if layer.qkv_bias is None else layer.qkv_bias[rows]
            matvec(b.qkv[:, rows], matrix, *b.inputs, bias=bias, split=b.split)
            first += matrix.rows
        own = place.keys[index - self._first], place.values[index - self._first]
        self._store(layer, *own, place, b.qkv, b.positions, b.slots)
        decode_attention(
            b.attended,
            b.qkv[:, : b.attended.shape[1]],
            *own,
            b.positions,
            place.partials[b.batch],
            scale=config.attn_scale,
            window=layer.window,
            slots=b.slots,
            sharpness=sharpness,
        )
        quantize(b.joined, b.attended, b.attended.shape[1])
        self._add_product(b, layer.o, b.joined, vectors.get("attn_post_norm"))

    def _add_product(
        self, b: Buffers, matrix: DeviceMatrix, inputs: Activations, post_norm: Tensor | None
    ) -> None:
        """x += residual_scale * (matrix @ inputs), normed in between where the model does so."""
        if post_norm is None:
            scale = self._config.residual_scale
            matvec(b.x, matrix, *inputs, add=b.x, scale=scale, split=b.split)
        else:
            matvec(b.y, matrix, *inputs, split=b.split)
            self._add_y(b, post_norm)

    def _add_y(self, b: Buffers, post_norm: Tensor | None) -> None:
        if post_norm is not None:
            rms_norm(b.y, b.y, post_norm, self._config.norm_eps)
        b.x.add_(b.y, alpha=self._config.residual_scale)

    def _store(
        self,
        layer: Layer,
        keys: Tensor,
        values: Tensor,
        place: Place,
        joint: Tensor,
        positions: Tensor,
        slots: Tensor | None = None,
    ) -> None:
        """Norm and rotate q and k of `joint` float32 [n, rows of qkv]; k and v go to the cache."""
        config = self._config
        q, k = config.n_heads * config.head_dim, config.kv_heads * config.head_dim
        rope_store(
            joint[:, :q],
            joint[:, q : q + k],
            joint[:, q + k :],
            keys,
            values,
            positions,
            place.angles[layer.local],
            slots=slots,
            q_norm=layer.vectors.get("q_norm"),
            k_norm=layer.vectors.get("k_norm"),
            eps=config.norm_eps,
        )

    def _linear(self, matrix: DeviceMatrix, x: Tensor) -> Tensor:
        out = torch.empty((len(x), matrix.rows), dtype=torch.float32, device=x.device)
        if len(x) > _FEW:
            matmul(out, matrix, x.to(torch.bfloat16))
            return out
        acts = Activations.empty(len(x), matrix.cols, x.device)
        quantize(acts, x, matrix.cols)
        matvec(out, matrix, *acts, split=self._split)
        return out

    def _mix(
        self, layer: Layer, index: int, cache: GpuCache, joint: Tensor
    ) -> tuple[Tensor, Tensor]:
        config, place = self._config, self._place(cache.family)
        position = torch.full((1,), cache.length, dtype=torch.int32, device=joint.device)
        at = index - self._first
        own = cache.device_keys[at : at + 1], cache.device_values[at : at + 1]
        self._store(layer, *own, place, joint, position)
        q = joint[:, : config.n_heads * config.head_dim]
        mixed = torch.empty_like(q)
        prefill_attention(
            mixed,
            q,
            *own,
            position,
            scale=config.attn_scale,
            window=layer.window,
        )
        return mixed, torch.zeros(len(joint), device=joint.device)
