"""FFNs of tiny models neuron by neuron, and the oracle's view of a plan for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_runtime.formats.packed import PackedModel
from stem_runtime.kernels import oracle, oracle_sparse
from stem_runtime.kernels.oracle_sparse import Outcome
from stem_runtime.quant import unpack
from stem_runtime.sparsity.neurons import LayerNeurons, Neurons, Parts, bits_of, layer_weights
from stem_runtime.sparsity.neurons import mask_of as mask_of
from stem_runtime.sparsity.plan import FfnPlan

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


def neurons_of(model: PackedModel, parts: Parts = "gate", **changed: Any) -> Neurons:
    """Neurons whose u is of size 0.7, all alive, none always on; `changed` holds in every layer."""
    ffn, layers = model.config.ffn_dim, []
    for index in range(model.config.n_layers):
        norms = np.linalg.norm(unpack(model.matrix(f"layers.{index}.down")), axis=0)
        layers.append(
            LayerNeurons(
                layer_weights(model, index, parts),
                (0.7 * norms).astype(np.float32),
                norms.astype(np.float32),
                core=mask_of(np.zeros(ffn, np.bool_)),
                alive=mask_of(np.ones(ffn, np.bool_)),
            )
        )
    return Neurons(tuple(dataclasses.replace(layer, **changed) for layer in layers))


def changed(neurons: Neurons, layer: int, **values: Any) -> Neurons:
    """The same but for one layer."""
    layers = list(neurons.layers)
    kept = layers[layer]
    assert kept is not None
    layers[layer] = dataclasses.replace(kept, **values)
    return Neurons(tuple(layers))


class Truth:
    """The oracle's forward pass under a plan; `outcomes[layer][token]` is None for a dense FFN.

    `chosen` bool [n_layers, n, ffn] are the candidates of a plan that takes the conversation's own,
    `sharpness` [n_layers, n] is what attention was like, where the plan asks.
    """

    def __init__(
        self,
        model: PackedModel,
        neurons: Neurons,
        plan: FfnPlan,
        tokens: Sequence[int],
        *,
        chosen: Bools | None = None,
        sharpness: F32 | None = None,
        resting: Bools | None = None,
    ) -> None:
        self.model, self.neurons, self.plan = model, neurons, plan
        self.chosen, self.sharpness, self.resting = chosen, sharpness, resting
        self.outcomes: list[list[Outcome | None]] = []
        self.logits = oracle.forward_packed(model, tokens, self._layer)

    def sets(self, name: str) -> NDArray[np.int64]:
        """How many candidates, passed or added, [n_layers, n]; a dense FFN counts none."""
        return np.array(
            [
                [0 if out is None else int(getattr(out, name).sum()) for out in layer]
                for layer in self.outcomes
            ]
        )

    def _layer(self, index: int, x: F64) -> F64:
        self.outcomes.append([])
        return np.stack([self._token(index, place, row) for place, row in enumerate(x)])

    def _token(self, index: int, place: int, x: F64) -> F64:
        plan, config, layer = self.plan, self.model.config, self.neurons.layers[index]
        assert layer is not None
        resting = self.resting is not None and bool(self.resting[index, place])
        dense = plan.modes[index] == "dense" or place < plan.sinks or resting
        gate, up, down = (self.model.matrix(f"layers.{index}.{n}") for n in ("gate", "up", "down"))
        ffn = oracle_sparse.Ffn(
            gate, up, down, config.activation, config.activation_param, layer.weights, layer.norms
        )
        factor = 1.0
        if plan.attention:
            assert self.sharpness is not None
            mean, spread = layer.sharpness
            sharpness = float(self.sharpness[index, place])
            factor = oracle_sparse.multiplier(plan.attention, mean, spread, sharpness)
        tests = oracle_sparse.Tests(
            "dense" if dense else plan.modes[index],
            factor * plan.gate_cutoffs[index],
            factor * plan.contribution_cutoffs[index],
            self._candidates(index, place, x),
            bits_of(layer.core, config.ffn_dim) if plan.core else None,
            bits_of(layer.alive, config.ffn_dim),
            0 if plan.floors is None else plan.floors[index],
            None if plan.caps is None else plan.caps[index],
        )
        outcome = oracle_sparse.sparse_ffn(ffn, tests, x)
        self.outcomes[-1].append(None if dense else outcome)
        return outcome.y

    def _candidates(self, index: int, place: int, x: F64) -> Bools | None:
        layer = self.neurons.layers[index]
        assert layer is not None
        if self.plan.candidates == "all":
            return None
        if self.plan.candidates == "predicted":
            assert layer.predictor is not None
            found = oracle_sparse.predicted(
                layer.predictor.axes, layer.predictor.scores, layer.predictor.cutoffs, x
            )
        else:
            assert self.chosen is not None
            found = self.chosen[index, place].copy()
        before = self.outcomes[index - 1][place] if index else None
        if self.plan.implications and before is not None:
            implied = self.neurons.layers[index - 1].implied  # type: ignore[union-attr]
            assert implied is not None
            named = implied[before.added]
            found[named[named >= 0]] = True
        return found
