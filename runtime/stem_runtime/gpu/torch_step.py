"""The model in plain torch operations, for devices that Triton has no code for.

The results are those of the kernels: activations rounded to int8 in groups of 32, weights of the
very values that lie in the packed file, float32 sums, float16 keys and values. The speed is not:
weights are dequantized again and again, and neurons that a plan leaves out are computed and then
taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..config import ModelConfig
from ..kernels.gpu.layout import DeviceMatrix
from ..quant import TILE
from .cache import GpuCache
from .selection import Selection
from .torch_math import dequantize, hidden_of, linear, rms_norm
from .weights import Layer, Weights

Tensor = torch.Tensor

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
    """Reads tokens into a cache. Every tensor that comes out of it is new."""

    def __init__(
        self, config: ModelConfig, weights: Weights, selection: Selection | None = None
    ) -> None:
        self._config, self._weights, self._selection = config, weights, selection

    def read(
        self, cache: GpuCache, tokens: Sequence[int], watch: Watch, *, sparse: bool = False
    ) -> Tensor | None:
        """What the head gets after each of `tokens`, float32 [n, d_model]; None if stopped."""
        choose = None
        if self._selection is not None and (sparse or cache.heat is not None):
            self._selection.begin(cache, sparse=sparse)
            choose = self._selection.read
        states = self._states(cache, tokens, watch, choose)
        if choose is not None and cache.heat is not None and self._selection is not None:
            cache.heat += self._selection.heat
        return states

    def decode(self, cache: GpuCache, token: int, *, sparse: bool = False) -> Tensor:
        """The logits after one token, float32 [vocab]."""
        selection = self._selection
        if selection is not None:
            selection.begin(cache, sparse=sparse)
        choose = None if selection is None else selection.decode
        states = self._states(cache, (token,), Watch(), choose)
        assert states is not None
        if selection is not None and sparse:
            cache.captured = selection.captured
            if cache.heat is not None:
                cache.heat += selection.heat
        return self.logits(states)[0]

    def logits(self, states: Tensor) -> Tensor:
        """float32 [n, d_model] -> [n, vocab]."""
        return linear(self._weights.head, states)

    def _states(
        self, cache: GpuCache, tokens: Sequence[int], watch: Watch, choose: Choose | None
    ) -> Tensor | None:
        config, weights = self._config, self._weights
        start, count = cache.length, len(tokens)
        x = self._embed(tokens)
        positions = torch.arange(start, start + count, device=weights.device)
        for index, layer in enumerate(weights.layers):
            if watch.stop():
                return None
            normed = rms_norm(x, layer.vectors["attn_norm"], config.norm_eps)
            y, sharpness = self._attend(layer, index, cache, normed, positions)
            x = self._add(x, y, layer.vectors.get("attn_post_norm"))
            normed = rms_norm(x, layer.vectors["ffn_norm"], config.norm_eps)
            if watch.ffn_inputs is not None:
                watch.ffn_inputs(index, normed)
            y = self._ffn(layer, index, normed, sharpness, choose)
            x = self._add(x, y, layer.vectors.get("ffn_post_norm"))
        return rms_norm(x, weights.norm, config.norm_eps)

    def _embed(self, tokens: Sequence[int]) -> Tensor:
        config, embed = self._config, self._weights.embed
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
        gate = linear(layer.gate, x)
        hidden = hidden_of(self._config, gate, linear(layer.up, x))
        if choose is not None:
            hidden = choose(index, x, gate, hidden, sharpness)
        return linear(layer.down, hidden)

    def _attend(
        self, layer: Layer, index: int, cache: GpuCache, x: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What attention adds [n, d_model], and how sharp it is: the largest weight of a head, on
        average over the heads [n]."""
        config, start, count = self._config, cache.length, len(x)
        end = start + count
        angles = positions[:, None].to(torch.float32) * layer.inv_freq
        q = _rotate(self._project(layer, "q", x), angles)
        k = _rotate(self._project(layer, "k", x), angles)
        keys, values = cache.device_keys[index], cache.device_values[index]
        keys[:, start:end] = k.transpose(0, 1).to(torch.float16)
        values[:, start:end] = self._project(layer, "v", x).transpose(0, 1).to(torch.float16)
        oldest = max(0, start - layer.window + 1) if layer.window else 0
        seen = torch.arange(oldest, end, device=positions.device)
        hidden = seen > positions[:, None]
        if layer.window:
            hidden |= seen <= positions[:, None] - layer.window
        # [kv, group * n, dim]: the queries that share a key head are one matrix
        shared = q.transpose(0, 1).reshape(config.kv_heads, -1, config.head_dim)
        scores = shared @ keys[:, oldest:end].to(torch.float32).transpose(1, 2)
        by_head = scores.reshape(config.n_heads, count, -1) * config.attn_scale
        weights = by_head.masked_fill(hidden, -torch.inf).softmax(-1)
        mixed = weights.reshape(scores.shape) @ values[:, oldest:end].to(torch.float32)
        mixed = mixed.reshape(config.n_heads, count, -1).transpose(0, 1).reshape(count, -1)
        return linear(layer.o, mixed), weights.amax(-1).mean(0)

    def _project(self, layer: Layer, which: str, x: Tensor) -> Tensor:
        """Rows of q, k or v, biased and normed as the model does: float32 [n, heads, head_dim]."""
        y = linear(getattr(layer, which), x)
        if f"{which}_bias" in layer.vectors:
            y = y + layer.vectors[f"{which}_bias"]
        y = y.reshape(len(y), -1, self._config.head_dim)
        if f"{which}_norm" in layer.vectors:
            y = rms_norm(y, layer.vectors[f"{which}_norm"], self._config.norm_eps)
        return y


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate float32 [n, heads, head_dim] by `angles` [n, head_dim / 2]."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
