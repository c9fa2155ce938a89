"""The tables that let the compiled step leave neurons of the FFNs out, and what it reports back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .formats.packed import PackedModel
from .kernels.cpu import layout as L
from .kv_cache import KVCache
from .quant import GROUP, PackedMatrix, groups_of
from .residence import Residence
from .sparsity.neurons import (
    KINDS,
    LayerNeurons,
    Neurons,
    Parts,
    Predictor,
    bits_of,
    record_sizes,
    rows_kept,
)
from .sparsity.plan import CANDIDATES, MODES, FfnPlan

COUNTS = (
    "candidates",
    "gated",
    "active",
    "core_added",
    "implied_added",
    "floor",
    "cap",
    "dense",
)
"""Columns of `NeuronTables.counts`."""

Words = NDArray[np.int64]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's arrays, padded to whole groups; kept because words hold their addresses.

    `gates` and the predictor's scores are of the neurons in `tiled` alone.
    """

    neurons: LayerNeurons
    weights: F32
    norms: F32
    cutoffs: F32
    predictor: Predictor | None
    gates: PackedMatrix
    tiled: NDArray[np.uint32]
    tiled_first: NDArray[np.int32]


class NeuronTables:
    """Owns the words of every layer's FFN and the buffers that a sparse step works in.

    Raises UsageError for neurons of a model of another shape.
    """

    def __init__(self, model: PackedModel, neurons: Neurons, threads: int) -> None:
        config = model.config
        self._model, self._threads = model, threads
        self._groups = groups_of(config.ffn_dim)
        if len(neurons.layers) != config.n_layers:
            raise UsageError("These neurons belong to a model of another number of layers.")
        self._layers = [
            None if layer is None else self._keep(index, layer)
            for index, layer in enumerate(neurons.layers)
        ]
        width = L.column_width(config.d_model)
        self.words: Words = np.zeros((config.n_layers, L.FFN_WORDS), np.int64)
        self._raw = np.zeros((config.n_layers, threads, L.LINE), np.int64)
        self._sharpness = np.zeros(config.n_layers, np.float32)
        self._gates = np.zeros((3, 32 * self._groups), np.float32)
        self._masks = np.zeros((2, self._groups), np.uint32)
        self._listed = np.zeros((threads, 32 * self._groups + L.LISTED_PAD), np.int32)
        self._implied = np.zeros((2, threads, self._groups), np.uint32)
        self._partial = np.zeros((threads, width), np.float32)
        self._places = np.zeros((config.n_layers, GROUP * self._groups), np.int64)
        self.plan: FfnPlan | None = None
        for index, layer in enumerate(self._layers):
            if layer is not None:
                self._set_layer(index, layer)
        self._residence = Residence(model, neurons.layers, self.words)

    def point(self, args: Words) -> None:
        """Enter the addresses into an argument block."""
        for word, array in (
            (L.FFN, self.words),
            (L.COUNTS, self._raw),
            (L.SHARPNESS, self._sharpness),
            (L.GATES, self._gates[0]),
            (L.POTENTIALS, self._gates[1]),
            (L.OFFERED, self._masks[0]),
            (L.PASSED, self._masks[1]),
            (L.UPS, self._gates[2]),
            (L.LISTED, self._listed),
            (L.IMPLIED, self._implied),
            (L.PARTIAL_Y, self._partial),
        ):
            args[word] = array.ctypes.data
        args[L.FFN_GROUPS] = self._groups

    def set_plan(self, plan: FfnPlan | None) -> None:
        """What the next sparse steps leave out. UsageError for a plan that does not fit."""
        if plan is not None:
            self._check(plan)
            for index, (layer, words) in enumerate(zip(self._layers, self.words, strict=True)):
                if layer is not None:
                    self._set_plan(index, layer, words, plan)
            if plan.candidates != "resampled":
                self._residence.clear()
        self.plan = plan

    def begin(self) -> None:
        """Forget what the last step reported: layers that run dense report nothing."""
        self._raw[:] = 0

    def read_whole(self) -> None:
        """Prepare a step that reads all FFNs dense."""
        self._residence.read_whole()

    def follow(self, cache: KVCache, *, look: bool) -> None:
        """Prepare a sparse step of one token, after which `look` leaves rows of the head out."""
        plan = self.plan
        if plan is None or plan.candidates != "resampled":
            return
        if cache.candidates is None and cache.heat is None:  # nobody draws candidates any more
            self._residence.clear()
        else:
            dense = (cache.rest[:, 0] > 0) | (cache.length < plan.sinks)
            self._residence.follow(plan, cache.candidates, dense, look)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the copies of the candidates' records, which are not in any file's map."""
        arena = self._residence.arena
        return 0 if arena is None else arena.nbytes

    @property
    def counts(self) -> Words:
        """Of the last sparse step, int64 [n_layers, 8]: the columns of COUNTS."""
        total = self._raw.sum(axis=1)
        bounded = self._raw[:, 0, L.COUNT_BOUNDED]
        columns = [total[:, column] for column in range(L.COUNT_BOUNDED)]
        dense = total[:, L.COUNT_DENSE]
        return np.stack([*columns, bounded > 0, bounded < 0, dense], axis=1).astype(np.int64)

    @property
    def captured(self) -> F32:
        """Of the last sparse step, float32 [n_layers]: the active neurons' contributions summed."""
        raw = np.ascontiguousarray(self._raw[:, :, L.COUNT_CAPTURED]).view(np.float64)
        captured: F32 = raw.sum(axis=1).astype(np.float32)
        return captured

    @property
    def sharpness(self) -> F32:
        """How sharp the last decoded token's attention was, float32 [n_layers], a copy."""
        return self._sharpness.copy()

    def nbytes(
        self, counts: NDArray[np.floating] | Words, dense: Sequence[float] | None = None
    ) -> float:
        """Bytes of FFN weights that a token reads, given its (or mean) `counts` [n_layers, 8].

        `dense` are those of layers that skip nothing, where that is not all of the packed FFN.
        """
        if dense is None:
            dense = [self._whole_bytes(index) for index in range(len(self._layers))]
        rows = enumerate(zip(counts, dense, strict=True))
        return float(sum(self._layer_bytes(index, *row) for index, row in rows))

    def owned_bytes(self, masks: NDArray[np.uint32]) -> list[float]:
        """Bytes of the neurons in `masks` [n_layers, groups], by layer, where all have records."""
        found = []
        for index, (layer, mask) in enumerate(zip(self._layers, masks, strict=True)):
            assert layer is not None
            gate, up, down = self._record_sizes(index, layer.neurons.stored.parts)
            neurons = np.bitwise_count(mask).astype(np.int64)
            gates = np.where(neurons > L.GATE_ROWS, GROUP, neurons)
            shared = np.count_nonzero(mask) * int(self.words[index, L.F_SHARED_BYTES])
            found.append(float(gates.sum() * gate + neurons.sum() * (up + down) + shared))
        return found

    def _whole_bytes(self, index: int) -> float:
        return float(sum(self._matrix(index, name).nbytes for name in ("gate", "up", "down")))

    def _layer_bytes(self, index: int, counts: NDArray[np.floating] | Words, whole: float) -> float:
        gate, up = self._matrix(index, "gate"), self._matrix(index, "up")
        layer, words = self._layers[index], self.words[index]
        candidates, gated, active, dense = (float(counts[i]) for i in (0, 1, 2, -1))
        if layer is None or dense == 1:
            return whole
        sizes, sparse = self._record_sizes(index, layer.neurons.stored.parts), 1 - dense
        # every group of 32 neurons with one in use reads the scales that they share
        share = min(active / sparse / self._model.config.ffn_dim, 1.0)
        used = sparse * self._groups * (1 - (1 - share) ** GROUP)
        read = whole * dense + active * sizes[2] + used * float(words[L.F_SHARED_BYTES])
        if words[L.F_MODE] == L.MODE_CONTRIBUTION:
            return read + sparse * (gate.nbytes + up.nbytes)
        gates, predictor = sparse * layer.gates.nbytes, layer.predictor
        if words[L.F_CANDIDATES] != L.ALL:
            gates = min(candidates * sizes[0], gates)
        if words[L.F_CANDIDATES] == L.PREDICTED and predictor is not None:
            gates += sparse * (predictor.axes.nbytes + predictor.scores.nbytes)
        return read + gates + gated * sizes[1]

    def _record_sizes(self, index: int, parts: Parts) -> tuple[int, int, int]:
        gate, up, down = (self._matrix(index, name) for name in ("gate", "up", "down"))
        return record_sizes(gate, up, down, parts)

    def _matrix(self, index: int, name: str) -> PackedMatrix:
        return self._model.matrix(f"layers.{index}.{name}")

    def _keep(self, index: int, layer: LayerNeurons) -> _Layer:
        ffn, down = self._model.config.ffn_dim, self._matrix(index, "down")
        record, rows = sum(self._record_sizes(index, layer.stored.parts)), layer.rows()
        shared = L.shared_bytes(KINDS[down.kind], self._model.config.d_model)
        shapes: list[tuple[NDArray[np.generic], tuple[int, ...]]] = [
            (layer.stored.records, (int(rows.max()) + 1, record)),
            (layer.stored.shared, (self._groups, shared)),
            (layer.weights, (ffn,)),
            (layer.norms, (ffn,)),
            (layer.core, (self._groups,)),
            (layer.alive, (self._groups,)),
        ]
        if layer.predictor is not None:
            shapes.append((layer.predictor.cutoffs, (ffn,)))
        fits = all(array.shape == shape for array, shape in shapes)
        if not (fits and self._matrices_fit(layer) and _names_neurons(layer.implied, ffn)):
            raise UsageError(f"The neurons of layer {index} belong to a model of another shape.")
        cutoffs, tiled = np.full(ffn, np.inf, np.float32), layer.tiled()
        predictor = layer.predictor
        if predictor is not None:
            cutoffs = predictor.cutoffs
            scores = rows_kept(predictor.scores, bits_of(tiled, ffn))
            predictor = replace(predictor, scores=scores)
        return _Layer(
            layer,
            _padded(layer.weights, self._groups, 0.0),
            _padded(layer.norms, self._groups, 0.0),
            _padded(cutoffs, self._groups, np.inf),
            predictor,
            layer.stored.gates or self._matrix(index, "gate"),
            tiled,
            np.cumsum([0, *np.bitwise_count(tiled)], dtype=np.int32),
        )

    def _matrices_fit(self, layer: LayerNeurons) -> bool:
        config, predictor = self._model.config, layer.predictor
        tiled = int(np.bitwise_count(layer.tiled()).sum())
        pairs = [(layer.stored.gates, tiled, config.d_model)]
        if predictor is not None:
            rank = min(predictor.axes.rows, config.d_model)
            pairs += [(predictor.axes, rank, config.d_model)]
            pairs += [(predictor.scores, config.ffn_dim, rank)]
        return all(m is None or (m.rows, m.cols) == (rows, cols) for m, rows, cols in pairs)

    def _set_layer(self, index: int, layer: _Layer) -> None:
        words, neurons = self.words[index], layer.neurons
        gate, up, _ = self._record_sizes(index, neurons.stored.parts)
        records, shared = neurons.stored.records, neurons.stored.shared
        words[L.F_SHARED], words[L.F_SHARED_BYTES] = shared.ctypes.data, shared.shape[1]
        rows, places = neurons.rows().clip(0), self._places[index]  # nobody reads the dead ones'
        places[: len(rows)] = records.ctypes.data + records.shape[1] * rows
        words[L.F_PLACES] = words[L.F_GATE_PLACES] = places.ctypes.data
        words[L.F_RECORD_BYTES], words[L.F_GATE_ROWS] = (
            records.shape[1],
            L.GATE_ROWS if gate else -1,
        )
        words[L.F_UP], words[L.F_DOWN] = gate, gate + up
        words[L.F_GATES : L.F_GATES + L.MATRIX_WORDS] = matrix_words(layer.gates)
        words[L.F_TILED], words[L.F_TILED_FIRST] = (
            layer.tiled.ctypes.data,
            layer.tiled_first.ctypes.data,
        )
        words[L.F_WEIGHTS], words[L.F_NORMS] = layer.weights.ctypes.data, layer.norms.ctypes.data
        words[L.F_ALIVE] = neurons.alive.ctypes.data
        words[L.F_PREDICTED] = layer.cutoffs.ctypes.data
        if layer.predictor is not None:
            for place, matrix in (
                (L.F_AXES, layer.predictor.axes),
                (L.F_SCORES, layer.predictor.scores),
            ):
                words[place : place + L.MATRIX_WORDS] = matrix_words(matrix)

    def _set_plan(self, index: int, layer: _Layer, words: Words, plan: FfnPlan) -> None:
        neurons, ffn = layer.neurons, self._model.config.ffn_dim
        words[L.F_MODE] = MODES.index(plan.modes[index])
        words[L.F_CANDIDATES] = CANDIDATES.index(plan.candidates)
        words[L.F_GATE_CUTOFF] = bits(plan.gate_cutoffs[index])
        words[L.F_DOWN_CUTOFF] = bits(plan.contribution_cutoffs[index])
        words[L.F_FLOOR] = 0 if plan.floors is None else plan.floors[index]
        words[L.F_CAP] = ffn if plan.caps is None else plan.caps[index]
        words[L.F_CORE] = neurons.core.ctypes.data if plan.core else 0
        mean, spread = neurons.sharpness
        words[L.F_ATTENTION] = bits(plan.attention / spread if plan.attention else 0.0)
        words[L.F_SHARPNESS] = bits(mean)
        following = index + 1 < len(self._layers) and plan.modes[index + 1] == "gate"
        words[L.F_IMPLIES] = 0
        if plan.implications and following and neurons.implied is not None:
            words[L.F_IMPLIES] = neurons.implied.ctypes.data
            words[L.F_IMPLIES_EACH] = neurons.implied.shape[1]

    def _check(self, plan: FfnPlan) -> None:
        if len(plan.modes) != len(self._layers):
            raise UsageError(f"This plan is for {len(plan.modes)} layers, not this model's.")
        for index, (mode, layer) in enumerate(zip(plan.modes, self._layers, strict=True)):
            if mode == "dense":
                continue
            if layer is None:
                raise UsageError(f"Layer {index} has no neurons to skip; calibrate again.")
            parts = layer.neurons.stored.parts
            if mode == "gate" and parts == "down":
                raise UsageError(f"Layer {index} has no rows of up; calibrate again.")
            if mode == "gate" and plan.candidates != "all" and parts != "gate":
                raise UsageError(f"Layer {index} has no gate rows; calibrate again.")
            if mode == "gate" and plan.candidates == "predicted" and not layer.neurons.predictor:
                raise UsageError(f"Layer {index} has no predictor; calibrate again.")


def bits(value: float) -> int:
    """A float64 as the argument block carries it."""
    return int(np.float64(value).view(np.int64))


def matrix_words(matrix: PackedMatrix) -> Words:
    """A quantized matrix as the kernels read it."""
    words = np.zeros(L.MATRIX_WORDS, np.int64)
    words[L.TILE], words[L.TILE_BYTES] = matrix.scales.ctypes.data, matrix.scales.strides[0]
    words[L.KIND] = KINDS[matrix.kind]
    words[L.TILES], words[L.GROUPS] = matrix.scales.shape[:2]
    return words


def _names_neurons(implied: NDArray[np.int32] | None, ffn: int) -> bool:
    """Whether implications are of `ffn` neurons and name no others."""
    if implied is None:
        return True
    return implied.ndim == 2 and len(implied) == ffn and implied.max(initial=-1) < ffn


def _padded(values: F32, groups: int, filler: float) -> F32:
    padded = np.full(GROUP * groups, filler, np.float32)
    padded[: len(values)] = values
    return padded
