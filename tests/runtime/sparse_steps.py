"""Steps of engines that leave neurons out, and how they are compared with the oracle's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_runtime.engine import Engine
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.kernels.oracle_sparse import Outcome
from stem_runtime.kv_cache import KVCache
from stem_runtime.neuron_tables import COUNTS
from stem_runtime.quant import Kind
from stem_runtime.sparsity.neurons import Neurons, Predictor
from stem_runtime.sparsity.plan import FfnPlan, Mode

from .skipping import Truth, mask_of
from .tiny import random_matrix, random_packed, tiny_config

CANDIDATES, GATED, ACTIVE, CORE, IMPLIED, FLOOR, CAP, DENSE = range(len(COUNTS))
FFN = 100
TOKENS = np.random.default_rng(0).integers(0, 301, 16).tolist()
EQUAL = 1e-4
"""Of the logits' spread: what another order of sums may change."""

F32 = NDArray[np.float32]


class Models:
    """One-layer models in which the FFN is most of what happens, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, PackedModel] = {}

    def __call__(self, kinds: Kind | dict[str, Kind] | None = None, **over: Any) -> PackedModel:
        key = f"{kinds} {over}"
        if key not in self._made:
            values = {"n_layers": 1, "vocab_size": 301, "ffn_dim": FFN, "residual_scale": 3.0}
            if over.get("activation") == "fatrelu":
                values["activation_param"] = 0.2
            folder, config = self._folder / str(len(self._made)), tiny_config(**values | over)
            self._made[key] = open_packed(random_packed(folder, config, 3, kinds))
        return self._made[key]


def guess(
    rng: np.random.Generator, rank: int = 32, std: float = 1.0, kind: Kind = "int4"
) -> Predictor:
    """A predictor that knows nothing, for 64 inputs; it names about half of the neurons."""
    axes = random_matrix(rng, rank, 64, kind, std=std)
    cutoffs = rng.normal(0.0, 8 * std * rank**0.5, FFN).astype(np.float32)
    return Predictor(axes, random_matrix(rng, FFN, rank, kind), cutoffs)


def plan_of(layers: int, mode: Mode, first: float, second: float = 0.0, **more: Any) -> FfnPlan:
    """One mode and pair of cut-offs for all layers; nothing runs dense unless it is asked for."""
    gates = (first if mode == "gate" else 0.0,) * layers
    return FfnPlan((mode,) * layers, gates, (second,) * layers, **{"sinks": 0} | more)


@dataclass(frozen=True, slots=True)
class Steps:
    """What an engine said of each token: [n, vocab], [n, layers, 8], [n, layers], [n, layers, ffn]
    contributions by which heat grew, [n, layers].
    """

    logits: F32
    counts: NDArray[np.int64]
    captured: F32
    heat: F32
    sharpness: F32


def run(
    engine: Engine,
    plan: FfnPlan,
    tokens: Sequence[int] = TOKENS,
    *,
    chosen: NDArray[np.bool_] | None = None,
    rest: bool = False,
) -> Steps:
    """Decode tokens. Without `rest` layers wake before each, and run as the plan says."""
    config, steps = engine.config, []
    cache = engine.new_cache(len(tokens))
    engine.set_plan(plan)
    for place, token in enumerate(tokens):
        if not rest:
            cache.rest[:] = 0
        if chosen is not None:
            cache.candidates = np.stack([mask_of(layer[place]) for layer in chosen])
        cache.heat = np.zeros((config.n_layers, -(-config.ffn_dim // 32) * 32), np.float32)
        logits = engine.decode(cache, token, sparse=True).copy()
        assert not cache.heat[:, config.ffn_dim :].any(), "neurons of padding"
        heat = cache.heat[:, : config.ffn_dim]
        steps.append((logits, engine.last_counts, cache.captured, heat, engine.last_sharpness))
    return Steps(*map(np.array, zip(*steps, strict=True)))


def judge(
    model: PackedModel,
    neurons: Neurons,
    plan: FfnPlan,
    *,
    chosen: NDArray[np.bool_] | None = None,
    threads: int = 2,
    kernels: str | None = None,
) -> Steps:
    """Decode TOKENS, and compare everything with the oracle."""
    with Engine(model, threads=threads, kernels=kernels, neurons=neurons) as engine:
        steps = run(engine, plan, chosen=chosen)
    truth = Truth(model, neurons, plan, TOKENS, chosen=chosen, sharpness=steps.sharpness.T)
    assert np.median(compare(steps, truth, plan)) < EQUAL
    return steps


def compare(steps: Steps, truth: Truth, plan: FfnPlan, *, most: float = 0.12) -> F32:
    """Logits are near the oracle's, and nearly all equal; returns how far off, of each token.

    Activations next to a half may be rounded to the other integer, which seldom happens, but then
    later tokens see it in the cache. Neurons are compared where nothing such has happened.
    """
    errors: F32 = np.abs(steps.logits - truth.logits).max(axis=1) / truth.logits.std()
    assert errors.max() < most, errors
    for layer, outcomes in enumerate(truth.outcomes):
        for place, outcome in enumerate(outcomes):
            counts = steps.counts[place, layer]
            if outcome is None:
                assert counts.tolist() == [0] * DENSE + [1]
            elif errors[place] < EQUAL:
                seen = (steps.captured[place, layer], steps.heat[place, layer])
                same_neurons(counts, *seen, outcome, plan.contribution_cutoffs[layer])
    return errors


def same_neurons(
    counts: NDArray[np.int64], captured: float, heat: F32, outcome: Outcome, cutoff: float
) -> None:
    """The same ones, but for those whose potential or contribution is next to its cut-off."""
    either = around(outcome.potentials, passing(outcome)) & outcome.candidates
    added = (either | around(outcome.contributions, cutoff)) & outcome.candidates
    assert counts[DENSE] == 0
    assert counts[CANDIDATES] == outcome.candidates.sum()
    assert abs(counts[GATED] - outcome.passed.sum()) <= either.sum()
    assert abs(counts[ACTIVE] - outcome.added.sum()) <= added.sum()
    size = 1e-3 * outcome.contributions.max()
    want = np.where(outcome.passed, outcome.contributions, 0.0)
    np.testing.assert_allclose(heat[~either], want[~either], rtol=1e-3, atol=size)
    total, open_ = (outcome.contributions[which].sum() for which in (outcome.added, added))
    assert abs(captured - total) <= open_ + 2e-3 * total + 1e-6


def around(values: NDArray[np.float64], cutoff: float) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.abs(values - cutoff) <= EQUAL * (cutoff + 1e-9)
    return found


def passing(outcome: Outcome) -> float:
    """Between the least potential that passes and the greatest that does not."""
    low = outcome.potentials[outcome.candidates & ~outcome.passed].max(initial=0.0)
    high = outcome.potentials[outcome.passed].min(initial=np.inf)
    return float(low if np.isinf(high) else (low + high) / 2)


def assert_float_order(found: F32, want: F32) -> None:
    """Equal but for the order of sums, and the few activations that round otherwise for it."""
    errors = np.abs(found - want).reshape(-1, want.shape[-1]).max(axis=1) / want.std()
    assert errors.max() < 0.12, errors
    assert np.quantile(errors, 0.25) < EQUAL, errors


def decode(engine: Engine, cache: KVCache, tokens: Sequence[int], **how: bool) -> F32:
    return np.stack([engine.decode(cache, token, **how).copy() for token in tokens])
