"""A packed model in the memory of a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..formats.packed import PackedModel
from ..kernels.gpu.matrix import DeviceMatrix
from ..quant import TILE, PackedMatrix

_VECTORS = (
    "attn_norm",
    "ffn_norm",
    "q_norm",
    "k_norm",
    "attn_post_norm",
    "ffn_post_norm",
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `vectors` are float32, by their packed names; `window` is 0 for none.

    The rows of `qkv` follow each other: one matrix where q, k and v are of one kind, else three.
    `qkv_bias` float32 [rows of all] or None. `inv_freq` float32 [head_dim / 2] are the frequencies
    that this layer rotates with; `local` says that they are those of layers with a window.
    """

    qkv: tuple[DeviceMatrix, ...]
    qkv_bias: torch.Tensor | None
    o: DeviceMatrix
    gate: DeviceMatrix
    up: DeviceMatrix
    down: DeviceMatrix
    vectors: dict[str, torch.Tensor]
    window: int
    local: bool
    inv_freq: torch.Tensor


class Weights:
    """All weights of a model. The logits' scale is in `norm`, as the head is linear."""

    def __init__(self, model: PackedModel, device: torch.device) -> None:
        config, self.device = model.config, device
        self._model = model
        self.embed = self._matrix("embed")
        self.head = self.embed if config.tied_head else self._matrix("head")
        scale = np.float32(config.logit_scale)
        self.norm = torch.tensor(model.vector("norm") * scale, device=device)
        self._everywhere = self._frequencies(config.rope_inv_freq)
        self._nearby = self._frequencies(config.rope_local_inv_freq)
        self.layers = tuple(map(self._layer, range(config.n_layers)))

    def _layer(self, index: int) -> Layer:
        model, prefix = self._model, f"layers.{index}."
        window = model.config.layer_windows[index]
        local = bool(window and len(self._nearby))
        biases = [model.vector(f"{prefix}{which}_bias") for which in "qkv" if model.config.qkv_bias]
        return Layer(
            qkv=self._qkv(prefix),
            qkv_bias=torch.tensor(np.concatenate(biases), device=self.device) if biases else None,
            o=self._matrix(prefix + "o"),
            gate=self._matrix(prefix + "gate"),
            up=self._matrix(prefix + "up"),
            down=self._matrix(prefix + "down"),
            vectors={
                name: torch.tensor(model.vector(prefix + name), device=self.device)
                for name in _VECTORS
                if model.has(prefix + name)
            },
            window=window,
            local=local,
            inv_freq=self._nearby if local else self._everywhere,
        )

    def _qkv(self, prefix: str) -> tuple[DeviceMatrix, ...]:
        """q, k and v, as one product where tiles of one do not hold rows of the next."""
        parts = [self._model.matrix(prefix + which) for which in "qkv"]
        q, k, v = parts
        if len({part.kind for part in parts}) > 1 or q.rows % TILE or k.rows % TILE:
            return tuple(DeviceMatrix.of(part, self.device) for part in parts)
        tiles = np.concatenate([part.joined() for part in parts])
        joint = PackedMatrix.of_tiles(
            f"{prefix}qkv", q.rows + k.rows + v.rows, q.cols, q.kind, tiles
        )
        return (DeviceMatrix.of(joint, self.device),)

    def _matrix(self, name: str) -> DeviceMatrix:
        return DeviceMatrix.of(self._model.matrix(name), self.device)

    def _frequencies(self, values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)
