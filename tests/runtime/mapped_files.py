"""Neurons whose weights lie in a mapped file, as those of a profile do."""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stem_runtime.quant import PackedMatrix
from stem_runtime.sparsity.neurons import Neurons


def mapped(neurons: Neurons, path: Path) -> Neurons:
    """The same neurons, their records and gates copied into a file; every layer has gate rows."""
    arrays: list[NDArray[np.uint8]] = []
    for layer in neurons.layers:
        assert layer is not None
        assert layer.stored.gates is not None
        arrays += [layer.stored.records, layer.stored.gates.joined()]
    places, end = [], 128
    with path.open("wb") as file:
        for array in arrays:
            file.seek(end)
            file.write(array.tobytes())
            places.append(end)
            end += -(-array.nbytes // 64) * 64
        file.truncate(end)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    views = [
        np.frombuffer(data, np.uint8, array.nbytes, place).reshape(array.shape)
        for array, place in zip(arrays, places, strict=True)
    ]
    layers = []
    for layer, records, tiles in zip(neurons.layers, views[::2], views[1::2], strict=True):
        assert layer is not None
        gates = layer.stored.gates
        assert gates is not None
        gates = PackedMatrix.of_tiles(gates.name, gates.rows, gates.cols, gates.kind, tiles)
        stored = dataclasses.replace(layer.stored, records=records, gates=gates)
        layers.append(dataclasses.replace(layer, stored=stored))
    return Neurons(tuple(layers))
