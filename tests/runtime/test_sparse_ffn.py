"""Decoding with the neurons that matter, on whole models, against the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stem_runtime.config import ACTIVATIONS
from stem_runtime.engine import Engine
from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel
from stem_runtime.kernels import available
from stem_runtime.kernels.cpu import layout
from stem_runtime.kernels.cpu.ffn import LONGEST_REST, REST_TOKENS
from stem_runtime.quant import Kind, PackedMatrix
from stem_runtime.sparsity.exact import exact_neurons
from stem_runtime.sparsity.neurons import Neurons, Parts, layer_weights
from stem_runtime.sparsity.plan import FfnPlan, Mode

from .mapped_files import mapped
from .skipping import Truth, changed, mask_of, neurons_of
from .sparse_steps import (
    ACTIVE,
    CANDIDATES,
    DENSE,
    F32,
    FFN,
    GATED,
    TOKENS,
    Models,
    assert_float_order,
    compare,
    decode,
    guess,
    judge,
    plan_of,
    run,
)

VARIANTS = [name for name, lacks in available().items() if not lacks]
MODES: tuple[Mode, ...] = ("gate", "contribution")
KINDS: tuple[Kind, ...] = ("int4", "int4m", "int8")
EXACT = ("relu", "relu2", "fatrelu", "drelu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def cutoff_of(model: PackedModel, mode: Mode, share: float) -> float:
    """What a share of the neurons is over, of all tokens together; 1 passes everyone."""
    truth = Truth(model, neurons_of(model), plan_of(model.config.n_layers, mode, 0.0), TOKENS)
    name = "potentials" if mode == "gate" else "contributions"
    values = np.array([[getattr(o, name) for o in layer] for layer in truth.outcomes])
    return float(0.0 if share == 1 else np.quantile(values, 1 - share) if share else 1e9)


# -- against the oracle


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_active_fraction(models: Models, activation: str) -> None:
    number = ACTIVATIONS.index(activation)
    model = models(KINDS[number % 3], activation=activation)
    neurons = neurons_of(model)
    for mode in MODES:
        seen = []
        for share in (0.0, 0.03, 0.3, 0.7, 1.0):
            cutoff = cutoff_of(model, mode, share)
            plan = plan_of(1, mode, cutoff, cutoff if mode == "contribution" else 0.0)
            seen.append(judge(model, neurons, plan).counts[:, 0, ACTIVE].mean() / FFN)
        assert seen == sorted(seen)
        assert seen[0] == 0
        assert seen[-1] > (0.2 if activation in EXACT else 0.99)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_variant(models: Models, kind: Kind, variant: str) -> None:
    """No size is a multiple of what the kernels work in; both tests at once leave some neurons."""
    shape = {"d_model": 200, "head_dim": 20, "n_heads": 3, "kv_heads": 1, "ffn_dim": 141}
    model = models(kind, **shape)
    ways: tuple[tuple[Parts, Mode], ...] = (
        ("down", "contribution"),
        ("up", "gate"),
        ("gate", "gate"),
    )
    for parts, mode in ways:
        plan = plan_of(1, mode, 0.15, 0.1)
        steps = judge(model, neurons_of(model, parts), plan, kernels=variant)
        counts = steps.counts[:, 0].mean(axis=0)
        assert 0.1 * 141 < counts[ACTIVE] < 0.9 * counts[CANDIDATES] == 0.9 * 141


@pytest.mark.parametrize("ffn", [1, 32, 33, 250])
@pytest.mark.parametrize("d_model", [32, 64, 72, 136])
def test_sizes(models: Models, d_model: int, ffn: int) -> None:
    kinds: dict[str, Kind] = {"gate": "int8", "up": "int4m", "down": KINDS[d_model % 3]}
    model = models(kinds, d_model=d_model, ffn_dim=ffn)
    for mode in MODES:
        judge(model, neurons_of(model), plan_of(1, mode, 0.2, 0.1), threads=1 + ffn % 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sets_that_change_with_each_token(
    models: Models, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing outside of them is computed, wherever they lie and however small they are; and the
    same whether records are read where they are or from an arena."""
    model = models({"gate": "int4m", "up": "int8"})
    neurons = neurons_of(model)
    chosen = np.zeros((1, len(TOKENS), FFN), np.bool_)
    rng = np.random.default_rng(1)
    for place in range(3, len(TOKENS)):
        chosen[0, place] = rng.random(FFN) < place / len(TOKENS)
    chosen[0, 1, 98:], chosen[0, 2, :3], chosen[0, 5, 32:], chosen[0, 6] = True, True, False, True
    for threads in (1, 3):
        plan = plan_of(1, "gate", 0.05, candidates="resampled")
        judge(model, neurons, plan, chosen=chosen, threads=threads, kernels=variant)
        in_file = mapped(neurons, tmp_path / f"records{threads}")
        judge(model, in_file, plan, chosen=chosen, threads=threads, kernels=variant)
        with monkeypatch.context() as patch:  # whole groups by rows as well, as an arena has them
            patch.setattr(layout, "GATE_ROWS", 32)
            seen, again = (
                judge(model, n, plan, chosen=chosen, threads=threads, kernels=variant)
                for n in (neurons, in_file)
            )
        np.testing.assert_array_equal(again.logits, seen.logits)
        np.testing.assert_array_equal(again.counts, seen.counts)
        np.testing.assert_array_equal(again.heat, seen.heat)


