"""The residual stream after a model's first layers, for whoever computes the others elsewhere."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stem_runtime import workspace
from stem_runtime.engine import Cancelled, Engine
from stem_runtime.errors import ContextFullError, UsageError
from stem_runtime.formats.packed import PackedModel
from stem_runtime.kernels import available, oracle
from stem_runtime.kv_cache import KVCache
from stem_runtime.sparsity.neurons import Neurons
from stem_runtime.sparsity.plan import FfnPlan
from stem_runtime.team import Team

from .skipping import Truth, changed, mask_of, neurons_of
from .sparse_steps import EQUAL, FFN, Models, assert_float_order

VARIANTS = [name for name, lacks in available().items() if not lacks]
CHUNK = 16
TOKENS = np.random.default_rng(4).integers(0, 301, 2 * CHUNK + 7).tolist()
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "odd": {"d_model": 72, "head_dim": 20, "n_heads": 3, "kv_heads": 1, "tied_head": False},
    "gemma3": {"family": "gemma3", "layer_windows": (5, 0, 5)},
    "minicpm": {"family": "minicpm", "d_model": 60, "head_dim": 20, "n_heads": 3, "kv_heads": 3},
}
PARTS = {
    "one by one": [1] * len(TOKENS),
    "at once": [len(TOKENS)],
    "whole chunks": [2 * CHUNK, 7],
    "mixed": [3, 1, CHUNK, 1, CHUNK + 2],
}

F32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PackedModel]:
    make = Models(tmp_path_factory.mktemp("models"))

    def three_layers(**over: Any) -> PackedModel:
        return make(**{"n_layers": 3, "residual_scale": 1.0} | over)

    return three_layers


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_CHUNK", CHUNK)


@pytest.fixture
def first(models: Callable[..., PackedModel]) -> Iterator[Engine]:
    with Engine(models().first_layers(2), threads=2) as engine:
        yield engine


def read(engine: Engine, parts: Sequence[int], **how: bool) -> F32:
    cache, done = engine.new_cache(len(TOKENS)), list[F32]()
    for count in parts:
        done.append(engine.residual(cache, TOKENS[cache.length :][:count], **how).copy())
    assert cache.tokens == TOKENS
    return np.concatenate(done)


def goes_on(model: PackedModel, start: int, x: F32) -> F32:
    """The layers from `start` on, in plain NumPy: logits of what the ones before made of tokens."""
    config = model.config
    rest = dataclasses.replace(
        config,
        n_layers=config.n_layers - start,
        layer_windows=config.layer_windows[start:],
        embed_scale=1.0,
    )

    def shifted(name: str) -> str:
        if not name.startswith("layers."):
            return name
        _, index, last = name.split(".")
        return f"layers.{int(index) + start}.{last}"

    def linear(name: str, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        outliers = 0 if name.endswith("down") else oracle.OUTLIERS
        return oracle.matmul(model.matrix(shifted(name)), inputs, outliers)

    def vector(name: str) -> NDArray[np.floating]:
        return model.vector(shifted(name))

    return oracle._forward(rest, x, vector, linear, np.float16)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_other_layers_go_on_from_it(
    models: Callable[..., PackedModel], name: str, variant: str
) -> None:
    model = models(**SHAPES[name])
    want = oracle.forward_packed(model, TOKENS)
    for count, parts in zip((1, 2, 1, 3), PARTS.values(), strict=True):
        with Engine(model.first_layers(count), threads=2, kernels=variant) as engine:
            found = read(engine, parts)
        assert found.shape == (len(TOKENS), model.config.d_model)
        assert_float_order(goes_on(model, count, found), want)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_it_is_what_the_head_begins_with(first: Engine, parts: list[int]) -> None:
    """An engine that computes the head, too, finds the same logits."""
    logits = goes_on(first._work._model, 2, read(first, parts))
    cache = first.new_cache(len(TOKENS))
    want = np.stack([first.decode(cache, token).copy() for token in TOKENS])
    assert_float_order(logits, want)
    if parts[0] == 1:
        errors = np.abs(logits - want).max(axis=1) / want.std()
        assert np.quantile(errors, 0.9) < EQUAL


def test_no_logits_are_computed_for_it(first: Engine) -> None:
    cache = first.new_cache(len(TOKENS))
    first._work.logits[:] = 7
    first.residual(cache, TOKENS[:5])
    first.residual(cache, TOKENS[5:6])
    assert np.all(first._work.logits == 7)
    assert_float_order(first.decode(cache, TOKENS[6])[None], first_logits(first, TOKENS[:7]))


def first_logits(engine: Engine, tokens: list[int]) -> F32:
    """Logits after the last of `tokens`."""
    return engine.logits(engine.new_cache(len(tokens)), tokens)[-1:]


def test_the_next_token_takes_the_same_memory(first: Engine) -> None:
    cache = first.new_cache(2)
    one = first.residual(cache, TOKENS[:1])
    before = one.copy()
    assert first.residual(cache, TOKENS[1:2]) is not None
    assert not np.array_equal(one, before)


def test_what_cannot_be_read_is_refused(first: Engine) -> None:
    cache = first.new_cache(2)
    for tokens in ([301], [5, -1]):
        with pytest.raises(UsageError, match="from 0 to 300"):
            first.residual(cache, tokens)
    with pytest.raises(ContextFullError):
        first.residual(cache, [1, 2, 3])
    with pytest.raises(UsageError, match="without neurons to skip"):
        first.residual(cache, [1], sparse=True)
    assert cache.length == 0
    first.close()
    with pytest.raises(UsageError, match="closed"):
        first.residual(cache, [1])


def test_an_interrupt_stops_inside_of_a_chunk(
    first: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps after it give logits again."""
    run, calls, cache = Team.run, itertools.count(), first.new_cache(len(TOKENS))

    def interrupted(team: Team, job: int) -> None:
        if next(calls) == 1:
            first.interrupt()
        run(team, job)

    with monkeypatch.context() as patch:
        patch.setattr(Team, "run", interrupted)
        with pytest.raises(Cancelled):
            first.residual(cache, TOKENS)
    assert cache.tokens == TOKENS[:CHUNK]
    found = first.prefill(cache, TOKENS[CHUNK:])
    assert_float_order(found[None], first_logits(first, TOKENS))


