"""FFNs of one decoded token of which a plan leaves neurons out, in Triton's kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UsageError
from ..formats.packed import PackedModel
from ..kernels.gpu.compact import Survivors
from ..kernels.gpu.ffn import add_contributors, add_survivors, find_contributors, find_survivors
from ..kernels.gpu.layout import Activations
from ..kernels.gpu.matvec import SplitSums
from ..kernels.gpu.records import Attention, DeviceNeurons, FfnTests, Followers, Tally
from ..neuron_tables import COUNTS
from ..quant import GROUP, groups_of
from ..sparsity.neurons import LayerNeurons, Neurons
from ..sparsity.plan import FfnPlan, Mode
from .cache import GpuCache
from .guess import Guess
from .weights import Layer

Tensor = torch.Tensor

_DENSE = COUNTS.index("dense")

_WHOLE = "whole"
"""The structure of a step that leaves nothing out of FFNs that are split."""


def _upload(
    model: PackedModel,
    index: int,
    layer: LayerNeurons | None,
    device: torch.device,
    resident: NDArray[np.uint32] | None,
) -> DeviceNeurons | None:
    if resident is not None and (layer is None or layer.stored.parts != "gate"):
        raise UsageError(f"Layer {index} has no gate rows; calibrate again.")
    if layer is None:
        return None
    gate, up, down = (model.matrix(f"layers.{index}.{name}") for name in ("gate", "up", "down"))
    return DeviceNeurons.of(layer, gate, up, down, device, resident)


def _aligned(shape: tuple[int, ...]) -> int:
    """Elements that a layer's share of a tensor takes: kernels are compiled anew for addresses that
    are no multiple of 16 bytes.
    """
    return -(-math.prod(shape) // 4) * 4


def _rows(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[n_layers, *shape] over as many aligned shares of `memory`."""
    shares = memory.reshape(-1, _aligned(shape))[:, : math.prod(shape)]
    return shares.view(len(shares), *shape)