def test_layers_differ(models: Models) -> None:
    """Each layer has a mode and cut-offs of its own; plans change between tokens."""
    kinds: dict[str, Kind] = {"gate": "int8", "up": "int4", "down": "int4m"}
    model = models(kinds, n_layers=4, residual_scale=1.0)
    modes: tuple[Mode, ...] = ("gate", "contribution", "dense", "gate")
    plan = FfnPlan(modes, (0.2, 0.0, 0.0, 0.1), (0.0, 0.3, 0.0, 0.2), sinks=3)
    steps = judge(model, neurons_of(model), plan)
    assert np.all(steps.counts[3:, :, DENSE] == [0, 0, 1, 0])
    assert np.all(steps.counts[:3, :, DENSE] == 1)


# -- exactness


@pytest.fixture(params=EXACT)
def zeros(request: pytest.FixtureRequest, models: Models) -> Iterator[Engine]:
    model = models(activation=request.param, n_layers=3, residual_scale=1.0)
    with Engine(model, threads=2, neurons=exact_neurons(model)) as engine:
        engine.set_plan(FfnPlan.exact(3))
        yield engine


def test_zeros_are_left_out_and_nothing_changes(zeros: Engine) -> None:
    """However the tokens are read: one by one, all at once, or first so and then so."""
    engine = zeros
    dense = decode(engine, engine.new_cache(16), TOKENS)
    sparse = decode(engine, engine.new_cache(16), TOKENS, sparse=True)
    assert np.all(engine.last_counts[:, ACTIVE] < 0.7 * FFN)
    assert_float_order(sparse, dense)
    assert_float_order(engine.logits(engine.new_cache(16), TOKENS, sparse=True), dense)
    for count in (1, 5):
        cache = engine.new_cache(16)
        engine.prefill(cache, TOKENS[:count])
        rest = decode(engine, cache, TOKENS[count:], sparse=True)
        assert_float_order(rest, dense[count:])


