"""A packed model in the memory of a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..formats.packed import PackedModel
from ..kernels.gpu.layout import DeviceMatrix

_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
_VECTORS = (
    "attn_norm",
    "ffn_norm",
    "q_bias",
    "k_bias",
    "v_bias",
    "q_norm",
    "k_norm",
    "attn_post_norm",
    "ffn_post_norm",
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `vectors` are float32, by their packed names; `window` is 0 for none.

    `inv_freq` float32 [head_dim / 2] are the frequencies that this layer rotates with.
    """

    q: DeviceMatrix
    k: DeviceMatrix
    v: DeviceMatrix
    o: DeviceMatrix
    gate: DeviceMatrix
    up: DeviceMatrix
    down: DeviceMatrix
    vectors: dict[str, torch.Tensor]
    window: int
    inv_freq: torch.Tensor


class Weights:
    """All weights of a model. The logits' scale is in `norm`, as the head is linear."""

    def __init__(self, model: PackedModel, device: torch.device) -> None:
        config, self.device = model.config, device
        self._model = model
        self.embed = self._matrix("embed")
        self.head = self.embed if config.tied_head else self._matrix("head")
        scale = np.float32(config.logit_scale)
        self.norm = torch.from_numpy(model.vector("norm") * scale).to(device)
        self._everywhere = self._frequencies(config.rope_inv_freq)
        self._local = self._frequencies(config.rope_local_inv_freq)
        self.layers = tuple(map(self._layer, range(config.n_layers)))

    def _layer(self, index: int) -> Layer:
        model, prefix = self._model, f"layers.{index}."
        window = model.config.layer_windows[index]
        local = window and len(self._local)
        return Layer(
            **{name: self._matrix(prefix + name) for name in _MATRICES},
            vectors={
                name: torch.tensor(model.vector(prefix + name), device=self.device)
                for name in _VECTORS
                if model.has(prefix + name)
            },
            window=window,
            inv_freq=self._local if local else self._everywhere,
        )

    def _matrix(self, name: str) -> DeviceMatrix:
        return DeviceMatrix.of(self._model.matrix(name), self.device)

    def _frequencies(self, values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)
