"""Neurons that a plan leaves out on a card: in torch as the oracle, in kernels as in torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from stem_runtime.engine import Engine
from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.sparsity.neurons import Neurons
from stem_runtime.sparsity.plan import FfnPlan, Mode

from ..skipping import Truth, mask_of, neurons_of
from ..sparse_steps import (
    ACTIVE,
    CAP,
    CORE,
    DENSE,
    FLOOR,
    GATED,
    IMPLIED,
    Models,
    compare,
    guess,
    plan_of,
    run,
)
from ..sparse_steps import CANDIDATES as OFFERED
from ..sparse_steps import FFN as NEURONS
from ..sparse_steps import TOKENS as STEPS
from .engines import Make, engines


@pytest.fixture
def make(device: str) -> Iterator[Make]:
    with engines(device) as make:
        yield make


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("sparse"))


def masks(seed: int, share: float) -> NDArray[np.uint32]:
    return mask_of(np.random.default_rng(seed).random(NEURONS) < share)


PLANS = {
    "gate": plan_of(1, "gate", 0.5),
    "both": plan_of(1, "gate", 0.3, 0.2, core=True, sinks=3),
    "contribution": plan_of(1, "contribution", 0.0, 0.3, core=True),
    "predicted": plan_of(1, "gate", 0.2, candidates="predicted", core=True),
    "floor": plan_of(1, "gate", 0.5, floors=(60,)),
    "cap": plan_of(1, "gate", 0.1, caps=(20,), core=True),
    "attention": plan_of(1, "gate", 0.4, 0.1, attention=2.0),
}


def known(model: PackedModel) -> Neurons:
    return neurons_of(
        model,
        core=masks(1, 0.1),
        alive=masks(2, 0.9),
        predictor=guess(np.random.default_rng(3)),
        sharpness=(0.4, 0.1),
    )


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_plan_leaves_out_what_the_oracle_does(plan: FfnPlan, models: Models, make: Make) -> None:
    model = models()
    neurons = known(model)
    steps = run(make(model, neurons=neurons), plan)
    truth = Truth(model, neurons, plan, STEPS, sharpness=steps.sharpness.T, outliers=0)
    assert np.median(compare(steps, truth, plan)) < 1e-4
    counts = steps.counts[plan.sinks :, 0]
    assert (counts[:, ACTIVE] <= counts[:, GATED]).all()
    assert 0 < counts[:, ACTIVE].mean() < NEURONS
    assert counts[:, FLOOR].any() == (plan.floors is not None)
    assert counts[:, CAP].any() == (plan.caps is not None)
    assert counts[:, CORE].any() == plan.core
    assert steps.counts[:, 0, DENSE].sum() == plan.sinks


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_kernels_leave_out_what_torch_does(plan: FfnPlan, models: Models, make: Make) -> None:
    model = models(vocab_size=48)
    plan = dataclasses.replace(plan, sinks=min(plan.sinks, 1))
    neurons, tokens = known(model), [5, 40]
    found = run(make(model, "triton", neurons=neurons), plan, tokens)
    want = run(make(model, neurons=neurons), plan, tokens)
    np.testing.assert_allclose(found.logits, want.logits, atol=1e-3 * want.logits.std())
    np.testing.assert_array_equal(found.counts, want.counts)
    np.testing.assert_allclose(found.captured, want.captured, rtol=1e-3)
    np.testing.assert_allclose(found.heat, want.heat, atol=1e-3 * want.heat.max())
    np.testing.assert_allclose(found.sharpness, want.sharpness, rtol=1e-4)


def test_kernels_take_the_conversation_s_candidates(models: Models, make: Make) -> None:
    model = models(vocab_size=48)
    neurons, tokens = known(model), [5, 40]
    chosen = np.random.default_rng(4).random((1, 2, NEURONS)) < 0.4
    plan = plan_of(1, "gate", 0.3, candidates="resampled")
    engine = make(model, "triton", neurons=neurons)
    found = run(engine, plan, tokens, chosen=chosen)
    want = run(make(model, neurons=neurons), plan, tokens, chosen=chosen)
    np.testing.assert_array_equal(found.counts, want.counts)
    np.testing.assert_allclose(found.logits, want.logits, atol=1e-3 * want.logits.std())
    # another plan at the next token, and everyone as long as a cache knows of no candidates
    plan = plan_of(1, "gate", 0.1, candidates="resampled")
    engine.set_plan(plan)
    engine.decode(engine.new_cache(1), 5, sparse=True)
    assert engine.last_counts[0, OFFERED] > want.counts[:, 0, OFFERED].max()


def test_what_fired_names_candidates_of_the_next_layer(models: Models, make: Make) -> None:
    model, rng = models(n_layers=2), np.random.default_rng(5)
    implied = rng.integers(-1, NEURONS, (NEURONS, 3)).astype(np.int32)
    neurons = neurons_of(model, implied=implied)
    chosen = rng.random((2, len(STEPS), NEURONS)) < 0.4
    plan = plan_of(2, "gate", 0.3, candidates="resampled", implications=True)
    steps = run(make(model, neurons=neurons), plan, chosen=chosen)
    truth = Truth(model, neurons, plan, STEPS, chosen=chosen, outliers=0)
    assert np.median(compare(steps, truth, plan)) < 1e-4
    assert steps.counts[:, 1, IMPLIED].any()
    assert not steps.counts[:, 0, IMPLIED].any()
    assert (steps.counts[:, 1, OFFERED] < NEURONS).all()


@pytest.mark.parametrize("mode", ["gate", "contribution"])
def test_kernels_name_candidates_as_torch_does(mode: Mode, models: Models, make: Make) -> None:
    """By whichever test the first layer's neurons passed; the third layer is not asked by any."""
    model, rng = models(n_layers=3, vocab_size=48), np.random.default_rng(5)
    implied = rng.integers(-1, NEURONS, (NEURONS, 3)).astype(np.int32)
    neurons = neurons_of(model, implied=implied, core=masks(1, 0.1), alive=masks(2, 0.9))
    chosen = rng.random((3, 2, NEURONS)) < 0.3
    plan = plan_of(3, "gate", 0.3, 0.2, candidates="resampled", core=True, implications=True)
    plan = dataclasses.replace(plan, modes=(mode, "gate", "contribution"))
    tokens = [5, 40]
    found = run(make(model, "triton", neurons=neurons), plan, tokens, chosen=chosen)
    want = run(make(model, neurons=neurons), plan, tokens, chosen=chosen)
    np.testing.assert_array_equal(found.counts, want.counts)
    np.testing.assert_allclose(found.logits, want.logits, atol=1e-3 * want.logits.std())
    assert found.counts[:, 1, IMPLIED].all()
    assert not found.counts[:, [0, 2], IMPLIED].any()


