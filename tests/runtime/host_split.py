"""Some neurons of one FFN, asked for as a card would, and what the oracle says they add."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from stem_runtime.formats.packed import PackedModel
from stem_runtime.host_ffns import HostFfns
from stem_runtime.kernels import oracle_sparse
from stem_runtime.kernels.cpu import layout as L
from stem_runtime.kernels.oracle_sparse import Outcome
from stem_runtime.kv_cache import KVCache
from stem_runtime.quant import GROUP, groups_of
from stem_runtime.sparsity.neurons import LayerNeurons, Neurons, bits_of
from stem_runtime.sparsity.plan import FfnPlan

from .skipping import mask_of, neurons_of
from .sparse_steps import DENSE, EQUAL, FFN, guess, same_neurons

COUNT = 8

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


def known(model: PackedModel, rng: np.random.Generator) -> Neurons:
    """Some of which are dead, some always on, and of which a predictor names about half.

    Of some nothing is to be expected, so that they never pass the gate test.
    """
    ffn = model.config.ffn_dim
    predictor = guess(rng) if (model.config.d_model, ffn) == (64, FFN) else None
    core, alive = rng.random(ffn) < 0.05, rng.random(ffn) < 0.9
    neurons = neurons_of(model, core=mask_of(core), alive=mask_of(alive), predictor=predictor)
    for layer in neurons.layers:
        assert layer is not None
        layer.weights[::9] = 0
    return neurons


def masks(owned: Sequence[Bools]) -> NDArray[np.uint32]:
    return np.stack([mask_of(layer) for layer in owned])


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One layer's FFN as it is asked for: who is there, the plan, the cache's own candidates."""

    model: PackedModel
    neurons: Neurons
    owned: Bools
    plan: FfnPlan
    chosen: Bools
    index: int = 0
    sharpness: float = 0.0

    def layer(self) -> LayerNeurons:
        layer = self.neurons.layers[self.index]
        assert layer is not None
        return layer

    def tests(self, x: F32) -> oracle_sparse.Tests:
        layer, ffn = self.layer(), self.model.config.ffn_dim
        if self.plan.modes[self.index] == "dense":
            return oracle_sparse.Tests("gate", alive=self.owned)
        alive = self.owned & bits_of(layer.alive, ffn)
        candidates, first = None, 0.0
        if self.plan.modes[self.index] == "gate":
            first = self.plan.gate_cutoffs[self.index]
            if self.plan.candidates == "resampled":
                candidates = self.chosen
            elif layer.predictor is not None and self.plan.candidates == "predicted":
                found = layer.predictor
                args = (found.axes, found.scores, found.cutoffs)
                candidates = oracle_sparse.predicted(*args, x[None])[0]
        factor = 1.0
        if self.plan.attention:
            factor = oracle_sparse.multiplier(self.plan.attention, *layer.sharpness, self.sharpness)
        return oracle_sparse.Tests(
            "gate",
            factor * first,
            factor * self.plan.contribution_cutoffs[self.index],
            candidates,
            bits_of(layer.core, ffn) if self.plan.core else None,
            alive,
        )

    def truth(self, x: F32) -> Outcome:
        """The oracle's outcome, in which neurons that are elsewhere are dead."""
        config, layer = self.model.config, self.layer()
        gate, up, down = (
            self.model.matrix(f"layers.{self.index}.{name}") for name in ("gate", "up", "down")
        )
        ones, gated = np.ones(config.ffn_dim, np.float32), self.plan.modes[self.index] == "gate"
        weights = layer.weights if gated else ones
        names = config.activation, config.activation_param
        ffn = oracle_sparse.Ffn(gate, up, down, *names, weights, layer.norms)
        return oracle_sparse.sparse_ffn(ffn, [self.tests(x)], x[None])[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    y: F32
    counts: NDArray[np.int64]
    captured: float
    heat: F32


def ask(ffns: HostFfns, asked: Asked, x: F32) -> Found:
    """What neurons add for one input, of a token of its own."""
    config, index = asked.model.config, asked.index
    cache = KVCache(config, 16)
    cache.candidates = np.stack([mask_of(asked.chosen)] * config.n_layers)
    cache.heat = np.zeros((config.n_layers, GROUP * groups_of(config.ffn_dim)), np.float32)
    ffns.begin(cache, sparse=True)
    y = ffns.add(index, x, asked.sharpness).copy()
    assert not cache.heat[:, config.ffn_dim :].any(), "neurons of padding"
    heat = cache.heat[index, : config.ffn_dim]
    return Found(y, ffns.counts[index], float(ffns.captured[index]), heat)


def judge(
    asked: Asked, inputs: F32, *, threads: int = 2, kernels: str | None = None
) -> list[Found]:
    """What the owned neurons add to some inputs, all of it compared with the oracle."""
    owned = masks([asked.owned] * asked.model.config.n_layers)
    with closing(
        HostFfns(asked.model, asked.neurons, owned, threads=threads, kernels=kernels)
    ) as ffns:
        ffns.set_plan(asked.plan)
        args = ffns._work.args  # memory to work in may hold anything
        ctypes.memset(int(args[L.SCRATCH]), 255, threads * int(args[L.SCRATCH_BYTES]))
        found = [ask(ffns, asked, x) for x in inputs]
    truth = [asked.truth(x) for x in inputs]
    spread = max(float(np.std([outcome.y for outcome in truth])), 1e-6)
    errors = [np.abs(f.y - t.y).max() / spread for f, t in zip(found, truth, strict=True)]
    assert max(errors) < 0.12, errors
    assert np.median(errors) < EQUAL, errors
    dense = asked.plan.modes[asked.index] == "dense"
    for one, outcome, error in zip(found, truth, errors, strict=True):
        if dense:
            assert one.counts.tolist() == [0] * DENSE + [1]
            assert one.captured == 0
            assert not one.heat.any()
        elif error < EQUAL:
            cutoff = asked.tests(inputs[0]).contribution_cutoff
            same_neurons(one.counts, one.captured, one.heat, outcome, cutoff)
    return found


def some_inputs(rng: np.random.Generator, model: PackedModel, count: int = COUNT) -> F32:
    return rng.standard_normal((count, model.config.d_model), np.float32)
