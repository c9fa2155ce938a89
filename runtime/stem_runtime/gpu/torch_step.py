"""The model in plain torch operations, for devices that Triton has no code for.

The results are those of the kernels: activations rounded to int8 in groups of 32, weights of the
very values that lie in the packed file, float32 sums, float16 keys and values. The speed is not:
weights are dequantized again and again, and neurons that a plan leaves out are computed and then
taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..formats.packed import PackedModel
from ..kernels.gpu.matrix import DeviceMatrix
from ..quant import TILE
from ..sparsity.neurons import Neurons
from ..sparsity.plan import FfnPlan
from .cache import GpuCache
from .host_layers import HostLayers
from .selection import Selection
from .torch_math import dequantize, hidden_of, linear, rms_norm
from .weights import Layer, Weights

Tensor = torch.Tensor
F32 = NDArray[np.float32]

Choose = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Leaves neurons out: from the number of a layer, its input [n, d_model], gates and hidden values
[n, ffn] and how sharp its attention was [n] to the hidden values that are left."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What a caller wants of a pass beside its logits, and whether it should go on.

    `stop` is asked before each layer. `ffn_inputs` receives float32 [n, d_model] of each layer.
    """

    stop: Callable[[], bool] = lambda: False
    ffn_inputs: Callable[[int, Tensor], None] | None = None