@pytest.mark.parametrize("mode", MODES)
def test_reading_at_once_leaves_out_what_decoding_does(models: Models, mode: Mode) -> None:
    model = models(n_layers=2, residual_scale=1.0)
    core, alive = np.arange(FFN) % 10 == 0, np.arange(FFN) % 7 > 0
    neurons = neurons_of(model, core=mask_of(core), alive=mask_of(alive))
    plan = plan_of(2, mode, 0.2, 0.15, core=True, sinks=6)
    with Engine(model, threads=2, neurons=neurons) as engine:
        steps = run(engine, plan)
        cache = engine.new_cache(16)
        parts = [engine.logits(cache, part, sparse=True) for part in (TOKENS[:4], TOKENS[4:])]
        together = np.concatenate(parts)
        dense = engine.logits(engine.new_cache(16), TOKENS)
    assert_float_order(together, steps.logits)
    assert np.abs(together - dense).max() > 0.5 * dense.std()
    compare(steps, Truth(model, neurons, plan, TOKENS), plan)


# -- what steps leave behind


def test_heat_is_what_neurons_contributed(models: Models) -> None:
    """Of all tokens read at once; of one decoded, those who passed the gate test."""
    model = models("int8", n_layers=2, residual_scale=1.0)
    neurons, plan = neurons_of(model), plan_of(2, "contribution", 0.0, 0.3)
    truth = Truth(model, neurons, plan_of(2, "gate", 0.0), TOKENS)
    want = np.array([sum(o.contributions for o in layer if o) for layer in truth.outcomes])
    with Engine(model, threads=3, neurons=neurons) as engine:
        for count in (16, 3):
            cache = engine.new_cache(16)
            cache.heat = np.zeros((2, 128), np.float32)
            engine.prefill(cache, TOKENS[:count])
            engine.logits(cache, TOKENS[count:]) if count < 16 else None
            np.testing.assert_allclose(cache.heat[:, :FFN], want, rtol=0.02, atol=0.02)
            assert not cache.heat[:, FFN:].any()
        alone = run(engine, plan_of(2, "contribution", 0.0)).heat.sum(axis=0)
        np.testing.assert_allclose(alone, want, rtol=0.02, atol=0.02)
        steps = run(engine, plan)
    for place in range(2, 16):
        active = np.where(steps.heat[place] > 0.3, steps.heat[place], 0).sum(axis=1)
        np.testing.assert_allclose(steps.captured[place], active, rtol=1e-5)


def test_layers_that_leave_out_next_to_nothing_rest(models: Models) -> None:
    model = models(n_layers=2, residual_scale=1.0, ffn_dim=96)
    neurons = neurons_of(model)
    tokens = 16 * TOKENS
    for mode in MODES:
        gates = (0.001, 0.5) if mode == "gate" else (0.0, 0.0)
        plan = FfnPlan((mode, mode), gates, (0.0, 1e9), sinks=2)
        with Engine(model, threads=2, neurons=neurons) as engine:
            steps = run(engine, plan, tokens, rest=True)
            again = run(engine, plan, tokens, rest=True)
        found = [1, 1]
        for rest in (REST_TOKENS, 31, 63, LONGEST_REST, LONGEST_REST):
            found += [0, *[1] * rest]
        assert steps.counts[:, 0, DENSE].tolist() == found[: len(tokens)]
        assert steps.counts[:, 1, DENSE].tolist() == [1, 1] + [0] * (len(tokens) - 2)
        np.testing.assert_array_equal(again.logits, steps.logits)
        np.testing.assert_array_equal(again.counts, steps.counts)


def test_a_layer_that_leaves_out_much_forgets_its_rests(models: Models) -> None:
    model = models()
    with Engine(model, threads=2, neurons=neurons_of(model)) as engine:
        cache = engine.new_cache(8)
        rests = []
        for cutoff in (0.001, 0.001, 0.9, 0.001):
            engine.set_plan(plan_of(1, "gate", cutoff))
            cache.rest[:, 0] = 0
            engine.decode(cache, 5, sparse=True)
            rests.append(cache.rest[0].tolist())
        cache.rest[:] = 0, LONGEST_REST
        engine.decode(cache, 5, sparse=True)
        assert cache.rest[0].tolist() == [LONGEST_REST] * 2
    assert rests == [[15, 15], [31, 31], [0, 0], [15, 15]]


