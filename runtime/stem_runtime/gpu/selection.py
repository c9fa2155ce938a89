"""Which neurons of the FFNs a plan leaves out, in plain torch operations; see `docs/sparse-ffn.md`.

Everything is computed for every neuron and then taken away, as the oracle does. Layers of which
nearly all neurons fire do not rest here: no neuron was spared in the first place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import ModelConfig
from ..kernels.gpu.matrix import DeviceMatrix
from ..neuron_tables import COUNTS
from ..quant import GROUP, groups_of
from ..sparsity.neurons import LayerNeurons, Neurons, bits_of
from ..sparsity.plan import FfnPlan
from .cache import GpuCache
from .torch_math import hidden_of, linear

Tensor = torch.Tensor

DENSE = [0] * (len(COUNTS) - 1) + [1]
"""The counts of a layer that skipped nothing."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What is known of one layer's neurons, on the device; masks are bool [ffn]."""

    weights: Tensor
    norms: Tensor
    core: Tensor
    alive: Tensor
    implied: Tensor | None
    axes: DeviceMatrix | None
    scores: DeviceMatrix | None
    cutoffs: Tensor | None
    sharpness: tuple[float, float]


class Selection:
    """Applies a plan to the hidden values of a pass, and counts what it did.

    `begin` names the pass; then every layer in turn goes through `decode` or `read`, the second
    for many tokens at once, which have neither candidates nor bounds.
    """

    def __init__(self, config: ModelConfig, neurons: Neurons, device: torch.device) -> None:
        self._config, self._device = config, device
        self._layers = [self._upload(layer) for layer in neurons.layers]
        self.plan: FfnPlan | None = None
        self._implied: Tensor | None = None
        self._chosen: Tensor | None = None
        self._forget()

    def _upload(self, layer: LayerNeurons | None) -> _Layer | None:
        if layer is None:
            return None
        ffn, predictor = self._config.ffn_dim, layer.predictor
        return _Layer(
            self._tensor(layer.weights),
            self._tensor(layer.norms),
            self._tensor(bits_of(layer.core, ffn)),
            self._tensor(bits_of(layer.alive, ffn)),
            None if layer.implied is None else self._tensor(layer.implied.astype(np.int64)),
            None if predictor is None else DeviceMatrix.of(predictor.axes, self._device),
            None if predictor is None else DeviceMatrix.of(predictor.scores, self._device),
            None if predictor is None else self._tensor(predictor.cutoffs),
            layer.sharpness,
        )

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.tensor(array, device=self._device)

    def begin(self, cache: GpuCache, *, sparse: bool) -> None:
        """Forget the last pass and take what `cache` knows of neurons."""
        self._forget()
        self._sparse, self._start = sparse, cache.length
        if cache.candidates is not None:
            ffn = self._config.ffn_dim
            chosen = np.stack([bits_of(mask, ffn) for mask in cache.candidates])
            self._chosen = self._tensor(chosen)

    def _forget(self) -> None:
        layers, neurons = len(self._layers), groups_of(self._config.ffn_dim) * GROUP
        self._heat = torch.zeros((layers, neurons), device=self._device)
        self._counts = torch.zeros((layers, len(COUNTS)), dtype=torch.int64, device=self._device)
        self._captured = torch.zeros(layers, device=self._device)
        self._sharpness = torch.zeros(layers, device=self._device)
        self._implied = self._chosen = None

    def decode(self, index: int, x: Tensor, gate: Tensor, hidden: Tensor, sharp: Tensor) -> Tensor:
        """Hidden values [1, ffn] of one token, zero where its tests leave a neuron out."""
        self._sharpness[index] = sharp[0]
        if not self._sparse:
            return hidden
        layer, mode = self._layers[index], self._mode(index)
        implied, self._implied = self._implied, None
        if layer is None or mode == "dense":
            self._counts[index] = torch.tensor(DENSE, device=self._device)
            return hidden
        assert self.plan is not None
        factor = self._multiplier(layer, sharp[0])
        contributions = hidden[0].abs() * layer.norms
        core = layer.core & self.plan.core
        if mode == "gate":
            offered, passed, counts = self._gate_test(index, layer, x, gate, implied, factor)
        else:
            offered, passed, counts = layer.alive, layer.alive, {}
        found = contributions > factor * self.plan.contribution_cutoffs[index]
        if mode == "contribution":
            counts["core_added"] = (core & passed & ~found).sum()
        kept = (found | core) & passed
        counts |= {"candidates": offered.sum(), "gated": passed.sum(), "active": kept.sum()}
        for name, count in counts.items():
            self._counts[index, COUNTS.index(name)] = count
        self._heat[index, : len(passed)] += contributions * passed
        self._captured[index] = (contributions * kept).sum()
        self._implied = self._imply(index, layer, kept)
        return hidden * kept

    def read(self, index: int, _x: Tensor, gate: Tensor, hidden: Tensor, _sharp: Tensor) -> Tensor:
        """Hidden values [n, ffn] of many tokens. Heat grows by all that pass the gate test."""
        layer, plan = self._layers[index], self.plan
        if layer is None:
            return hidden
        first = plan.sinks - self._start if plan is not None and self._sparse else len(hidden)
        tested = torch.arange(len(hidden), device=self._device)[:, None] >= first
        mode = "dense" if plan is None else plan.modes[index]
        if plan is None or mode == "dense":
            tested = torch.zeros_like(tested)
        passed = torch.ones_like(hidden, dtype=torch.bool)
        kept = passed
        if plan is not None:
            core = layer.core & plan.core
            if mode == "gate":
                passed = (self._potentials(layer, gate) > plan.gate_cutoffs[index]) | core
            passed = passed & layer.alive | ~tested
            found = hidden.abs() * layer.norms > plan.contribution_cutoffs[index]
            kept = passed & (found | core) | ~tested
        self._heat[index, : hidden.shape[1]] += (hidden.abs() * layer.norms * passed).sum(0)
        return hidden * kept

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last pass, int64 [n_layers, 8]: the columns of `neuron_tables.COUNTS`."""
        return self._counts.cpu().numpy()

    @property
    def captured(self) -> NDArray[np.float32]:
        """Of the last pass, float32 [n_layers]: the active neurons' contributions summed."""
        return self._captured.cpu().numpy()

    @property
    def heat(self) -> NDArray[np.float32]:
        """Of the last pass, float32 [n_layers, 32 * groups]: contributions by neuron."""
        return self._heat.cpu().numpy()

    @property
    def sharpness(self) -> NDArray[np.float32]:
        """Of the last decoded token, float32 [n_layers]."""
        return self._sharpness.cpu().numpy()

    def _mode(self, index: int) -> str:
        plan = self.plan
        return "dense" if plan is None or self._start < plan.sinks else plan.modes[index]

    def _multiplier(self, layer: _Layer, sharp: Tensor) -> Tensor:
        """What a token's cut-offs are multiplied by: less where its attention is sharp."""
        assert self.plan is not None
        mean, spread = layer.sharpness
        return torch.exp(self.plan.attention / spread * (mean - sharp)).clamp(0.25, 4.0)

    def _potentials(self, layer: _Layer, gate: Tensor) -> Tensor:
        return hidden_of(self._config, gate, torch.ones_like(gate)).abs() * layer.weights

    def _gate_test(
        self,
        index: int,
        layer: _Layer,
        x: Tensor,
        gate: Tensor,
        implied: Tensor | None,
        factor: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Whose gates count, who of them passes, and counts of the rules that acted."""
        assert self.plan is not None
        offered, more = self._offered(index, layer, x, implied)
        core = layer.core & offered & self.plan.core
        potentials = torch.where(offered, self._potentials(layer, gate)[0], 0.0)
        found = potentials > factor * self.plan.gate_cutoffs[index]
        held = found | core
        counts = {"core_added": (core & ~found).sum(), "implied_added": (more & held).sum()}
        ranks = potentials.argsort(descending=True, stable=True).argsort()
        floor = 0 if self.plan.floors is None else self.plan.floors[index]
        cap = len(held) if self.plan.caps is None else self.plan.caps[index]
        over, under = held.sum() > cap, held.sum() < floor
        counts |= {"cap": over.long(), "floor": under.long()}
        bounded = torch.where(over, found & (ranks < cap), (potentials > 0) & (ranks < floor))
        return offered, torch.where(over | under, bounded | core, held), counts

    def _offered(
        self, index: int, layer: _Layer, x: Tensor, implied: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The candidates, and those that are it only because the layer before fired as it did."""
        assert self.plan is not None
        nobody = torch.zeros_like(layer.alive)
        if self.plan.candidates == "predicted":
            assert layer.axes is not None
            assert layer.scores is not None
            assert layer.cutoffs is not None
            chosen = linear(layer.scores, linear(layer.axes, x))[0] > layer.cutoffs
        elif self.plan.candidates == "resampled" and self._chosen is not None:
            chosen = self._chosen[index]
        else:
            return layer.alive, nobody
        more = nobody if implied is None else implied & ~chosen
        return (chosen | more | (layer.core & self.plan.core)) & layer.alive, more

    def _imply(self, index: int, layer: _Layer, kept: Tensor) -> Tensor | None:
        """The neurons of the next layer that those which fired here make candidates."""
        assert self.plan is not None
        following = index + 1 < len(self._layers) and self.plan.modes[index + 1] == "gate"
        if not (self.plan.implications and following) or layer.implied is None:
            return None
        named = torch.where(kept[:, None], layer.implied, -1)
        implied = torch.zeros(len(kept) + 1, dtype=torch.bool, device=self._device)
        implied[named.flatten()] = True  # -1 is the one that stands for none
        return implied[:-1]
