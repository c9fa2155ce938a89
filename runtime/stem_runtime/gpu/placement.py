"""Which parts of a model a card holds, and which the CPU, where the card has no room for all.

Either the first layers run on the CPU and the rest on the card, or of every FFN the neurons that
fire most are on the card and the others on the CPU (hot and cold neurons, after PowerInfer,
https://arxiv.org/abs/2312.12456). A card reads its memory many times as fast as a CPU, so that the
better of the two is the one that leaves the CPU less to read for every token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import KernelError
from ..formats.packed import PackedModel
from ..sparsity.neurons import Parts, mask_of, record_sizes
from .memory import bytes_needed

HOST_SPEED = 25e9
"""Bytes that a CPU reads in a second: of two channels of DDR4 or one of DDR5, give or take."""

CROSSING = 30e-6
"""Seconds in which a vector goes from the card to the CPU and another comes back."""

U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Placement:
    """Layers before `first`, and the rows of the token embedding, are on the CPU, others and the
    head on the card. `hot` uint32 [n_layers, groups] masks the FFN neurons that the card has of
    its layers, None for all of them.

    The card holds `card_bytes` of `room`, a context of the asked-for length included, and
    `hot_share` of the neurons; all of it would take `wanted_bytes`. For every token the CPU reads
    about `host_bytes`, and `crossings` times a vector goes there and back.
    """

    layers: int
    first: int = 0
    hot: U32 | None = None
    card_bytes: int = 0
    wanted_bytes: int = 0
    room: int = 0
    host_bytes: float = 0.0
    crossings: int = 0
    hot_share: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether everything is on the card."""
        return self.first == 0 and self.hot is None

    @property
    def host_seconds(self) -> float:
        """How long the CPU's part of a token takes, by the bytes that it reads."""
        return self.host_bytes / HOST_SPEED + self.crossings * CROSSING

    def describe(self) -> str:
        """What is where and why, in a sentence without a full stop."""
        if self.whole:
            return f"all {self.layers} layers on the card"
        lack = f"; all of it takes {_gb(self.wanted_bytes)} and {_gb(self.room)} are free there"
        if self.hot is None:
            return (
                f"the first {self.first} of {self.layers} layers on the CPU, the others and the "
                f"output head on the card{lack}"
            )
        return (
            f"of every FFN the {self.hot_share:.0%} of the neurons that fire most on the card, "
            f"the others on the CPU{lack}"
        )


def place(
    model: PackedModel,
    room: int,
    capacity: int,
    *,
    parts: Parts | None = None,
    frequency: F32 | None = None,
) -> Placement:
    """Where the parts of a model go on a card with `room` bytes, for a context of `capacity`.

    `parts` is what sparse FFNs keep of every neuron, None for dense ones. With `frequency` float32
    [n_layers, ffn], how often each neuron fires, FFNs may be split. Raises KernelError where not
    even one layer and the head have room.
    """
    layers = model.config.n_layers
    whole = bytes_needed(model, parts, capacity)
    if whole <= room:
        return Placement(layers, card_bytes=whole, wanted_bytes=whole, room=room)
    options = [_by_layers(model, room, capacity, parts, frequency)]
    if frequency is not None:
        options.append(_by_hotness(model, room, capacity, frequency))
    found = [option for option in options if option is not None]
    if not found:
        least = bytes_needed(model, parts, capacity, layers=range(layers - 1, layers))
        raise KernelError(
            f"One layer and the output head of {model.info['name']} take {_gb(least)} of the card "
            f"with a context of {capacity} tokens, and {_gb(max(room, 0))} are free; take a "
            "smaller context, or device='cpu'."
        )
    return replace(min(found, key=lambda option: option.host_seconds), wanted_bytes=whole)


def _by_layers(
    model: PackedModel, room: int, capacity: int, parts: Parts | None, frequency: F32 | None
) -> Placement | None:
    """As few of the first layers on the CPU as the room allows."""
    layers = model.config.n_layers
    for first in range(1, layers):
        needed = bytes_needed(model, parts, capacity, layers=range(first, layers))
        if needed <= room:
            skipping = None if parts is None else frequency
            read = sum(_layer_bytes(model, layer, skipping) for layer in range(first))
            return Placement(
                layers, first, card_bytes=needed, room=room, host_bytes=read, crossings=1
            )
    return None


def _layer_bytes(model: PackedModel, layer: int, frequency: F32 | None) -> float:
    """What the CPU reads of a layer for a token: every gate, and ups and downs of who fires."""
    prefix = f"layers.{layer}."
    read = float(sum(model.matrix(prefix + name).nbytes for name in "qkvo"))
    gate, up, down = (model.matrix(prefix + name).nbytes for name in ("gate", "up", "down"))
    share = 1.0 if frequency is None else float(frequency[layer].mean())
    return read + gate + share * (up + down)


def _by_hotness(model: PackedModel, room: int, capacity: int, frequency: F32) -> Placement | None:
    """All layers on the card, and of their neurons as many as the room allows."""
    layers = range(model.config.n_layers)
    rows = np.array([_record_bytes(model, layer) for layer in layers])
    each = np.repeat(rows.sum(axis=1), model.config.ffn_dim)
    tiles = [_ffn_bytes(model, layer) for layer in layers]
    # whole FFNs pass through the place of one as a prompt is read
    base = bytes_needed(model, "gate", capacity) - int(each.sum()) - sum(tiles) + max(tiles)
    # what the CPU is spared for each byte of the card
    spared = (rows[:, :1] + frequency * rows[:, 1:].sum(axis=1, keepdims=True)).ravel()
    order = np.argsort(-spared / each, kind="stable")
    count = int(np.searchsorted(np.cumsum(each[order]), room - base, side="right"))
    if count == 0:
        return None
    chosen = np.zeros(frequency.size, np.bool_)
    chosen[order[:count]] = True
    return Placement(
        len(layers),
        hot=np.stack([mask_of(layer) for layer in chosen.reshape(frequency.shape)]),
        card_bytes=base + int(each[chosen].sum()),
        room=room,
        host_bytes=float(spared[~chosen].sum()),
        crossings=len(layers),
        hot_share=count / frequency.size,
    )


def _record_bytes(model: PackedModel, layer: int) -> tuple[int, int, int]:
    """Of a neuron: its row of gate, its row of up, its column of down."""
    gate, up, down = (model.matrix(f"layers.{layer}.{name}") for name in ("gate", "up", "down"))
    return record_sizes(gate, up, down, "gate")


def _ffn_bytes(model: PackedModel, layer: int) -> int:
    return sum(model.matrix(f"layers.{layer}.{name}").nbytes for name in ("gate", "up", "down"))


def _gb(count: int) -> str:
    return f"{count / 1e9:.{1 if count >= 5e7 else 3}f} GB"