# -- of neurons


@pytest.fixture
def sparse(models: Callable[..., PackedModel]) -> Iterator[tuple[Engine, Neurons]]:
    """The first two of three layers, in which neurons are left out."""
    model = models()
    neurons = neurons_of(model, alive=mask_of(np.arange(FFN) % 7 > 0)).cut(0, 2)
    plan = FfnPlan(
        ("gate", "contribution", "gate"), (0.2, 0.0, 0.3), (0.1, 0.2, 0.0), sinks=3
    ).layers(0, 2)
    with Engine(model.first_layers(2), threads=2, neurons=neurons) as engine:
        engine.set_plan(plan)
        yield engine, neurons


def heated(engine: Engine) -> KVCache:
    cache = engine.new_cache(len(TOKENS))
    cache.heat = np.zeros((2, 128), np.float32)
    return cache


def test_single_tokens_leave_out_what_decoding_does(sparse: tuple[Engine, Neurons]) -> None:
    engine, neurons = sparse
    plan = FfnPlan(("gate", "contribution"), (0.2, 0.0), (0.1, 0.2), sinks=3)
    truth = Truth(engine._work._model, neurons, plan, TOKENS)
    mine, theirs = heated(engine), heated(engine)
    for place, token in enumerate(TOKENS):
        x = engine.residual(mine, [token], sparse=True).copy()
        seen = engine.last_counts, engine.last_sharpness
        engine.decode(theirs, token, sparse=True)
        np.testing.assert_array_equal(seen[0], engine.last_counts)
        np.testing.assert_array_equal(seen[1], engine.last_sharpness)
        np.testing.assert_array_equal(mine.captured, theirs.captured)
        logits = goes_on(engine._work._model, 2, x)
        errors = np.abs(logits - truth.logits[place]).max() / truth.logits.std()
        assert errors < 0.12
    np.testing.assert_array_equal(mine.heat, theirs.heat)
    np.testing.assert_array_equal(mine.rest, theirs.rest)
    np.testing.assert_array_equal(mine.keys, theirs.keys)


def test_many_tokens_leave_out_what_reading_at_once_does(sparse: tuple[Engine, Neurons]) -> None:
    engine, _ = sparse
    mine, theirs = heated(engine), heated(engine)
    found = engine.residual(mine, TOKENS, sparse=True)
    want = engine.logits(theirs, TOKENS, sparse=True)
    assert_float_order(goes_on(engine._work._model, 2, found), want)
    np.testing.assert_array_equal(mine.heat, theirs.heat)
    dense = engine.residual(heated(engine), TOKENS)
    assert np.abs(found - dense).max() > 0.5 * dense.std()


def test_a_prompt_heats_neurons_and_wakes_layers(sparse: tuple[Engine, Neurons]) -> None:
    engine, _ = sparse
    mine, theirs = heated(engine), heated(engine)
    mine.rest[:] = 5
    engine.residual(mine, TOKENS[:20])
    engine.prefill(theirs, TOKENS[:20])
    assert mine.heat is not None
    assert mine.heat.any()
    np.testing.assert_array_equal(mine.heat, theirs.heat)
    assert not mine.rest.any()


def test_a_cut_is_of_the_layers_it_names(models: Callable[..., PackedModel]) -> None:
    neurons = neurons_of(models(), implied=np.zeros((FFN, 2), np.int32))
    neurons = Neurons((*changed(neurons, 1, sharpness=(1.0, 2.0)).layers[:2], None))
    cut = neurons.cut(0, 2).layers
    assert cut[0] is neurons.layers[0]
    before, after = _known(neurons, 1), cut[1]
    assert before.implied is not None
    for field in dataclasses.fields(before):
        kept = None if field.name == "implied" else getattr(before, field.name)
        assert getattr(after, field.name) is kept
    assert neurons.cut(1, 3).layers == neurons.layers[1:]
    values = (1.0, 2.0, 3.0)
    plan = FfnPlan(
        ("gate", "dense", "contribution"),
        values,
        values,
        "predicted",
        floors=(1, 2, 3),
        caps=(4, 5, 6),
        core=True,
        sinks=7,
    )
    assert plan.layers(0, 3) == plan
    assert plan.layers(1, 3) == dataclasses.replace(
        plan,
        modes=("dense", "contribution"),
        gate_cutoffs=(2.0, 3.0),
        contribution_cutoffs=(2.0, 3.0),
        floors=(2, 3),
        caps=(5, 6),
    )
    assert FfnPlan.exact(3).layers(0, 1) == FfnPlan.exact(1)


def _known(neurons: Neurons, layer: int) -> Any:
    return neurons.layers[layer]
