"""A packed model in the memory of a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..formats.packed import PackedModel
from ..kernels.gpu.matrix import DeviceMatrix
from ..quant import GROUP_BYTES, TILE, PackedMatrix

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
    """The weights of a model's layers from `first` on, by their numbers, and of its head.

    The logits' scale is in `norm`, as the head is linear. `embed` is None where tokens come as what
    the first layers made of them. With `lent` the FFNs of all layers share the memory of one: each
    is there after `fetch`, until another is fetched.
    """

    def __init__(
        self, model: PackedModel, device: torch.device, first: int = 0, *, lent: bool = False
    ) -> None:
        config, self.device = model.config, device
        self._model = model
        self._lent = self._room_for_ffn(range(first, config.n_layers)) if lent else None
        self.head = self._matrix("embed" if config.tied_head else "head")
        self.embed = None
        if first == 0:
            self.embed = self.head if config.tied_head else self._matrix("embed")
        scale = np.float32(config.logit_scale)
        self.norm = torch.tensor(model.vector("norm") * scale, device=device)
        self._everywhere = self._frequencies(config.rope_inv_freq)
        self._nearby = self._frequencies(config.rope_local_inv_freq)
        self.layers = {index: self._layer(index) for index in range(first, config.n_layers)}

    def fetch(self, index: int) -> None:
        """See to it that the FFN of a layer is on the device."""
        if self._lent is not None:
            layer = self.layers[index]
            for name, place in zip(_ffn(index), (layer.gate, layer.up, layer.down), strict=True):
                place.tiles.copy_(torch.from_numpy(self._model.matrix(name).joined()))

    def _room_for_ffn(self, layers: range) -> torch.Tensor:
        sizes = [sum(_aligned(self._model.matrix(n).nbytes) for n in _ffn(i)) for i in layers]
        return torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)

    def _ffn(self, index: int) -> list[DeviceMatrix]:
        """Gate, up and down, or where they will be."""
        if self._lent is None:
            return [self._matrix(name) for name in _ffn(index)]
        places, start = [], 0
        for matrix in map(self._model.matrix, _ffn(index)):
            shape = (*matrix.scales.shape[:2], GROUP_BYTES[matrix.kind])
            part = self._lent[start : start + matrix.nbytes].view(shape)
            places.append(DeviceMatrix(part, matrix.rows, matrix.cols, matrix.kind))
            start += _aligned(matrix.nbytes)
        return places

    def _layer(self, index: int) -> Layer:
        model, prefix = self._model, f"layers.{index}."
        gate, up, down = self._ffn(index)
        window = model.config.layer_windows[index]
        local = bool(window and len(self._nearby))
        biases = [model.vector(f"{prefix}{which}_bias") for which in "qkv" if model.config.qkv_bias]
        return Layer(
            qkv=self._qkv(prefix),
            qkv_bias=torch.tensor(np.concatenate(biases), device=self.device) if biases else None,
            o=self._matrix(prefix + "o"),
            gate=gate,
            up=up,
            down=down,
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


def _ffn(index: int) -> list[str]:
    return [f"layers.{index}.{name}" for name in ("gate", "up", "down")]


def _aligned(nbytes: int) -> int:
    """Bytes up to where a matrix can begin."""
    return -(-nbytes // 256) * 256
