"""FFN neurons that stay on the CPU, against the oracle, and the parts of an FFN against it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.engine import Engine
from stem_runtime.errors import UsageError
from stem_runtime.host_ffns import HostFfns
from stem_runtime.kernels import available, oracle
from stem_runtime.kv_cache import KVCache
from stem_runtime.quant import Kind, pack, unpack_plain
from stem_runtime.sparsity.neurons import Neurons, layer_weights, record_sizes
from stem_runtime.sparsity.plan import FfnPlan, Mode
from stem_runtime.threads import MAX_THREADS

from .host_split import F32, Asked, ask, judge, known, masks, some_inputs
from .skipping import changed, mask_of, neurons_of
from .sparse_steps import (
    ACTIVE,
    CANDIDATES,
    CORE,
    DENSE,
    FFN,
    GATED,
    TOKENS,
    Models,
    assert_float_order,
    plan_of,
    run,
)

VARIANTS = [name for name, lacks in available().items() if not lacks]
KINDS: tuple[Kind, ...] = ("int4", "int4m", "int8")
PLANS: dict[str, tuple[Mode, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "gate": ("gate", {}),
    "contribution": ("contribution", {}),
    "predicted": ("gate", {"candidates": "predicted"}),
    "resampled": ("gate", {"candidates": "resampled"}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# -- against the oracle


@pytest.mark.parametrize("share", [0.15, 0.5, 0.95])
@pytest.mark.parametrize("name", PLANS)
def test_every_plan(models: Models, rng: np.random.Generator, name: str, share: float) -> None:
    model, (mode, more) = models({"up": "int4m", "down": "int8"}), PLANS[name]
    plan = plan_of(1, mode, 0.1, 0.05, core=True, **more)
    asked = Asked(model, known(model, rng), rng.random(FFN) < share, plan, rng.random(FFN) < 0.4)
    found = judge(asked, some_inputs(rng, model))
    if name != "dense":
        counts = np.array([one.counts for one in found])
        assert 0 < counts[:, ACTIVE].mean() < counts[:, CANDIDATES].mean() <= asked.owned.sum()
        assert mode != "gate" or counts[:, CORE].any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_variant(
    models: Models, rng: np.random.Generator, kind: Kind, variant: str
) -> None:
    """No size is a multiple of what the kernels work in."""
    model = models(kind, d_model=200, head_dim=20, n_heads=3, kv_heads=1, ffn_dim=141)
    neurons, owned = known(model, rng), rng.random(141) < 0.6
    for name in ("dense", "gate", "contribution"):
        plan = plan_of(1, PLANS[name][0], 0.15, 0.1)
        judge(Asked(model, neurons, owned, plan, owned), some_inputs(rng, model), kernels=variant)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape_and_any_owned(models: Models, data: st.DataObject) -> None:
    draw = data.draw
    ffn, d_model = draw(st.sampled_from([1, 33, 96, 250])), draw(st.sampled_from([32, 72, 136]))
    activation = draw(st.sampled_from(["silu", "relu", "drelu", "gelu"]))
    model = models(
        draw(st.sampled_from(KINDS)), d_model=d_model, ffn_dim=ffn, activation=activation
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    owned = rng.random(ffn) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    mode, more = PLANS[draw(st.sampled_from(["dense", "gate", "contribution", "resampled"]))]
    plan = plan_of(1, mode, 0.2, 0.1, core=draw(st.booleans()), **more)
    asked = Asked(model, known(model, rng), owned, plan, rng.random(ffn) < 0.5)
    judge(asked, some_inputs(rng, model), threads=draw(st.integers(1, 3)))


def test_sharp_attention_moves_the_cutoffs(models: Models, rng: np.random.Generator) -> None:
    model = models()
    neurons = neurons_of(model, sharpness=(0.3, 0.1))
    plan = plan_of(1, "gate", 0.2, 0.1, attention=1.0)
    asked = Asked(model, neurons, rng.random(FFN) < 0.7, plan, np.ones(FFN, np.bool_))
    x = some_inputs(rng, model)
    gated = [
        sum(one.counts[GATED] for one in judge(dataclasses.replace(asked, sharpness=value), x))
        for value in (0.2, 0.3, 0.4)
    ]
    assert gated[0] < gated[1] < gated[2]


def test_everyone_adds_what_the_engine_adds(models: Models, rng: np.random.Generator) -> None:
    """In a whole model whose rest is the oracle's."""
    model = models(n_layers=2, residual_scale=1.0)
    neurons, everyone = known(model, rng), masks([np.ones(FFN, np.bool_)] * 2)
    plan = FfnPlan(("gate", "contribution"), (0.2, 0.0), (0.1, 0.2), "predicted", sinks=3)
    cache = KVCache(model.config, len(TOKENS))
    with closing(HostFfns(model, neurons, everyone, threads=2)) as ffns:
        ffns.set_plan(plan)

        def ffn(index: int, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
            cache.truncate(0)
            found = []
            for token, x in zip(TOKENS, inputs, strict=True):
                ffns.begin(cache, sparse=True)
                found.append(ffns.add(index, x.astype(np.float32)).astype(np.float64))
                cache.tokens.append(token)
            return np.stack(found)

        logits = oracle.forward_packed(model, TOKENS, ffn, outliers=0)
    with Engine(model, threads=2, neurons=neurons, outliers=False) as engine:
        assert_float_order(logits, run(engine, plan).logits)


# -- the parts and the whole


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_parts_add_up(models: Models, rng: np.random.Generator, name: str, activation: str) -> None:
    """But for hidden values, which are rounded by the peak of those that are there."""
    model, (mode, more) = models(activation=activation, n_layers=2), PLANS[name]
    neurons, chosen = known(model, rng), rng.random(FFN) < 0.4
    plan = dataclasses.replace(
        plan_of(2, mode, 0.1, 0.05, core=True, **more),
        floors=(90, 90),
        caps=(95, 95),
        implications=True,
    )
    part = rng.choice(3, (2, FFN), p=[0.6, 0.3, 0.1])
    everyone = np.ones((2, FFN), np.bool_)
    owned = [everyone, part == 0, part == 1, part == 2]
    inputs = some_inputs(rng, model)
    results = []
    for own in owned:
        with closing(HostFfns(model, neurons, masks(own), threads=2)) as ffns:
            ffns.set_plan(plan)
            asked = Asked(model, neurons, own[0], plan, chosen)
            results.append(
                [
                    ask(ffns, dataclasses.replace(asked, index=i % 2), x)
                    for i, x in enumerate(inputs)
                ]
            )
    for whole, *parts in zip(*results, strict=True):
        total = np.sum([one.y for one in parts], axis=0)
        assert np.abs(total - whole.y).max() < 0.05 * whole.y.std() + 1e-6
        if mode != "dense":
            assert whole.counts[ACTIVE] > 0
            np.testing.assert_array_equal(np.sum([p.counts for p in parts], axis=0), whole.counts)
            np.testing.assert_allclose(sum(p.captured for p in parts), whole.captured, rtol=1e-4)
            np.testing.assert_allclose(sum(p.heat for p in parts), whole.heat, atol=1e-5)


def test_what_is_elsewhere_is_not_read(models: Models, rng: np.random.Generator) -> None:
    """Or makes no difference: gates, of groups of which most are owned."""
    model = models()
    neurons, owned = known(model, rng), rng.random(FFN) < 0.3
    owned[32:64], owned[64:90] = False, True
    layer = neurons.layers[0]
    assert layer is not None
    assert layer.stored.gates is not None
    records, shared = layer.stored.records.copy(), layer.stored.shared.copy()
    records[~owned], shared[1] = 255, 255
    gates = unpack_plain(layer.stored.gates)
    gates.scales[~owned] = np.nan
    tiles = pack(gates, "gate", 64)
    stored = dataclasses.replace(layer.stored, records=records, shared=shared, gates=tiles)
    spoiled = Neurons((dataclasses.replace(layer, stored=stored),))
    for mode, more in PLANS.values():
        plan = plan_of(1, mode, 0.1, 0.05, core=True, **more)
        judge(Asked(model, spoiled, owned, plan, owned), some_inputs(rng, model))


def test_dead_neurons_have_records_here(models: Models, rng: np.random.Generator) -> None:
    """Prompts are read with them, whether a profile has dropped them or not."""
    model = models()
    alive = mask_of(np.arange(FFN) % 3 > 0)
    whole, owned = neurons_of(model, alive=alive), masks([np.ones(FFN, np.bool_)])
    few = changed(whole, 0, stored=layer_weights(model, 0, "gate", alive))
    x, found = some_inputs(rng, model)[0], []
    for neurons in (whole, few):
        with closing(HostFfns(model, neurons, owned, threads=1)) as ffns:
            found.append(ffns.add(0, x).copy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", PLANS)
def test_nobody_adds_nothing(models: Models, rng: np.random.Generator, name: str) -> None:
    """Also when the masks have bits behind the last neuron."""
    model, (mode, more) = models(), PLANS[name]
    owned = ~mask_of(np.ones(FFN, np.bool_))[None]
    assert owned.any()
    nobody = np.zeros(FFN, np.bool_)
    plan = plan_of(1, mode, 0.1, core=True, **more)
    asked = Asked(model, known(model, rng), nobody, plan, ~nobody)
    with closing(HostFfns(model, asked.neurons, owned, threads=3)) as ffns:
        ffns.set_plan(plan)
        for x in some_inputs(rng, model, 2):
            found = ask(ffns, asked, x)
            assert not found.y.any()
            assert found.counts.tolist() == [0] * DENSE + [mode == "dense"]
            assert ffns.ffn_bytes(ffns.counts) == 0 or name == "predicted"


# -- tokens and plans


@pytest.fixture
def most(models: Models, rng: np.random.Generator) -> Iterator[tuple[HostFfns, Asked]]:
    """Most of the neurons of three layers, under a plan of which each makes something else."""
    model = models(n_layers=3)
    owned = rng.random(FFN) < 0.6
    modes: tuple[Mode, ...] = ("gate", "dense", "contribution")
    plan = FfnPlan(modes, (0.2, 0.0, 9.0), (0.0, 9.0, 0.2), "resampled", sinks=2)
    asked = Asked(model, known(model, rng), owned, plan, rng.random(FFN) < 0.5)
    with closing(HostFfns(model, asked.neurons, masks([owned] * 3), threads=2)) as ffns:
        yield ffns, asked


def sums(ffns: HostFfns, cache: KVCache, x: F32, *, sparse: bool) -> list[F32]:
    ffns.begin(cache, sparse=sparse)
    return [ffns.add(index, x).copy() for index in range(3)]


def test_layers_and_tokens_differ(most: tuple[HostFfns, Asked], rng: np.random.Generator) -> None:
    ffns, asked = most
    (x,) = some_inputs(rng, asked.model, 1)
    cache = KVCache(asked.model.config, 16)
    everything = dataclasses.replace(asked, plan=plan_of(3, "dense", 0.0))
    whole = [dataclasses.replace(everything, index=i).truth(x).y for i in range(3)]
    with pytest.raises(UsageError, match="no plan"):
        ffns.begin(cache, sparse=True)
    assert_all_near(sums(ffns, cache, x, sparse=False), whole)
    assert ffns.counts.tolist() == [[0] * DENSE + [1]] * 3
    everyone = plan_of(3, "dense", 0.0)
    for plan in (everyone, asked.plan, everyone, asked.plan):
        ffns.set_plan(plan)
        cache.truncate(0)
        for _ in range(asked.plan.sinks if plan is asked.plan else 0):
            cache.candidates, cache.heat = None, np.zeros((3, 128), np.float32)
            assert_all_near(sums(ffns, cache, x, sparse=True), whole)
            assert ffns.counts.tolist() == [[0] * DENSE + [1]] * 3
            assert not cache.heat.any()
            cache.tokens.append(1)
        for chosen in (asked.chosen, ~asked.chosen, None):
            cache.candidates = None if chosen is None else masks([chosen] * 3)
            those = np.ones(FFN, np.bool_) if chosen is None else chosen
            here = dataclasses.replace(asked, plan=plan, chosen=those)
            want = [dataclasses.replace(here, index=i).truth(x) for i in range(3)]
            assert_all_near(sums(ffns, cache, x, sparse=True), [outcome.y for outcome in want])
            counted = ffns.counts
            for mode, row, outcome in zip(plan.modes, counted, want, strict=True):
                assert row[DENSE] == (mode == "dense")
                assert row[CANDIDATES] == (0 if mode == "dense" else outcome.candidates.sum())
        assert_all_near(sums(ffns, cache, x, sparse=False), whole)
    ffns.begin(cache, sparse=True)
    assert not ffns.counts[[0, 2]].any()


def assert_all_near(found: list[F32], want: Sequence[NDArray[np.floating]]) -> None:
    """Of few inputs; one activation may round otherwise for another order of sums."""
    for got, y in zip(found, want, strict=True):
        assert np.abs(got - y).max() < 0.03 * y.std()


def test_bytes_are_those_of_owned_neurons(most: tuple[HostFfns, Asked]) -> None:
    ffns, asked = most
    owned, model = int(asked.owned.sum()), asked.model
    gates = [int(part.sum()) for part in np.split(asked.owned, (32, 64, 96))]
    gates = [32 if count > 16 else count for count in gates]
    assert owned < sum(gates) < 4 * 32
    matrices = [model.matrix(f"layers.0.{name}") for name in ("gate", "up", "down")]
    gate, up, down = record_sizes(matrices[0], matrices[1], matrices[2], "gate")
    dense = np.array([[0] * DENSE + [1]] * 3)
    layer = asked.layer()
    whole = sum(gates) * gate + owned * (up + down) + layer.stored.shared.nbytes
    assert ffns.ffn_bytes(dense) == 3 * whole
    ffns.set_plan(asked.plan)
    sparse = dense.copy()
    sparse[0] = [10, 4, 2, 0, 0, 0, 0, 0]
    shared = ffns.ffn_bytes(sparse) - 2 * whole - 10 * gate - 4 * up - 2 * down
    assert 0 < shared < layer.stored.shared.nbytes


# -- what does not fit


def test_what_does_not_fit_is_refused(models: Models, rng: np.random.Generator) -> None:
    model = models(n_layers=2)
    neurons, owned = neurons_of(model), masks([np.ones(FFN, np.bool_)] * 2)
    wrongs: tuple[Any, ...] = owned[:1], owned[:, :3], owned.astype(np.int64)
    for wrong in wrongs:
        with pytest.raises(UsageError, match="another shape"):
            HostFfns(model, neurons, wrong)
    with pytest.raises(UsageError, match="another"):
        HostFfns(model, neurons_of(models(d_model=96, n_layers=2)), owned)
    for lacking in (neurons_of(model, "up"), Neurons((neurons.layers[0], None))):
        with pytest.raises(UsageError, match="no gate rows"):
            HostFfns(model, lacking, owned)
    for threads in (0, MAX_THREADS + 1):
        with pytest.raises(UsageError, match="threads must be"):
            HostFfns(model, neurons, owned, threads=threads)
    with closing(HostFfns(model, neurons, owned, threads=2)) as ffns:
        for plan, lacks in (
            (plan_of(3, "gate", 0.0), "3 layers"),
            (plan_of(2, "gate", 0.0, candidates="predicted"), "no predictor"),
        ):
            with pytest.raises(UsageError, match=lacks):
                ffns.set_plan(plan)
        ffns.set_plan(plan_of(2, "gate", 0.0))
        ffns.set_plan(None)
        cache = KVCache(model.config, 4)
        with pytest.raises(UsageError, match="no plan"):
            ffns.begin(cache, sparse=True)
        ffns.set_plan(plan_of(2, "gate", 0.0))
        cache.candidates = np.zeros((2, 3), np.uint32)
        with pytest.raises(UsageError, match="another model"):
            ffns.begin(cache, sparse=True)
        x = some_inputs(rng, model, 1)[0]
        for index in (-1, 2):
            with pytest.raises(UsageError, match="from 0 to 1"):
                ffns.add(index, x)
        with pytest.raises(ValueError, match="broadcast"):
            ffns.add(0, x[:3])
    ffns.close()
    closed: tuple[Callable[[], object], ...] = (
        lambda: ffns.add(0, x),
        lambda: ffns.begin(cache, sparse=False),
    )
    for call in closed:
        with pytest.raises(UsageError, match="closed"):
            call()