class TorchStep:
    """Reads tokens into a cache. Every tensor that comes out of it is new.

    `_linear` and `_mix` are what a device with kernels of its own does by them.
    """

    def __init__(
        self,
        model: PackedModel,
        neurons: Neurons | None,
        device: torch.device,
        host: HostLayers | None = None,
        *,
        lent: bool = False,
    ) -> None:
        """`host` has the layers that this step has not; `lent` is for `Weights`."""
        self._config, self._host = model.config, host
        self._first = 0 if host is None else host.count
        self._weights = Weights(model, device, self._first, lent=lent)
        self._selection = None
        if neurons is not None:
            self._selection = Selection(model.config, neurons, device)

    def set_plan(self, plan: FfnPlan | None) -> None:
        """What sparse tokens leave out from now on."""
        if self._selection is not None:
            self._selection.plan = plan

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last sparse token, int64 [n_layers, 8]: the columns of `neuron_tables.COUNTS`."""
        assert self._selection is not None
        return self._selection.counts

    @property
    def sharpness(self) -> NDArray[np.float32]:
        """How sharp the attention of the last token was, float32 [n_layers]; zeros where that is
        not computed."""
        assert self._selection is not None
        return self._selection.sharpness

    def read(
        self, cache: GpuCache, tokens: Sequence[int], watch: Watch, *, sparse: bool = False
    ) -> Tensor | None:
        """What the head gets after each of `tokens`, float32 [n, d_model]; None if stopped."""
        choose = None
        if self._selection is not None and (sparse or cache.heat is not None):
            self._selection.begin(cache, sparse=sparse)
            choose = self._selection.read
        states = self._states(cache, tokens, watch, choose, sparse)
        if choose is not None and cache.heat is not None and self._selection is not None:
            cache.heat += self._selection.heat
        return states

    def decode(self, cache: GpuCache, token: int, *, sparse: bool = False) -> Tensor:
        """The logits after one token, float32 [vocab]."""
        selection = self._selection
        if selection is not None:
            selection.begin(cache, sparse=sparse)
        choose = None if selection is None else selection.decode
        states = self._states(cache, (token,), Watch(), choose, sparse)
        assert states is not None
        if selection is not None and sparse and cache.heat is not None:
            self._note(cache, selection.captured, selection.heat)
        return self.logits(states)[0]

    def decode_batch(
        self, caches: Sequence[GpuCache], tokens: Sequence[int], *, sparse: bool = False
    ) -> Tensor:
        """The logits after one token of each cache, float32 [n, vocab]."""
        pairs = zip(caches, tokens, strict=True)
        return torch.stack([self.decode(cache, token, sparse=sparse) for cache, token in pairs])

    def follow(self, cache: GpuCache, token: int, *, sparse: bool = False) -> tuple[int, int]:
        """The token that the cache's sampler lets follow `token`, and the status of the choice.

        They alone come to the host, and the next call with that token copies nothing to the device.
        """
        assert cache.sampler is not None
        cache.sampler.sample(self.decode(cache, token, sparse=sparse)[None])
        return cache.sampler.read()

    def _note(self, cache: GpuCache, captured: F32, heat: F32) -> None:
        """Keep what a token has shown of the neurons here; what it has elsewhere, `host` has."""
        assert cache.heat is not None
        cache.heat += heat
        if cache.host is not None and cache.host.captured is not None:
            captured[: self._first] = cache.host.captured
        cache.captured = captured

    def logits(self, states: Tensor) -> Tensor:
        """float32 [n, d_model] -> [n, vocab]."""
        return self._linear(self._weights.head, states)

    def _states(
        self,
        cache: GpuCache,
        tokens: Sequence[int],
        watch: Watch,
        choose: Choose | None,
        sparse: bool,
    ) -> Tensor | None:
        config, weights = self._config, self._weights
        if watch.stop():
            return None
        x = self._begin(cache, tokens, sparse)
        for index, layer in weights.layers.items():
            if watch.stop():
                return None
            normed = rms_norm(x, layer.vectors["attn_norm"], config.norm_eps)
            y, sharpness = self._attend(layer, index, cache, normed)
            x = self._add(x, y, layer.vectors.get("attn_post_norm"))
            normed = rms_norm(x, layer.vectors["ffn_norm"], config.norm_eps)
            if watch.ffn_inputs is not None:
                watch.ffn_inputs(index, normed)
            weights.fetch(index)
            y = self._ffn(layer, index, normed, sharpness, choose)
            x = self._add(x, y, layer.vectors.get("ffn_post_norm"))
        return rms_norm(x, weights.norm, config.norm_eps)

    def _begin(self, cache: GpuCache, tokens: Sequence[int], sparse: bool) -> Tensor:
        """What the first layer here gets, float32 [n, d_model]."""
        if self._host is None:
            return self._embed(tokens)
        return torch.tensor(
            self._host.read(cache, tokens, sparse=sparse), device=self._weights.device
        )

    def _embed(self, tokens: Sequence[int]) -> Tensor:
        config, embed = self._config, self._weights.embed
        assert embed is not None
        rows = torch.tensor(tokens, device=embed.tiles.device)
        wanted = DeviceMatrix(embed.tiles[rows // TILE], 0, embed.cols, embed.kind)
        tiles = dequantize(wanted).reshape(len(tokens), TILE, -1)
        picked: Tensor = tiles[torch.arange(len(tokens), device=rows.device), rows % TILE]
        return picked[:, : embed.cols] * config.embed_scale

    def _add(self, x: Tensor, y: Tensor, post_norm: Tensor | None) -> Tensor:
        if post_norm is not None:
            y = rms_norm(y, post_norm, self._config.norm_eps)
        return x + self._config.residual_scale * y

    def _ffn(
        self, layer: Layer, index: int, x: Tensor, sharpness: Tensor, choose: Choose | None
    ) -> Tensor:
        gate = self._linear(layer.gate, x)
        hidden = hidden_of(self._config, gate, self._linear(layer.up, x))
        if choose is not None:
            hidden = choose(index, x, gate, hidden, sharpness)
        return self._linear(layer.down, hidden)

    def _attend(
        self, layer: Layer, index: int, cache: GpuCache, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What attention adds, float32 [n, d_model], and how sharp it is [n]."""
        joint = torch.cat([self._linear(matrix, x) for matrix in layer.qkv], -1)
        if layer.qkv_bias is not None:
            joint = joint + layer.qkv_bias
        mixed, sharpness = self._mix(layer, index, cache, joint)
        return self._linear(layer.o, mixed), sharpness

    def _linear(self, matrix: DeviceMatrix, x: Tensor) -> Tensor:
        """float32 [n, cols] -> [n, rows]."""
        return linear(matrix, x)

    def _mix(
        self, layer: Layer, index: int, cache: GpuCache, joint: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attention of q, k and v, side by side in `joint`, whose keys and values it stores.

        Returns float32 [n, n_heads * head_dim], and each token's largest weight, on average over
        the heads [n].
        """
        config, start, count = self._config, cache.length, len(joint)
        end = start + count
        positions = torch.arange(start, end, device=joint.device)
        q, k, v = self._heads(layer, joint, positions)
        keys, values = (
            each[index - self._first] for each in (cache.device_keys, cache.device_values)
        )
        keys[:, start:end] = k.transpose(0, 1).to(torch.float16)
        values[:, start:end] = v.transpose(0, 1).to(torch.float16)
        oldest = max(0, start - layer.window + 1) if layer.window else 0
        seen = torch.arange(oldest, end, device=joint.device)
        hidden = seen > positions[:, None]
        if layer.window:
            hidden |= seen <= positions[:, None] - layer.window
        # the queries that share a key head are one matrix
        shared = q.transpose(0, 1).reshape(config.kv_heads, -1, config.head_dim)
        scores = shared @ keys[:, oldest:end].to(torch.float32).transpose(1, 2)
        by_head = scores.reshape(config.n_heads, count, -1) * config.attn_scale
        weights = by_head.masked_fill(hidden, -torch.inf).softmax(-1)
        mixed = weights.reshape(scores.shape) @ values[:, oldest:end].to(torch.float32)
        mixed = mixed.reshape(config.n_heads, count, -1).transpose(0, 1).reshape(count, -1)
        return mixed, weights.amax(-1).mean(0)

    def _heads(
        self, layer: Layer, joint: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q and k, normed and rotated as the model does, and v: float32 [n, heads, head_dim]."""
        config = self._config
        heads = joint.reshape(len(joint), -1, config.head_dim)
        q, k = heads[:, : config.n_heads], heads[:, config.n_heads : -config.kv_heads]
        if config.qk_norm:
            q = rms_norm(q, layer.vectors["q_norm"], config.norm_eps)
            k = rms_norm(k, layer.vectors["k_norm"], config.norm_eps)
        angles = positions[:, None].to(torch.float32) * layer.inv_freq
        return _rotate(q, angles), _rotate(k, angles), heads[:, -config.kv_heads :]


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate float32 [n, heads, head_dim] by `angles` [n, head_dim / 2]."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