def test_a_sequence_begins_rested(models: Models) -> None:
    """Or goes on from what it was before, or from what was read at once."""
    model = models()
    with Engine(model, threads=2, neurons=neurons_of(model)) as engine:
        engine.set_plan(plan_of(1, "gate", 0.001))
        for kept in (0, 1, None):
            cache = engine.new_cache(16)
            for _ in range(2):  # the first puts the layer to rest
                engine.decode(cache, 5, sparse=True)
            assert engine.last_counts[0, DENSE] == 1
            if kept is None:
                engine.prefill(cache, TOKENS[:3])
            else:
                cache.truncate(kept)
            engine.decode(cache, 5, sparse=True)
            assert engine.last_counts[0, DENSE] == 0


# -- threads


@pytest.mark.parametrize("where", ["everywhere", "front", "end", "nowhere"])
def test_the_number_of_threads_does_not_show(models: Models, where: str) -> None:
    """Wherever the active neurons are, and with more threads than groups."""
    model = models(ffn_dim=300)
    alive = np.full(300, where == "everywhere")
    alive[{"front": slice(0, 20), "end": slice(280, 300)}.get(where, slice(0, 0))] = True
    neurons, plan = neurons_of(model, alive=mask_of(alive)), plan_of(1, "gate", 0.1, 0.05)
    seen = [judge(model, neurons, plan, threads=threads) for threads in (1, 2, 3, 4, 11)]
    for other in seen[1:]:
        assert_float_order(other.logits, seen[0].logits)
        assert other.counts.tolist() == seen[0].counts.tolist()


# -- what does not fit, and what is broken


def test_what_does_not_fit_is_refused(models: Models) -> None:
    model = models(n_layers=2)
    neurons = neurons_of(model)
    with Engine(model, threads=1) as engine:
        for call in (
            lambda: engine.decode(engine.new_cache(2), 1, sparse=True),
            lambda: engine.logits(engine.new_cache(2), [1], sparse=True),
            lambda: engine.set_plan(None),
            lambda: engine.last_counts,
        ):
            with pytest.raises(UsageError, match="without neurons to skip"):
                call()
    with Engine(model, threads=1, neurons=neurons) as engine:
        with pytest.raises(UsageError, match="no plan"):
            engine.decode(engine.new_cache(2), 1, sparse=True)
        with pytest.raises(UsageError, match="3 layers"):
            engine.set_plan(plan_of(3, "gate", 0.0))
        with pytest.raises(UsageError, match="no predictor"):
            engine.set_plan(plan_of(2, "gate", 0.0, candidates="predicted"))
        engine.set_plan(plan_of(2, "gate", 0.0))
        cache = engine.new_cache(2)
        cache.candidates = np.zeros((2, 3), np.uint32)
        with pytest.raises(UsageError, match="another model"):
            engine.decode(cache, 1, sparse=True)
        assert cache.length == 0
    lacking: tuple[tuple[Parts, FfnPlan, str], ...] = (
        ("down", plan_of(2, "gate", 0.0), "rows of up"),
        ("up", plan_of(2, "gate", 0.0, candidates="resampled"), "gate rows"),
    )
    for parts, plan, lacks in lacking:
        with Engine(model, threads=1, neurons=neurons_of(model, parts)) as engine:
            with pytest.raises(UsageError, match=lacks):
                engine.set_plan(plan)
            engine.set_plan(plan_of(2, "contribution", 0.0))


