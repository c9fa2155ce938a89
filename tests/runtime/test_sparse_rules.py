"""What each rule does to the neurons of decoded tokens, on whole models, against the oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.engine import Engine
from stem_runtime.formats.packed import PackedModel
from stem_runtime.kernels.cpu.ffn import REST_TOKENS
from stem_runtime.quant import Kind, unpack
from stem_runtime.sparsity.neurons import Parts, layer_weights, with_dead
from stem_runtime.sparsity.plan import Candidates, FfnPlan, Mode

from .skipping import Truth, changed, mask_of, neurons_of
from .sparse_steps import (
    ACTIVE,
    CANDIDATES,
    CAP,
    CORE,
    DENSE,
    EQUAL,
    FFN,
    FLOOR,
    GATED,
    IMPLIED,
    TOKENS,
    Models,
    Steps,
    assert_float_order,
    compare,
    decode,
    guess,
    judge,
    plan_of,
    run,
)

MODES: tuple[Mode, ...] = ("gate", "contribution")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def bits(*places: int) -> NDArray[np.bool_]:
    found = np.zeros(FFN, np.bool_)
    found[list(places)] = True
    return found


@pytest.mark.parametrize("mode", MODES)
def test_the_core_is_always_added(models: Models, mode: Mode) -> None:
    """Even far under every cut-off, and outside of all candidate sets; but not without the rule."""
    model, core = models(), bits(0, 31, 32, 98)
    neurons = neurons_of(model, core=mask_of(core))
    plan = plan_of(1, mode, 1e9, 1e9, core=True)
    steps = judge(model, neurons, plan)
    assert np.all(steps.counts[:, 0, [ACTIVE, CORE]] == 4)
    without = judge(model, neurons, dataclasses.replace(plan, core=False))
    assert not without.counts[:, 0, [ACTIVE, CORE]].any()
    if mode == "gate":
        chosen = np.zeros((1, len(TOKENS), FFN), np.bool_)
        chosen[0, 5:, 40:50] = True
        plan = dataclasses.replace(plan, candidates="resampled")
        steps = judge(model, neurons, plan, chosen=chosen)
        assert np.all(steps.counts[:, 0, CANDIDATES] == np.where(np.arange(16) < 5, 4, 14))


@pytest.mark.parametrize("mode", MODES)
def test_dead_neurons_are_never_computed(models: Models, mode: Mode) -> None:
    model = models()
    alive = np.arange(FFN) % 3 > 0
    neurons = neurons_of(model, alive=mask_of(alive), core=mask_of(bits(0, 1)))
    steps = judge(model, neurons, plan_of(1, mode, 0.0, core=True))
    assert np.all(steps.counts[:, 0, CANDIDATES] == alive.sum())
    assert not steps.heat[:, 0, ~alive].any()


@pytest.mark.parametrize("candidates", ["all", "resampled", "predicted"])
def test_dead_neurons_need_no_weights(models: Models, candidates: Candidates) -> None:
    """The same bits come out with the weights of the others alone, in fewer bytes."""
    model, predictor = models(), guess(np.random.default_rng(5))
    alive = np.arange(FFN) % 3 > 0
    known = {"alive": mask_of(alive), "core": mask_of(bits(0, 1)), "predictor": predictor}
    whole = neurons_of(model, **known)
    few = changed(whole, 0, stored=layer_weights(model, 0, "gate", mask_of(alive)))
    layers = [neurons.layers[0] for neurons in (whole, few)]
    sizes = [0 if layer is None else len(layer.stored.records) for layer in layers]
    assert sizes == [FFN, alive.sum()]
    chosen = np.random.default_rng(1).random((1, len(TOKENS), FFN)) < 0.5
    plan = plan_of(1, "gate", 0.05, 0.1, candidates=candidates, core=True)
    found = []
    for neurons in (whole, few, with_dead(model, few)):
        with Engine(model, threads=1, neurons=neurons) as engine:
            found.append(run(engine, plan, chosen=chosen))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].logits, other.logits)
        np.testing.assert_array_equal(found[0].counts, other.counts)


@pytest.mark.parametrize("parts", ["up", "gate"])
@pytest.mark.parametrize("kind", ["int4", "int4m", "int8"])
def test_gates_of_the_dead_are_not_read(models: Models, kind: Kind, parts: Parts) -> None:
    """The others close up in tiles, however many a group has left, and wherever threads meet."""
    model, ffn = models(kind, ffn_dim=300), 300
    alive = np.random.default_rng(2).random(ffn) < 0.7
    alive[64:96], alive[131:160] = False, False
    whole = neurons_of(model, parts, alive=mask_of(alive))
    few = changed(whole, 0, stored=layer_weights(model, 0, parts, mask_of(alive)))
    layer = few.layers[0]
    assert layer is not None
    assert layer.stored.gates is not None
    gates = unpack(model.matrix("layers.0.gate"))
    np.testing.assert_array_equal(unpack(layer.stored.gates), gates[alive])
    for threads in (1, 2, 3, 11):
        found, read = [], []
        for neurons in (whole, few):
            with Engine(model, threads=threads, neurons=neurons) as engine:
                found.append(run(engine, plan_of(1, "gate", 0.05, 0.1)))
                read.append(engine.ffn_bytes(engine.last_counts))
        np.testing.assert_array_equal(found[0].logits, found[1].logits)
        np.testing.assert_array_equal(found[0].counts, found[1].counts)
        assert read[1] < read[0]


def bounded(model: PackedModel, plan: FfnPlan, threads: int) -> Steps:
    """Steps under a floor or a cap. Who passes is who should, but for two that are hard to part."""
    with Engine(model, threads=threads, neurons=neurons_of(model)) as engine:
        steps = run(engine, plan)
    # later tokens see what the first ones left in the cache, so that small differences grow
    for place, outcome in enumerate(Truth(model, neurons_of(model), plan, TOKENS).outcomes[0][:4]):
        assert outcome is not None
        passed = steps.heat[place, 0] > 0
        low = outcome.potentials[~passed].max(initial=0.0)
        assert outcome.potentials[passed].min() >= low * (1 - 1e-4)
        assert np.sum(passed != outcome.passed) <= 1
    return steps


@pytest.mark.parametrize("threads", [1, 3])
def test_a_cap_keeps_the_strongest(models: Models, threads: int) -> None:
    model = models()
    for cutoff in (0.0, 0.05):
        plan = plan_of(1, "gate", cutoff, caps=(10,))
        counts = bounded(model, plan, threads).counts[:, 0]
        assert counts[:, GATED].max() <= 10
        assert counts[:, GATED].mean() > 9.5  # two may be too alike to part
        assert np.all(counts[:, [FLOOR, CAP]] == [0, 1])
    free = judge(model, neurons_of(model), plan_of(1, "gate", 0.05, caps=(FFN,)))
    assert not free.counts[:, 0, [FLOOR, CAP]].any()
    most = int(free.counts[0, 0, GATED])
    for cap, acted in ((most, 0), (most - 1, 1)):
        counts = bounded(model, plan_of(1, "gate", 0.05, caps=(cap,)), threads).counts[0, 0]
        assert (counts[GATED], counts[CAP]) == (cap, acted)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_floor_lets_more_in(models: Models, threads: int) -> None:
    model = models()
    for cutoff in (5.0, 2.0):
        plan = plan_of(1, "gate", cutoff, floors=(20,))
        counts = bounded(model, plan, threads).counts[:, 0]
        moved = counts[:, FLOOR] == 1
        assert moved.any()
        assert not counts[:, CAP].any()
        assert counts[:, GATED].min() >= 20
        assert counts[moved, GATED].mean() < 20.5
    free = judge(model, neurons_of(model), plan_of(1, "gate", 0.05, floors=(20,)))
    assert not free.counts[:, 0, [FLOOR, CAP]].any()
    least = int(free.counts[0, 0, GATED])
    for floor, acted in ((least, 0), (least + 1, 1)):
        counts = bounded(model, plan_of(1, "gate", 0.05, floors=(floor,)), threads).counts[0, 0]
        assert (counts[GATED], counts[FLOOR]) == (floor, acted)


def test_the_core_joins_whatever_the_cap(models: Models) -> None:
    model = models()
    neurons = neurons_of(model, core=mask_of(bits(3, 50, 99)))
    with Engine(model, threads=2, neurons=neurons) as engine:
        steps = run(engine, plan_of(1, "gate", 0.0, caps=(10,), core=True))
    assert np.all(steps.heat[:, 0, [3, 50, 99]] > 0)
    assert steps.counts[:, 0, GATED].max() <= 13


def test_what_fired_names_candidates(models: Models) -> None:
    """Of the next layer, besides its set and its core; dense layers name nobody."""
    model = models(n_layers=4, residual_scale=1.0)
    implied = np.full((FFN, 2), -1, np.int32)
    implied[:, 1] = FFN - 1 - np.arange(FFN)
    neurons = neurons_of(model, implied=implied, core=mask_of(bits(7)))
    chosen = np.zeros((4, len(TOKENS), FFN), np.bool_)
    chosen[0], chosen[1, :, 60:], chosen[3, :, 40:50] = True, True, True
    plan = FfnPlan(
        ("gate", "gate", "dense", "gate"),
        (0.3, 0.1, 0.0, 0.1),
        (0.1, 0.0, 0.0, 0.0),
        candidates="resampled",
        core=True,
        implications=True,
        sinks=0,
    )
    for threads in (1, 3):
        steps = judge(model, neurons, plan, chosen=chosen, threads=threads)
        fired = (steps.heat[:, 0] > plan.contribution_cutoffs[0]) | bits(7)
        named = fired[:, ::-1] | chosen[1] | bits(7)
        assert steps.counts[:, 1, CANDIDATES].tolist() == named.sum(axis=1).tolist()
        more = (steps.heat[:, 1] > 0) & ~chosen[1] & fired[:, ::-1]
        assert steps.counts[:, 1, IMPLIED].tolist() == more.sum(axis=1).tolist()
        assert more.any()
        assert np.all(steps.counts[:, 3, CANDIDATES] == 11)
    without = judge(model, neurons, dataclasses.replace(plan, implications=False), chosen=chosen)
    assert np.all(without.counts[:, 1, CANDIDATES] == 41)
    assert not without.counts[:, :, IMPLIED].any()


def test_resting_layers_name_nobody(models: Models) -> None:
    model = models(n_layers=3, residual_scale=1.0)
    neurons = neurons_of(model, implied=np.arange(FFN, dtype=np.int32)[:, None])
    plan = plan_of(3, "gate", 0.0, candidates="resampled", implications=True)
    chosen = np.zeros((3, len(TOKENS), FFN), np.bool_)
    chosen[0], chosen[2, :, :10] = True, True
    with Engine(model, threads=2, neurons=neurons) as engine:
        counts = run(engine, plan, chosen=chosen, rest=True).counts
    assert counts[0, :, CANDIDATES].tolist() == [FFN, FFN, FFN]
    assert counts[1:, 0, DENSE].all()
    assert np.all(counts[REST_TOKENS, :, DENSE] == 1)


def test_the_first_positions_run_dense(models: Models) -> None:
    model = models(n_layers=2, residual_scale=1.0)
    neurons, plan = neurons_of(model), plan_of(2, "gate", 0.3, sinks=5)
    steps = judge(model, neurons, plan)
    assert steps.counts[:, :, DENSE].tolist() == [[1, 1]] * 5 + [[0, 0]] * 11
    with Engine(model, threads=2, neurons=neurons) as engine:
        dense = decode(engine, engine.new_cache(16), TOKENS)
    np.testing.assert_array_equal(steps.logits[:5], dense[:5])
    assert np.abs(steps.logits[5:] - dense[5:]).max(axis=1).min() > 0.01


def test_sharpness_is_the_largest_weight(models: Models) -> None:
    with Engine(model := models(attn_scale=1e-9), threads=3, neurons=neurons_of(model)) as engine:
        flat = run(engine, plan_of(1, "gate", 0.0)).sharpness[:, 0]
    np.testing.assert_allclose(flat, 1 / np.arange(1, 17), rtol=1e-3)
    with Engine(
        model := models(layer_windows=(1,)), threads=2, neurons=neurons_of(model)
    ) as engine:
        np.testing.assert_allclose(run(engine, plan_of(1, "gate", 0.0)).sharpness, 1.0, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_sharp_attention_lowers_the_cutoffs(models: Models, mode: Mode) -> None:
    model = models()
    neurons = neurons_of(model, sharpness=(0.5, 0.25))
    plan = plan_of(1, mode, 0.2, 0.2)
    even = judge(model, neurons, plan)
    moved = judge(model, neurons, dataclasses.replace(plan, attention=1.0))
    assert even.sharpness.max() == 1
    assert even.sharpness.min() < 0.4
    more = (moved.counts - even.counts)[:, 0, ACTIVE]
    sharp = even.sharpness[:, 0] > 0.5
    assert np.all(more[sharp] >= 0)
    assert np.all(more[~sharp] <= 0)
    assert more[sharp].max() > 0 > more[~sharp].min()
    # at most by a factor of 4, either way
    for strength, factor in (((0.0, 0.05), 0.25), ((2.0, 0.05), 4.0)):
        extreme = neurons_of(model, sharpness=strength)
        steps = judge(model, extreme, dataclasses.replace(plan, attention=8.0))
        same = judge(model, neurons, plan_of(1, mode, 0.2 * factor, 0.2 * factor))
        assert steps.counts.tolist() == same.counts.tolist()


def test_without_a_set_everyone_is_a_candidate(models: Models) -> None:
    model = models()
    steps = judge(
        model,
        neurons_of(model),
        plan_of(1, "gate", 0.1, candidates="resampled"),
        chosen=np.ones((1, 16, FFN), np.bool_),
    )
    with Engine(model, threads=2, neurons=neurons_of(model)) as engine:
        free = run(engine, plan_of(1, "gate", 0.1, candidates="resampled"))
    assert_float_order(free.logits, steps.logits)
    assert free.counts.tolist() == steps.counts.tolist()


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("rank", [1, 48, 64])
def test_a_predictor_names_the_candidates(models: Models, rank: int, kind: Kind) -> None:
    """Whatever its rank, and however small its numbers are."""
    model, predictor = models(), guess(np.random.default_rng(rank), rank, 1e-3, kind)
    predictor.cutoffs[90:] = np.finfo(np.float32).max
    neurons = neurons_of(model, predictor=predictor)
    for threads in (1, 2):
        plan = plan_of(1, "gate", 0.1, candidates="predicted")
        counts = judge(model, neurons, plan, threads=threads).counts[:, 0]
        assert 20 < counts[:, CANDIDATES].mean() < 70
        assert counts[:, CANDIDATES].std() > 1


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    modes=st.tuples(*[st.sampled_from(("gate", "gate", "contribution", "dense"))] * 3),
    candidates=st.sampled_from(("all", "resampled", "predicted")),
    switches=st.tuples(*[st.booleans()] * 4),
    activation=st.sampled_from(("silu", "drelu")),
    threads=st.integers(1, 4),
)
def test_rules_together(
    models: Models,
    seed: int,
    modes: tuple[Mode, ...],
    candidates: Candidates,
    switches: tuple[bool, ...],
    activation: str,
    threads: int,
) -> None:
    rng, count = np.random.default_rng(seed), len(TOKENS)
    model = models(n_layers=3, residual_scale=1.0, activation=activation)
    neurons = neurons_of(model, sharpness=(0.5, 0.3))
    for layer in range(3):
        neurons = changed(
            neurons,
            layer,
            core=mask_of(rng.random(FFN) < 0.1),
            alive=mask_of(rng.random(FFN) < 0.9),
            implied=rng.integers(-1, FFN, (FFN, 1 + layer)).astype(np.int32),
            predictor=guess(rng),
        )
    gates, downs = (tuple(rng.choice([0.0, 0.1, 0.4], 3).tolist()) for _ in range(2))
    core, implications, attention, sinks = switches
    plan = FfnPlan(
        modes,
        gates,
        downs,
        candidates,
        core=core,
        implications=implications,
        attention=1.5 * attention,
        sinks=2 * sinks,
    )
    chosen = rng.random((3, count, FFN)) < rng.random((3, count, 1))
    errors = []
    with Engine(model, threads=threads, neurons=neurons) as engine:
        for start in range(0, count, 4):  # short ones, so that differences do not go far
            tokens, sets = TOKENS[start : start + 4], chosen[:, start : start + 4]
            steps = run(engine, plan, tokens, chosen=sets)
            truth = Truth(model, neurons, plan, tokens, chosen=sets, sharpness=steps.sharpness.T)
            errors.append(compare(steps, truth, plan, most=0.3))
    assert np.median(errors) < EQUAL, errors
