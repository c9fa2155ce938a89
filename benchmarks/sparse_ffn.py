"""What the FFN costs when only a part of its neurons fires, against our own dense int4 FFN.

    python benchmarks/sparse_ffn.py [--shapes 2048x8192,4096x11008] [--rounds 7]

Random weights, more of them than any cache holds, and next to nothing but FFNs: one small attention
head a layer. Each active fraction is reached by one cut-off of the gate test per layer, so that the
neurons that fire change with every token. Dense and sparse steps take turns; a model without FFNs
says what the rest of a step takes, which is subtracted from both. Prints a Markdown table with the
bar 1/3 + 2/3 p + 0.08 next to each cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stem_runtime.engine import Engine
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.sparsity.neurons import (
    LayerNeurons,
    Neurons,
    layer_weights,
    mask_of,
)
from stem_runtime.sparsity.plan import FfnPlan
from tests.runtime.tiny import random_packed, tiny_config

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
WEIGHT_BYTES = 240e6
TOKENS = 12


def model_of(folder: Path, d_model: int, ffn: int) -> PackedModel:
    layers = max(2, round(WEIGHT_BYTES / (3 * d_model * ffn * 0.5625)))
    config = tiny_config(
        n_layers=layers,
        d_model=d_model,
        ffn_dim=ffn,
        n_heads=1,
        kv_heads=1,
        head_dim=32,
        vocab_size=64,
        layer_windows=(0,) * layers,
    )
    return open_packed(random_packed(folder, config, kinds="int4"))


def neurons_of(model: PackedModel) -> Neurons:
    ffn = model.config.ffn_dim
    ones, everyone = np.ones(ffn, np.float32), mask_of(np.ones(ffn, np.bool_))
    layers = []
    for index in range(model.config.n_layers):
        stored = layer_weights(model, index, "up")
        layers.append(LayerNeurons(stored, ones, ones, 0 * everyone, everyone))
    return Neurons(tuple(layers))


def plan_of(engine: Engine, tokens: list[int], fraction: float) -> FfnPlan:
    """Cut-offs at which `fraction` of each layer's neurons pass, found layer by layer at once."""
    layers, ffn = engine.config.n_layers, engine.config.ffn_dim
    low, high = np.zeros(layers), np.full(layers, 16.0)
    if fraction >= 1:
        return FfnPlan.exact(layers)
    for _ in range(14):
        middle = (low + high) / 2
        engine.set_plan(plan(middle))
        counts = np.zeros(layers)
        cache = engine.new_cache(len(tokens))
        for token in tokens[:6]:
            engine.decode(cache, token, sparse=True)
            counts += engine.last_counts[:, 1]
        many = counts / 6 > fraction * ffn
        low, high = np.where(many, middle, low), np.where(many, high, middle)
    return plan(high)


def plan(cutoffs: np.ndarray) -> FfnPlan:
    layers = len(cutoffs)
    return FfnPlan(("gate",) * layers, tuple(map(float, cutoffs)), (0.0,) * layers, sinks=0)


def step_seconds(engine: Engine, tokens: list[int], sparse: bool) -> float:
    cache = engine.new_cache(len(tokens))
    start = time.perf_counter()
    for token in tokens:
        engine.decode(cache, token, sparse=sparse)
    return (time.perf_counter() - start) / len(tokens)


def measure(d_model: int, ffn: int, rounds: int) -> None:
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 64, TOKENS)]
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(Path(folder) / "model", d_model, ffn)
        little = tiny_config(
            n_layers=model.config.n_layers,
            d_model=d_model,
            ffn_dim=32,
            n_heads=1,
            kv_heads=1,
            head_dim=32,
            vocab_size=64,
            layer_windows=(0,) * model.config.n_layers,
        )
        rest = open_packed(random_packed(Path(folder) / "rest", little, kinds="int4"))
        with Engine(model, neurons=neurons_of(model)) as engine, Engine(rest) as other:
            for fraction in FRACTIONS:
                engine.set_plan(plan_of(engine, tokens, fraction))
                times: list[tuple[float, float, float]] = []
                active = 0.0
                for _ in range(rounds):
                    sparse = step_seconds(engine, tokens, sparse=True)
                    active = float(engine.last_counts[:, 1].mean()) / ffn
                    dense = step_seconds(engine, tokens, sparse=False)
                    times.append((dense, sparse, step_seconds(other, tokens, sparse=False)))
                cost = median((s - r) / (d - r) for d, s, r in times)
                if fraction >= 1:  # layers of which all fire run dense
                    active = 1.0
                bar = 1 / 3 + 2 / 3 * active + 0.08
                dense = median(d - r for d, _, r in times)
                rate = (
                    sum(
                        model.matrix(f"layers.{i}.{n}").nbytes
                        for i in range(little.n_layers)
                        for n in ("gate", "up", "down")
                    )
                    / dense
                    / 1e9
                )
                print(
                    f"| {d_model} x {ffn} | {active:.3f} | {cost:.3f} | {bar:.3f} | "
                    f"{'reached' if cost <= bar else 'missed'} | {rate:.1f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="2048x8192,4096x11008")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print("| d x ffn | active fraction | cost of dense | bar | | dense GB/s |")
    print("|---|---|---|---|---|---|")
    for shape in options.shapes.split(","):
        d_model, ffn = map(int, shape.split("x"))
        measure(d_model, ffn, options.rounds)


if __name__ == "__main__":
    main()