def test_neurons_of_another_model_are_refused(models: Models) -> None:
    model, predictor = models(), guess(np.random.default_rng(0))
    foreign = [neurons_of(models(ffn_dim=96)), neurons_of(models(d_model=96))]
    foreign += [neurons_of(models("int8")), neurons_of(models(n_layers=2))]
    wrong: list[dict[str, Any]] = [
        {"weights": np.ones(FFN - 1, np.float32)},
        {"norms": np.ones((FFN, 1), np.float32)},
        {"core": np.zeros(3, np.uint32)},
        {"alive": np.zeros(5, np.uint32)},
        {"implied": np.full((FFN - 1, 2), -1, np.int32)},
        {"implied": np.full((FFN, 2), FFN, np.int32)},
        {"predictor": dataclasses.replace(predictor, cutoffs=np.zeros(3, np.float32))},
        {"predictor": dataclasses.replace(predictor, axes=predictor.scores)},
        {"predictor": dataclasses.replace(predictor, scores=predictor.axes)},
        {"stored": layer_weights(models(d_model=96), 0, "up")},
    ]
    foreign += [neurons_of(model, **values) for values in wrong]
    for neurons in foreign:
        with pytest.raises(UsageError, match="another"):
            Engine(model, threads=1, neurons=neurons)
    Engine(model, threads=1, neurons=neurons_of(model, predictor=predictor)).close()


def test_layers_without_neurons_run_dense(models: Models) -> None:
    model = models(n_layers=2, residual_scale=1.0)
    neurons = neurons_of(model)
    some = Neurons((neurons.layers[0], None))
    plan = FfnPlan(("gate", "dense"), (0.2, 0.0), (0.0, 0.0), sinks=0)
    with Engine(model, threads=2, neurons=some) as engine:
        with pytest.raises(UsageError, match="Layer 1 has no neurons"):
            engine.set_plan(plan_of(2, "gate", 0.0))
        steps = run(engine, plan)
        compare(steps, Truth(model, neurons, plan, TOKENS), plan)
        assert_float_order(engine.logits(engine.new_cache(16), TOKENS, sparse=True), steps.logits)
        cache = engine.new_cache(16)
        cache.heat = np.zeros((2, 128), np.float32)
        engine.prefill(cache, TOKENS)
        assert cache.heat[0].any()
        assert not cache.heat[1].any()


@pytest.mark.parametrize("broken", ["inputs", "gate", "up", "down", "weights", "norms"])
def test_broken_numbers_crash_nothing(
    models: Models, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They spoil logits at most: every count stays one of neurons."""
    model = models()
    neurons = neurons_of(model)
    values = np.ones(FFN, np.float32)
    values[::3], values[1::5] = np.nan, np.inf
    whole, vector = PackedModel.matrix, PackedModel.vector
    if broken in ("weights", "norms"):
        neurons = changed(neurons, 0, **{broken: values})
    else:

        def spoiled(self: PackedModel, name: str) -> PackedMatrix:
            matrix = whole(self, name)
            if name.rpartition(".")[2] != broken:
                return matrix
            tiles = matrix.joined().copy()
            tiles[::2, 0, :2], tiles[1::2, 0, :2] = (0x00, 0x7E), (0x00, 0x7C)
            return PackedMatrix.of_tiles(name, matrix.rows, matrix.cols, matrix.kind, tiles)

        def spoiled_vector(self: PackedModel, name: str) -> F32:
            found = vector(self, name)
            return found * np.nan if broken == "inputs" and name.endswith("ffn_norm") else found

        monkeypatch.setattr(PackedModel, "matrix", spoiled)
        monkeypatch.setattr(PackedModel, "vector", spoiled_vector)
        with np.errstate(invalid="ignore"):
            neurons = neurons_of(model)
    for mode, more in (
        ("gate", {}),
        ("gate", {"caps": (5,)}),
        ("gate", {"floors": (50,), "candidates": "resampled"}),
        ("contribution", {}),
    ):
        with Engine(model, threads=2, neurons=neurons) as engine:
            plan = plan_of(1, mode, 0.3, 0.1, attention=1.0, **more)  # type: ignore[arg-type]
            counts = run(engine, plan).counts[:, 0]
            engine.logits(engine.new_cache(16), TOKENS, sparse=True)
        assert np.all(np.diff(counts[:, [CANDIDATES, GATED, ACTIVE]], axis=1) <= 0)
        assert counts[:, CANDIDATES].max() <= FFN
        assert counts.min() >= 0
