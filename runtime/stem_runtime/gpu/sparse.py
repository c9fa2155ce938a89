"""FFNs of one decoded token of which a plan leaves neurons out, in Triton's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..formats.packed import PackedModel
from ..kernels.gpu.compact import Survivors, name_candidates
from ..kernels.gpu.ffn import add_contributors, add_survivors, find_contributors, find_survivors
from ..kernels.gpu.layout import Activations, DeviceMatrix
from ..kernels.gpu.matvec import SplitSums, matvec
from ..kernels.gpu.quantize import quantize
from ..kernels.gpu.records import Attention, DeviceNeurons, FfnTests, Followers, Tally
from ..neuron_tables import COUNTS
from ..quant import GROUP, groups_of
from ..sparsity.neurons import LayerNeurons, Neurons, Predictor
from ..sparsity.plan import FfnPlan
from .cache import GpuCache
from .weights import Layer

Tensor = torch.Tensor

_DENSE = COUNTS.index("dense")


@dataclass(frozen=True, slots=True)
class _Guess:
    """A predictor on the device, and what it computes on the way; `scores` float32 [b, ffn]."""

    axes: DeviceMatrix
    rows: DeviceMatrix
    cutoffs: Tensor
    turned: Tensor
    inputs: Activations
    scores: Tensor

    @classmethod
    def upload(cls, predictor: Predictor, device: torch.device) -> _Guess:
        matrices = (
            DeviceMatrix.of(predictor.axes, device),
            DeviceMatrix.of(predictor.scores, device),
        )
        return cls.of(1, *matrices, torch.tensor(predictor.cutoffs, device=device))

    @classmethod
    def of(cls, batch: int, axes: DeviceMatrix, rows: DeviceMatrix, cutoffs: Tensor) -> _Guess:
        turned = torch.zeros((batch, axes.rows), device=cutoffs.device)
        inputs = Activations.empty(batch, axes.rows, cutoffs.device)
        scores = torch.zeros((batch, rows.rows), device=cutoffs.device)
        return cls(axes, rows, cutoffs, turned, inputs, scores)


def _upload(
    model: PackedModel, index: int, layer: LayerNeurons, device: torch.device
) -> DeviceNeurons:
    gate, up, down = (model.matrix(f"layers.{index}.{name}") for name in ("gate", "up", "down"))
    return DeviceNeurons.of(layer, gate, up, down, device)


class SparseFfns:
    """A model's neurons, what a plan asks of them, and what the last step made of that.

    A step reads one token of each of `batch` sequences, to begin with of one; `of` makes the same
    for more. Numbers of a plan lie in device memory: plans of one `structure` run the same
    launches. `sharpness` float32 [n_layers, batch, n_heads] is where a step leaves each head's
    largest weight.
    """

    def __init__(self, model: PackedModel, neurons: Neurons, device: torch.device) -> None:
        self._config, self._device = model.config, device
        self._neurons = [
            None if layer is None else _upload(model, index, layer, device)
            for index, layer in enumerate(neurons.layers)
        ]
        self._guesses = [
            None
            if layer is None or layer.predictor is None
            else _Guess.upload(layer.predictor, device)
            for layer in neurons.layers
        ]
        self._usual = [(0.0, 1.0) if layer is None else layer.sharpness for layer in neurons.layers]
        self._names = [
            None if layer is None or layer.implied is None else self._padded(layer.implied)
            for layer in neurons.layers
        ]
        self._plan: FfnPlan | None = None
        self._source = "all"
        self._whole = False
        self._reserve(1)

    def of(self, batch: int) -> SparseFfns:
        """The same neurons and plan for so many sequences at once."""
        other = copy(self)
        other._guesses = [
            None if guess is None else _Guess.of(batch, guess.axes, guess.rows, guess.cutoffs)
            for guess in self._guesses
        ]
        other._reserve(batch)
        other.set_plan(self._plan)
        return other

    def _reserve(self, batch: int) -> None:
        """Take the memory that steps of `batch` sequences work in."""
        config, self._batch = self._config, batch
        layers, groups = config.n_layers, groups_of(config.ffn_dim)
        self._survivors = Survivors.empty(batch, config.ffn_dim, self._device)

        def zeros(kind: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=self._device)

        self._cutoffs = zeros(torch.float32, layers, batch, 2)
        self.sharpness = zeros(torch.float32, layers, batch, config.n_heads)
        self._rules = zeros(torch.float32, layers, 2)
        self._moved = zeros(torch.float32, layers, batch, 2)
        self._bounds = zeros(torch.int32, layers, batch, 2)
        self._core = zeros(torch.int32, layers, groups)
        self._chosen = zeros(torch.int32, layers, batch, groups)
        self._taken: list[object] = [None] * batch
        self._predicted = zeros(torch.int32, batch, groups)
        # what every step begins with as zeros is one stretch of memory
        shapes = (GROUP * groups, len(COUNTS), groups, 1)
        self._cleared = zeros(torch.int32, layers * batch * sum(shapes))
        parts = torch.split(self._cleared, [layers * batch * each for each in shapes])
        heat, self._counts, self._implied, captured = (
            part.reshape(layers, batch, -1) for part in parts
        )
        self._heat, self._captured = (part.view(torch.float32) for part in (heat, captured[..., 0]))

    def _padded(self, implied: NDArray[np.int32]) -> Tensor:
        """Whom each neuron names, int32 [32 * groups, k]; none for those of padding."""
        more = -len(implied) % GROUP
        return torch.from_numpy(np.pad(implied, ((0, more), (0, 0)), constant_values=-1)).to(
            self._device
        )

    def set_plan(self, plan: FfnPlan | None) -> None:
        """What the next tokens leave out."""
        self._plan = plan
        if plan is None:
            return
        layers, ffn = self._config.n_layers, self._config.ffn_dim
        pairs = zip(plan.gate_cutoffs, plan.contribution_cutoffs, strict=True)
        self._cutoffs.copy_(torch.tensor([[pair] for pair in pairs]))
        bounds = zip(plan.floors or (0,) * layers, plan.caps or (ffn,) * layers, strict=True)
        self._bounds.copy_(torch.tensor([[pair] for pair in bounds], dtype=torch.int32))
        self._core.zero_()
        for core, neurons in zip(self._core, self._neurons, strict=True):
            if plan.core and neurons is not None:
                core.copy_(neurons.core)
        rules = [(plan.attention / spread, mean) for mean, spread in self._usual]
        self._rules.copy_(torch.tensor(rules))

    def structure(self, cache: GpuCache) -> object:
        """What the next token of `cache` launches; None where the plan leaves nothing out yet.

        Only tokens of one structure go together.
        """
        plan = self._plan
        assert plan is not None
        if cache.length < plan.sinks:
            return None
        source: str = plan.candidates
        if source == "resampled" and cache.candidates is None:
            source = "all"
        bounded = plan.floors is not None or plan.caps is not None
        return plan.modes, source, bounded, plan.attention > 0, plan.implications

    def begin(self, caches: Sequence[GpuCache]) -> object:
        """Take what caches of one structure know of neurons; returns the structure."""
        structure, plan = self.structure(caches[0]), self._plan
        assert plan is not None
        self._whole = structure is None
        self._source = plan.candidates
        if self._source == "resampled" and caches[0].candidates is None:
            self._source = "all"
        if self._source == "resampled":
            for row, cache in enumerate(caches):
                self._take(row, cache.candidates)
        return structure

    def _take(self, row: int, candidates: NDArray[np.uint32] | None) -> None:
        """Copy a conversation's candidates to the device, unless they are there."""
        assert candidates is not None
        if self._taken[row] is not candidates:
            self._chosen[:, row].copy_(torch.from_numpy(candidates.view(np.int32)))
            self._taken[row] = candidates

    def clear(self) -> None:
        """Forget what the last step did, as the first launches of a step."""
        self._cleared.zero_()

    def runs(self, index: int) -> bool:
        """Whether a layer leaves neurons out."""
        assert self._plan is not None
        return self._neurons[index] is not None and self._plan.modes[index] != "dense"

    def add(
        self,
        index: int,
        layer: Layer,
        out: Tensor,
        inputs: Activations,
        hidden: Activations,
        split: SplitSums,
    ) -> None:
        """The FFN of `inputs` into `out`, float32 [b, d_model]. `hidden` is memory to work in."""
        plan, neurons, config = self._plan, self._neurons[index], self._config
        assert plan is not None
        assert neurons is not None
        tests = self._tests(index, plan)
        report = Tally(self._counts[index], self._captured[index], self._heat[index])
        survivors, activation = self._survivors, config.activation
        followers = self._followers(index, plan)
        if plan.modes[index] == "contribution":
            find_contributors(
                out,
                hidden,
                survivors,
                inputs,
                layer.gate,
                layer.up,
                neurons,
                tests,
                report,
                activation,
                config.activation_param,
                followers=followers,
            )
            add_contributors(out, hidden, survivors, neurons)
            return
        candidates = self._candidates(index, inputs, split)
        find_survivors(
            out,
            survivors,
            inputs,
            layer.gate,
            neurons,
            tests,
            report,
            activation,
            config.activation_param,
            candidates=candidates,
            implied=None if candidates is None else self._implied_by(index - 1, plan),
        )
        add_survivors(
            out, survivors, inputs, neurons, tests, report, activation, followers=followers
        )

    def _tests(self, index: int, plan: FfnPlan) -> FfnTests:
        bounds = attention = None
        if plan.floors is not None or plan.caps is not None:
            bounds = self._bounds[index]
        if plan.attention:
            attention = Attention(self.sharpness[index], self._rules[index], self._moved[index])
        return FfnTests(self._cutoffs[index], self._core[index], bounds, attention)

    def _followers(self, index: int, plan: FfnPlan) -> Followers | None:
        names, implied = self._names[index], self._implied_by(index, plan)
        return None if names is None or implied is None else Followers(names, implied)

    def _implied_by(self, index: int, plan: FfnPlan) -> Tensor | None:
        """What layer `index` makes candidates of the next, int32 [b, groups]; None if nothing."""
        following = index + 1
        if not plan.implications or index < 0 or following == self._config.n_layers:
            return None
        if self._names[index] is None or plan.modes[following] != "gate":
            return None
        implied: Tensor = self._implied[following]
        return implied

    def _candidates(self, index: int, inputs: Activations, split: SplitSums) -> Tensor | None:
        """Masks int32 [b, groups], or None for everyone."""
        if self._source == "resampled":
            return self._chosen[index]
        guess = self._guesses[index]
        if self._source == "all" or guess is None:
            return None
        matvec(guess.turned, guess.axes, *inputs, split=split)
        quantize(guess.inputs, guess.turned, guess.turned.shape[1])
        matvec(guess.scores, guess.rows, *guess.inputs, split=split)
        name_candidates(self._predicted, guess.scores, guess.cutoffs)
        return self._predicted

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last step, int64 [n_layers, 8]: the columns of `neuron_tables.COUNTS`, summed over
        its sequences."""
        counts = np.zeros((self._config.n_layers, len(COUNTS)), np.int64)
        if not self._whole:
            counts[:] = self._counts.cpu().numpy().sum(1)
        for index, row in enumerate(counts):
            row[_DENSE] = self._batch * (self._whole or not self.runs(index))
        return counts

    @property
    def mean_sharpness(self) -> NDArray[np.float32]:
        """Of the last step, float32 [n_layers]: what its heads' largest weights are on average."""
        found: NDArray[np.float32] = self.sharpness.mean((1, 2)).cpu().numpy()
        return found

    @property
    def captured(self) -> NDArray[np.float32]:
        """Of the last step, float32 [batch, n_layers]: the active neurons' contributions summed."""
        captured: NDArray[np.float32] = self._captured.cpu().numpy().T
        return np.zeros_like(captured) if self._whole else captured.copy()

    @property
    def heat(self) -> NDArray[np.float32]:
        """Of the last step, float32 [batch, n_layers, 32 * groups]: contributions by neuron."""
        heat: NDArray[np.float32] = self._heat.cpu().numpy().swapaxes(0, 1)
        return np.zeros_like(heat) if self._whole else heat
