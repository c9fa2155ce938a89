"""One token through the model in Triton's kernels, and prompts in blocks of many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import ModelConfig
from ..formats.packed import PackedModel
from ..kernels.gpu.attention import Partials, choose_splits, decode_attention, prefill_attention
from ..kernels.gpu.ffn import hidden_values
from ..kernels.gpu.layout import Activations, DeviceMatrix
from ..kernels.gpu.matvec import SplitSums, embed, matvec
from ..kernels.gpu.prefill import matmul
from ..kernels.gpu.quantize import norm_quantize, quantize, rms_norm
from ..kernels.gpu.rope import rope_store, rope_table
from ..sparsity.neurons import Neurons
from ..sparsity.plan import FfnPlan
from .cache import GpuCache
from .graph import captured
from .sparse import SparseFfns
from .torch_step import TorchStep
from .weights import Layer

_FEW = 8
"""Tokens that are multiplied as vectors, with rounded activations; more are a matrix."""

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """What belongs to one cache: where its queries are split, its angles, its recorded steps.

    `angles` are for layers that see everything, and for those with a window.
    """

    partials: Partials
    angles: dict[bool, Tensor]
    steps: dict[object, Callable[[], None]] = field(default_factory=dict)


class Buffers:
    """All that a step of one token writes to, apart from the cache; at the same addresses always.

    `x` float32 [1, d_model] is the residual stream, `y` what a sublayer adds to it where that is
    normed first. `token` and `position` int32 [1] are what a step reads.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        attended = config.n_heads * config.head_dim
        self.heads = attended + 2 * config.kv_heads * config.head_dim

        def floats(count: int) -> Tensor:
            return torch.zeros((1, count), dtype=torch.float32, device=device)

        self.token = torch.zeros(1, dtype=torch.int32, device=device)
        self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self.x, self.y = floats(config.d_model), floats(config.d_model)
        self.qkv, self.attended = floats(self.heads), floats(attended)
        self.logits = floats(config.vocab_size)
        self.inputs = Activations.empty(1, config.d_model, device)
        self.joined = Activations.empty(1, attended, device)
        self.hidden = Activations.empty(1, config.ffn_dim, device)
        self.split = SplitSums.empty(_FEW, device)


