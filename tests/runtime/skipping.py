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

    No layer rests. `chosen` bool [n_layers, n, ffn] are the candidates of a plan that takes the
    conversation's own, `sharpness` [n_layers, n] is what attention was like, where the plan asks.
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
        outliers: int = oracle.OUTLIERS,
    ) -> None:
        self.outliers = outliers
        self.model, self.neurons, self.plan = model, neurons, plan
        self.chosen, self.sharpness = chosen, sharpness
        self.outcomes: list[list[Outcome | None]] = []
        self.logits = oracle.forward_packed(model, tokens, self._layer, outliers=outliers)

    def _layer(self, index: int, x: F64) -> F64:
        config, layer = self.model.config, self.neurons.layers[index]
        assert layer is not None
        gate, up, down = (self.model.matrix(f"layers.{index}.{n}") for n in ("gate", "up", "down"))
        ffn = oracle_sparse.Ffn(
            gate, up, down, config.activation, config.activation_param, layer.weights, layer.norms
        )
        candidates = self._candidates(index, layer, x)
        tests = [
            self._tests(index, layer, place, None if candidates is None else candidates[place])
            for place in range(len(x))
        ]
        found = oracle_sparse.sparse_ffn(ffn, tests, x, self.outliers)
        self.outcomes.append(
            [None if t.mode == "dense" else out for t, out in zip(tests, found, strict=True)]
        )
        return np.stack([outcome.y for outcome in found])

    def _tests(
        self, index: int, layer: LayerNeurons, place: int, candidates: Bools | None
    ) -> oracle_sparse.Tests:
        plan, ffn, factor = self.plan, self.model.config.ffn_dim, 1.0
        if plan.attention:
            assert self.sharpness is not None
            factor = oracle_sparse.multiplier(
                plan.attention, *layer.sharpness, float(self.sharpness[index, place])
            )
        return oracle_sparse.Tests(
            "dense" if place < plan.sinks else plan.modes[index],
            factor * plan.gate_cutoffs[index],
            factor * plan.contribution_cutoffs[index],
            candidates,
            bits_of(layer.core, ffn) if plan.core else None,
            bits_of(layer.alive, ffn),
            0 if plan.floors is None else plan.floors[index],
            None if plan.caps is None else plan.caps[index],
        )

    def _candidates(self, index: int, layer: LayerNeurons, x: F64) -> Bools | None:
        """Those of all tokens, [n, ffn], or None for everyone."""
        if self.plan.candidates == "all":
            return None
        if self.plan.candidates == "predicted":
            assert layer.predictor is not None
            guess = layer.predictor
            parts = guess.axes, guess.scores, guess.cutoffs
            found = oracle_sparse.predicted(*parts, x, self.outliers)
        else:
            assert self.chosen is not None
            found = self.chosen[index].copy()
        before = self.neurons.layers[index - 1] if index else None
        if self.plan.implications and before is not None and before.implied is not None:
            for candidates, outcome in zip(found, self.outcomes[index - 1], strict=True):
                if outcome is not None:
                    named = before.implied[outcome.added]
                    candidates[named[named >= 0]] = True
        return found