def test_kernels_follow_every_rule_as_the_cpu_does(models: Models, make: Make) -> None:
    """But for floors and caps, which the CPU finds by halving."""
    model, rng = models(n_layers=2, vocab_size=48), np.random.default_rng(7)
    implied = rng.integers(-1, NEURONS, (NEURONS, 3)).astype(np.int32)
    neurons = neurons_of(model, implied=implied, core=masks(1, 0.1), sharpness=(0.4, 0.3))
    rules = {"core": True, "implications": True, "attention": 2.0, "sinks": 1}
    plan = plan_of(2, "gate", 0.4, 0.2, candidates="resampled", **rules)
    tokens = [5, 40, 7, 11]
    chosen = rng.random((2, len(tokens), NEURONS)) < 0.4
    found = run(make(model, "triton", neurons=neurons), plan, tokens, chosen=chosen)
    with Engine(model, threads=1, neurons=neurons, outliers=False) as cpu:
        want = run(cpu, plan, tokens, chosen=chosen)
    np.testing.assert_allclose(found.sharpness, want.sharpness, rtol=1e-2)
    np.testing.assert_allclose(found.logits, want.logits, atol=0.1 * want.logits.std())
    assert np.abs(found.counts - want.counts).max() <= 2
    assert found.counts[1:, 1, IMPLIED].any()
    assert found.counts[0, :, DENSE].all()


def test_reading_with_a_plan_is_the_cpu_s(models: Models, make: Make) -> None:
    model = models(n_layers=2)
    neurons = neurons_of(model, core=masks(1, 0.1), alive=masks(2, 0.9))
    engine, plan = make(model, neurons=neurons), plan_of(2, "gate", 0.3, 0.2, core=True, sinks=3)
    with Engine(model, threads=1, neurons=neurons, outliers=False) as cpu:
        both: tuple[Engine | GpuEngine, ...] = (engine, cpu)
        rows, heats = [], []
        for one in both:
            one.set_plan(plan)
            rows.append(one.logits(one.new_cache(64), STEPS, sparse=True))
            cache = one.new_cache(64)
            cache.heat = np.zeros((2, 128), np.float32)
            one.prefill(cache, STEPS)
            heats.append(cache.heat)
    assert np.median(np.abs(rows[0] - rows[1]).max(axis=1)) < 1e-3 * rows[1].std()
    np.testing.assert_allclose(*heats, atol=0.02 * heats[1].max())
    with pytest.raises(UsageError, match="not this model's"):
        engine.set_plan(plan_of(1, "gate", 0.1))