class SparseFfns:
    """A model's neurons, what a plan asks of them, and what the last step made of that.

    A step reads one token of each of `batch` sequences, to begin with of one; `of` makes the same
    for more. Numbers of a plan lie in device memory: plans of one `structure` run the same
    launches. `sharpness` float32 [n_layers, batch, n_heads] is where a step leaves each head's
    largest weight.

    With the masks `resident`, uint32 [n_layers, groups], those neurons alone are on the device, and
    nothing else of any FFN: these are split. What is added then is the part of these neurons, by
    their records, in every layer and also of tokens that leave nothing out; a neuron is left out of
    those only where its hidden value is zero. Layers by contribution read no ups where the gate is
    zero. Floors, caps and implications are left out, being about neurons that are elsewhere, too.
    Raises UsageError for layers without gate rows.

    No layer rests as on the CPU. One of which all neurons fire reads what a dense one does, to the
    byte where rows fill lines of 64 bytes (4 bits, 2,048 or 4,096 inputs; a tenth more with 576),
    in as many launches.
    """

    def __init__(
        self,
        model: PackedModel,
        neurons: Neurons,
        device: torch.device,
        resident: NDArray[np.uint32] | None = None,
    ) -> None:
        self._config, self._device = model.config, device
        self.split = resident is not None
        self._neurons = [
            _upload(model, index, layer, device, None if resident is None else resident[index])
            for index, layer in enumerate(neurons.layers)
        ]
        self._ones = torch.ones(GROUP * groups_of(model.config.ffn_dim), device=device)
        self._guesses = [
            None
            if layer is None or layer.predictor is None
            else Guess.upload(layer.predictor, device)
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
            None if guess is None else Guess.of(batch, guess.axes, guess.rows, guess.cutoffs)
            for guess in self._guesses
        ]
        other._reserve(batch)
        other.set_plan(self._plan)
        return other

    def _reserve(self, batch: int) -> None:
        """Take the memory that steps of `batch` sequences work in."""
        config, device, self._batch = self._config, self._device, batch
        layers, groups = config.n_layers, groups_of(config.ffn_dim)
        self._survivors = Survivors.empty(batch, config.ffn_dim, device)
        self._open = FfnTests.empty(batch, config.ffn_dim, device, bounds=False)
        self._unread = Tally.empty(batch, config.ffn_dim, device)

        def rows(kind: torch.dtype, *shape: int) -> Tensor:
            return _rows(torch.zeros(layers * _aligned(shape), dtype=kind, device=device), shape)

        self._cutoffs = rows(torch.float32, batch, 2)
        self.sharpness = rows(torch.float32, batch, config.n_heads)
        self._rules = rows(torch.float32, 2)
        self._moved = rows(torch.float32, batch, 2)
        self._bounds = rows(torch.int32, batch, 2)
        self._core = rows(torch.int32, groups)
        self._chosen = rows(torch.int32, batch, groups)
        self._taken: list[object] = [None] * batch
        self._predicted = torch.zeros((batch, groups), dtype=torch.int32, device=device)
        # what every step begins with as zeros is one stretch of memory
        shapes = ((batch, GROUP * groups), (batch, len(COUNTS)), (batch, groups), (batch,))
        sizes = [layers * _aligned(shape) for shape in shapes]
        self._cleared = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        parts = zip(torch.split(self._cleared, sizes), shapes, strict=True)
        heat, self._counts, self._implied, captured = (_rows(*part) for part in parts)
        self._heat, self._captured = (part.view(torch.float32) for part in (heat, captured))

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
        tests = zip(plan.modes, plan.gate_cutoffs, plan.contribution_cutoffs, strict=True)
        pairs = [(first if mode == "gate" else 0.0, second) for mode, first, second in tests]
        self._cutoffs.copy_(torch.tensor([[pair] for pair in pairs]))
        bounds = zip(plan.floors or (0,) * layers, plan.caps or (ffn,) * layers, strict=True)
        self._bounds.copy_(torch.tensor([[pair] for pair in bounds], dtype=torch.int32))
        self._core.zero_()
        for core, neurons in zip(self._core, self._neurons, strict=True):
            if plan.core and neurons is not None:
                core.copy_(neurons.core)
        rules = [(plan.attention / spread, mean) for mean, spread in self._usual]
        self._rules.copy_(torch.tensor(rules))

    def structure(self, cache: GpuCache, *, sparse: bool = True) -> object:
        """What the next token of `cache` launches; None where that are dense FFNs only.

        Only tokens of one structure go together. Without `sparse` nothing is left out.
        """
        plan = self._plan
        if not sparse or plan is None or cache.length < plan.sinks:
            return _WHOLE if self.split else None
        source: str = plan.candidates
        if source == "resampled" and cache.candidates is None:
            source = "all"
        bounded = plan.floors is not None or plan.caps is not None
        return plan.modes, source, bounded, plan.attention > 0, plan.implications

    def begin(self, caches: Sequence[GpuCache], *, sparse: bool = True) -> object:
        """Take what caches of one structure know of neurons; returns the structure."""
        structure = self.structure(caches[0], sparse=sparse)
        self._whole = structure is None or structure == _WHOLE
        self._source = "all"
        if self._plan is not None and not self._whole:
            self._source = self._plan.candidates
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
        """Whether a layer goes by its neurons."""
        return self.split or self._mode(index) != "dense"

    def _mode(self, index: int) -> Mode:
        if self._whole or self._plan is None or self._neurons[index] is None:
            return "dense"
        return self._plan.modes[index]

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
        config, mode, survivors = self._config, self._mode(index), self._survivors
        neurons, tests, report = self._task(index, mode)
        rule, followers = (config.activation, config.activation_param), self._followers(index)
        if mode == "contribution" and not self.split:
            inward = inputs, layer.gate, layer.up
            find_contributors(
                out, hidden, survivors, *inward, neurons, tests, report, *rule, followers=followers
            )
            add_contributors(out, hidden, survivors, neurons)
            return
        candidates = self._candidates(index, inputs, split) if mode == "gate" else None
        find_survivors(
            out,
            survivors,
            inputs,
            None if self.split else layer.gate,
            neurons,
            tests,
            report,
            *rule,
            candidates=candidates,
            implied=None if candidates is None else self._implied_by(index - 1),
        )
        add_survivors(out, survivors, inputs, neurons, tests, report, rule[0], followers=followers)

    def _task(self, index: int, mode: Mode) -> tuple[DeviceNeurons, FfnTests, Tally]:
        """The neurons of a layer, what they must pass, and where that is reported."""
        neurons, plan = self._neurons[index], self._plan
        assert neurons is not None
        if mode == "dense":
            assert neurons.held is not None
            everyone = replace(neurons, weights=self._ones, norms=self._ones, alive=neurons.held)
            return everyone, self._open, self._unread
        assert plan is not None
        bounds = attention = None
        if (plan.floors is not None or plan.caps is not None) and not self.split:
            bounds = self._bounds[index]
        if plan.attention:
            attention = Attention(self.sharpness[index], self._rules[index], self._moved[index])
        if mode == "contribution" and self.split:
            neurons = replace(neurons, weights=self._ones)
        tests = FfnTests(self._cutoffs[index], self._core[index], bounds, attention)
        report = Tally(self._counts[index], self._captured[index], self._heat[index])
        return neurons, tests, report

    def _followers(self, index: int) -> Followers | None:
        names, implied = self._names[index], self._implied_by(index)
        return None if names is None or implied is None else Followers(names, implied)

    def _implied_by(self, index: int) -> Tensor | None:
        """What layer `index` makes candidates of the next, int32 [b, groups]; None if nothing."""
        plan, following = self._plan, index + 1
        if plan is None or not plan.implications or self.split:
            return None
        if index < 0 or following == self._config.n_layers or plan.modes[following] != "gate":
            return None
        implied: Tensor = self._implied[following]
        return None if self._names[index] is None else implied

    def _candidates(self, index: int, inputs: Activations, split: SplitSums) -> Tensor | None:
        """Masks int32 [b, groups], or None for everyone."""
        if self._source == "resampled":
            return self._chosen[index]
        guess = self._guesses[index]
        if self._source == "all" or guess is None:
            return None
        guess.name(self._predicted, inputs, split)
        return self._predicted

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last step, int64 [n_layers, 8]: the columns of `neuron_tables.COUNTS`, summed over
        its sequences."""
        counts = np.zeros((self._config.n_layers, len(COUNTS)), np.int64)
        if not self._whole:
            counts[:] = self._counts.cpu().numpy().sum(1)
        for index, row in enumerate(counts):
            row[_DENSE] = self._batch * (self._mode(index) == "dense")
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
