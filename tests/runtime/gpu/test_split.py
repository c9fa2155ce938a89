"""Engines whose FFNs are split between card and CPU, against those that have them whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from stem_runtime.engine import Engine
from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.gpu.placement import Placement
from stem_runtime.sampling import SamplingParams
from stem_runtime.sparsity.neurons import Neurons
from stem_runtime.sparsity.plan import FfnPlan

from ..skipping import mask_of, neurons_of
from ..sparse_steps import ACTIVE, CANDIDATES, DENSE, FFN, GATED, Models, guess, plan_of, run
from .engines import Make, engines

TOKENS = [5, 40, 7]
PLANS = {
    "gate": plan_of(2, "gate", 0.4, 0.1, core=True, sinks=1),
    "contribution": plan_of(2, "contribution", 0.0, 0.3),
    "predicted": plan_of(2, "gate", 0.2, candidates="predicted"),
    "attention": plan_of(2, "gate", 0.4, 0.1, attention=2.0),
}


@pytest.fixture
def make(device: str) -> Iterator[Make]:
    with engines(device) as make:
        yield make


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    models = Models(tmp_path_factory.mktemp("split"))
    # gates of 8 bits beside ups of 4: the memory that FFNs are lent holds both
    kinds: dict[str, Any] = dict.fromkeys(("q", "k", "v", "o", "up", "down"), "int4")
    return models(kinds | {"embed": "int8", "gate": "int8"}, n_layers=2, vocab_size=48)


@pytest.fixture(scope="module")
def neurons(model: PackedModel) -> Neurons:
    core = mask_of(np.random.default_rng(1).random(FFN) < 0.1)
    return neurons_of(
        model, core=core, predictor=guess(np.random.default_rng(3)), sharpness=(0.4, 0.1)
    )


def split(make: Make, model: PackedModel, neurons: Neurons | None, share: float) -> GpuEngine:
    """An engine with so many of the neurons on the card."""
    rng = np.random.default_rng(7)
    hot = np.stack([mask_of(rng.random(FFN) < share) for _ in range(2)])
    return make(model, "triton", neurons=neurons, placement=Placement(2, hot=hot), threads=1)


@pytest.mark.parametrize("name", PLANS)
def test_both_parts_leave_out_what_one_engine_does(
    name: str, model: PackedModel, neurons: Neurons, make: Make
) -> None:
    plan = PLANS[name]
    found = run(split(make, model, neurons, 0.4), plan, TOKENS)  # type: ignore[arg-type]
    with Engine(model, threads=1, neurons=neurons, outliers=False) as engine:
        want = run(engine, plan, TOKENS)
    assert np.abs(found.logits - want.logits).max() < 0.12 * want.logits.std()
    columns = [ACTIVE, DENSE] if name == "contribution" else [CANDIDATES, GATED, ACTIVE, DENSE]
    # what rounds the other way may move a neuron over a cut-off
    difference = np.abs(found.counts - want.counts)[..., columns]
    assert difference.max() <= 2, difference
    assert 0 < found.counts[1:, :, ACTIVE].mean() < 0.95 * FFN
    for part in ("captured", "heat", "sharpness"):
        mine, theirs = getattr(found, part), getattr(want, part)
        off = np.abs(mine - theirs) > 0.05 * theirs.max()
        assert off.mean() < 0.01, part


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_wherever_neurons_are_the_answer_is_the_dense_one(
    share: float, model: PackedModel, neurons: Neurons, make: Make
) -> None:
    engine = split(make, model, neurons, share)
    with Engine(model, threads=1, outliers=False) as alone:
        cache, known = alone.new_cache(16), engine.new_cache(16)
        # prompts have whole FFNs
        want, found = alone.prefill(cache, TOKENS), engine.prefill(known, TOKENS)
        for _ in range(2):
            assert np.abs(found - want).max() < 0.1 * want.std()
            token = int(want.argmax())
            want, found = alone.decode(cache, token), engine.decode(known, token)
        assert np.abs(found - want).max() < 0.1 * want.std()
    assert known.tokens == cache.tokens
    assert known.host is None


def test_several_texts_go_one_after_the_other(
    model: PackedModel, neurons: Neurons, make: Make
) -> None:
    engine = split(make, model, neurons, 0.5)
    plan = PLANS["gate"]
    engine.set_plan(plan)
    caches = engine.new_caches(2, 8)
    engine.prefill(caches[0], [5, 6])
    together = engine.decode_batch(caches, [9, 11], sparse=True)
    counts = engine.last_counts
    alone = []
    for cache, token in zip(caches, (9, 11), strict=True):
        cache.truncate(cache.length - 1)
        alone.append((engine.decode(cache, token, sparse=True).copy(), engine.last_counts))
    np.testing.assert_allclose(together, np.stack([row for row, _ in alone]), atol=1e-5)
    np.testing.assert_array_equal(counts, sum(found for _, found in alone))


def test_tokens_are_chosen_on_the_card(model: PackedModel, neurons: Neurons, make: Make) -> None:
    engine = split(make, model, neurons, 0.5)
    cache = engine.new_cache(16)
    engine.prefill(cache, TOKENS)
    text = [9]
    engine.begin_text(cache, SamplingParams(temperature=0.0), TOKENS)
    for _ in range(2):
        text.append(engine.follow(cache, text[-1]))
    cache.truncate(len(TOKENS))
    for token, chosen in pairwise(text):
        assert int(engine.decode(cache, token).argmax()) == chosen


def test_ffns_that_cannot_be_split_are_refused(
    model: PackedModel, neurons: Neurons, make: Make
) -> None:
    placement = Placement(2, hot=np.zeros((2, 4), np.uint32))
    for backend, known in (("torch", neurons), ("triton", None)):
        with pytest.raises(UsageError, match="takes Triton and a calibrated"):
            make(model, backend, neurons=known, placement=placement)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no gate rows"):
        make(model, "triton", neurons=neurons_of(model, "up"), placement=placement)


def test_a_plan_is_the_same_object_for_both(
    model: PackedModel, neurons: Neurons, make: Make
) -> None:
    engine = split(make, model, neurons, 0.5)
    with pytest.raises(UsageError):
        engine.set_plan(FfnPlan.exact(3))
    engine.set_plan(FfnPlan.exact(2))
    engine.set_plan(None)
    with pytest.raises(UsageError, match="no plan"):
        engine.decode(engine.new_cache(4), 5, sparse=True)