class TritonStep(TorchStep):
    """`decode` is one CUDA graph over static buffers; prompts are read launch by launch."""

    def __init__(self, model: PackedModel, neurons: Neurons | None, device: torch.device) -> None:
        super().__init__(model, neurons, device)
        self._buffers = Buffers(model.config, device)
        self._ffns = None if neurons is None else SparseFfns(model, neurons, device)
        self._places: WeakKeyDictionary[GpuCache, Place] = WeakKeyDictionary()

    def decode(self, cache: GpuCache, token: int, *, sparse: bool = False) -> Tensor:
        """The logits after one token, float32 [vocab], which the next step overwrites."""
        ffns = self._ffns if sparse else None
        buffers, place = self._buffers, self._place(cache)
        buffers.token.fill_(token)
        buffers.position.fill_(cache.length)
        structure = None if ffns is None else ffns.begin(cache)
        if structure not in place.steps:
            # the cache's tensors, not the cache: what a key of `_places` has must not keep it
            keys, values = cache.device_keys, cache.device_values
            left_out = None if structure is None else ffns
            place.steps[structure] = captured(
                lambda: self._run(keys, values, place, left_out), self._weights.device
            )
        place.steps[structure]()
        if ffns is not None and cache.heat is not None:
            # what nobody collects stays on the device: fetching it waits for the step
            cache.captured = ffns.captured
            cache.heat += ffns.heat
        return buffers.logits[0]

    def set_plan(self, plan: FfnPlan | None) -> None:
        super().set_plan(plan)
        if self._ffns is not None:
            self._ffns.set_plan(plan)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last sparse token, int64 [n_layers, 8]: the columns of `neuron_tables.COUNTS`."""
        assert self._ffns is not None
        return self._ffns.counts

    @property
    def sharpness(self) -> NDArray[np.float32]:
        assert self._ffns is not None
        return self._ffns.mean_sharpness

    def _place(self, cache: GpuCache) -> Place:
        if cache not in self._places:
            config, device = self._config, self._weights.device
            splits = choose_splits(
                1, config.kv_heads, config.head_dim, cache.capacity, _processors(device)
            )
            tables = {False: config.rope_inv_freq, True: config.rope_local_inv_freq}
            self._places[cache] = Place(
                Partials.empty(1, config.n_heads, config.head_dim, splits, device),
                {
                    local: rope_table(frequencies, cache.capacity, device)
                    for local, frequencies in tables.items()
                    if frequencies
                },
            )
        return self._places[cache]

    def _run(self, keys: Tensor, values: Tensor, place: Place, ffns: SparseFfns | None) -> None:
        """All launches of one token, with `ffns` for the layers that leave neurons out."""
        config, weights, b = self._config, self._weights, self._buffers
        if ffns is not None:
            ffns.clear()
        embed(b.x, weights.embed, b.token, config.embed_scale)
        for index, layer in enumerate(weights.layers):
            vectors = layer.vectors
            norm_quantize(b.inputs, b.x, vectors["attn_norm"], config.norm_eps)
            self._multiply_qkv(layer)
            own = keys[index : index + 1], values[index : index + 1]
            self._store(layer, *own, place, b.qkv, b.position)
            decode_attention(
                b.attended,
                b.qkv[:, : b.attended.shape[1]],
                *own,
                b.position,
                place.partials,
                scale=config.attn_scale,
                window=layer.window,
                sharpness=None if self._ffns is None else self._ffns.sharpness[index],
            )
            quantize(b.joined, b.attended, b.attended.shape[1])
            self._add_product(layer.o, b.joined, vectors.get("attn_post_norm"))
            norm_quantize(b.inputs, b.x, vectors["ffn_norm"], config.norm_eps)
            post_norm = vectors.get("ffn_post_norm")
            if ffns is not None and ffns.runs(index):
                ffns.add(index, layer, b.y, b.inputs, b.hidden, b.split)
                self._add_y(post_norm)
                continue
            rule = config.activation, config.activation_param
            hidden_values(b.hidden, b.inputs, layer.gate, layer.up, *rule)
            self._add_product(layer.down, b.hidden, post_norm)
        norm_quantize(b.inputs, b.x, weights.norm, config.norm_eps)
        matvec(b.logits, weights.head, *b.inputs, split=b.split)

    def _multiply_qkv(self, layer: Layer) -> None:
        b, first = self._buffers, 0
        for matrix in layer.qkv:
            rows = slice(first, first + matrix.rows)
            bias = None if layer.qkv_bias is None else layer.qkv_bias[rows]
            matvec(b.qkv[:, rows], matrix, *b.inputs, bias=bias, split=b.split)
            first += matrix.rows

    def _add_product(
        self, matrix: DeviceMatrix, inputs: Activations, post_norm: Tensor | None
    ) -> None:
        """x += residual_scale * (matrix @ inputs), normed in between where the model does so."""
        b, scale = self._buffers, self._config.residual_scale
        if post_norm is None:
            matvec(b.x, matrix, *inputs, add=b.x, scale=scale, split=b.split)
        else:
            matvec(b.y, matrix, *inputs, split=b.split)
            self._add_y(post_norm)

    def _add_y(self, post_norm: Tensor | None) -> None:
        b = self._buffers
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
        position: Tensor,
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
            position,
            place.angles[layer.local],
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
        matvec(out, matrix, *acts, split=self._buffers.split)
        return out

    def _mix(
        self, layer: Layer, index: int, cache: GpuCache, joint: Tensor
    ) -> tuple[Tensor, Tensor]:
        config, place = self._config, self._place(cache)
        position = torch.full((1,), cache.length, dtype=torch.int32, device=joint.device)
        own = cache.device_keys[index : index + 1], cache.device_values[index : index + 1]
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


def _processors(device: torch.device) -> int:
    """Streaming multiprocessors of a card."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
