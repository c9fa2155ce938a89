"""Models of which a part runs on the CPU, token for token with those that run there whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stem_runtime.engine import Cancelled, Engine
from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.gpu.placement import Placement
from stem_runtime.kernels import Backend
from stem_runtime.sampling import SamplingParams

from ..skipping import neurons_of
from ..sparse_steps import DENSE, Models, guess, plan_of, run
from ..tiny import random_packed, tiny_config
from .engines import Make, engines

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tied_head": False},
    "gemma3": {"family": "gemma3", "layer_windows": (5, 0, 5)},
    "minicpm": {"family": "minicpm"},
}
PROMPT = [5, 40, 7, 7, 30, 2, 19, 44, 3, 21, 38]


@pytest.fixture
def make(device: str) -> Iterator[Make]:
    with engines(device) as make:
        yield make


def model_of(folder: Path, layers: int = 3, **over: Any) -> PackedModel:
    values = {"n_layers": layers, "vocab_size": 48, "ffn_dim": 40, **over}
    return open_packed(random_packed(folder / "m", tiny_config(**values), 3))


def placed(make: Make, model: PackedModel, first: int, backend: Backend = "torch", **how: Any):
    placement = Placement(model.config.n_layers, first)
    return make(model, backend, placement=placement, threads=1, **how)


def answer(engine: Any, prompt: list[int], count: int = 6) -> list[np.ndarray]:
    """The logits after a prompt, and after each token of the greedy answer to it."""
    cache = engine.new_cache(len(prompt) + count)
    rows = [engine.prefill(cache, prompt).copy()]
    for _ in range(count):
        rows.append(engine.decode(cache, int(rows[-1].argmax())).copy())
    return rows


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_on_the_cpu_go_before_those_on_the_card(
    family: str, backend: Backend, tmp_path: Path, make: Make
) -> None:
    model = model_of(tmp_path, **FAMILIES[family])
    with Engine(model, threads=1, outliers=False) as engine:
        want = answer(engine, PROMPT)
    # kernels take long in the interpreter
    for first, count in ((1, 6), (2, 6)) if backend == "torch" else ((2, 2),):
        engine = placed(make, model, first, backend)
        assert engine.threads == 1
        found = answer(engine, PROMPT, count)
        for mine, theirs in zip(found, want, strict=False):
            assert np.abs(mine - theirs).max() < 0.15 * theirs.std()
        assert [row.argmax() for row in found] == [row.argmax() for row in want[: count + 1]]


def test_sparse_layers_report_from_both_sides(tmp_path: Path, make: Make) -> None:
    model = Models(tmp_path)(n_layers=3)
    neurons = neurons_of(model, predictor=guess(np.random.default_rng(3)))
    plan = plan_of(3, "gate", 0.3, 0.2, candidates="predicted", sinks=2)
    plan = dataclasses.replace(plan, modes=("gate", "contribution", "gate"))
    want = run(make(model, neurons=neurons), plan)
    found = run(placed(make, model, 1, neurons=neurons), plan)
    # one neuron may pass on one side and fail on the other, where rounding decides
    np.testing.assert_allclose(found.counts, want.counts, atol=2)
    assert (found.counts[plan.sinks :, :, 2] > 0).all()
    for name in ("captured", "heat", "sharpness"):
        mine, theirs = getattr(found, name), getattr(want, name)
        np.testing.assert_allclose(mine, theirs, atol=0.02 * theirs.max(), err_msg=name)
    assert np.abs(found.logits - want.logits).max() < 0.15 * want.logits.std()


def test_a_cache_is_cut_back_on_both_sides(tmp_path: Path, make: Make) -> None:
    engine = placed(make, model_of(tmp_path), 2)
    cache = engine.new_cache(16)
    want = engine.prefill(cache, PROMPT).copy()
    assert cache.host is not None
    assert cache.nbytes > cache.host.nbytes > 0
    cache.truncate(4)
    engine.decode(cache, 1)
    cache.truncate(4)
    found = engine.prefill(cache, PROMPT[4:])
    assert cache.host.tokens == cache.tokens == PROMPT
    assert np.abs(found - want).max() < 0.1 * want.std()


def test_a_prompt_wakes_layers_on_the_cpu(tmp_path: Path, make: Make) -> None:
    model = Models(tmp_path)(n_layers=2)
    engine = placed(make, model, 1, neurons=neurons_of(model))
    plan = plan_of(2, "gate", 0.0)
    engine.set_plan(plan)
    cache = engine.new_cache(8)
    engine.decode(cache, 5, sparse=True)
    # all neurons fire, so that this layer rests
    assert cache.rest[0, 0] > 0
    engine.decode(cache, 6, sparse=True)
    assert engine.last_counts[0, DENSE] == 1
    engine.prefill(cache, [7])
    engine.decode(cache, 8, sparse=True)
    assert engine.last_counts[0, DENSE] == 0


def test_a_prompt_is_cancelled_on_either_side(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = placed(make, model_of(tmp_path), 2)
    cache, asked = engine.new_cache(16), iter([False, True])
    read = engine._parts._layers.read

    def not_here(*_: Any, **__: Any) -> Any:
        raise Cancelled("Reading the prompt was cancelled.")

    def not_there(*args: Any, **how: Any) -> Any:
        found = read(*args, **how)
        engine.interrupt()
        return found

    for stopped in (not_here, not_there):
        monkeypatch.setattr(engine._parts._layers, "read", stopped)
        with pytest.raises(Cancelled):
            engine.prefill(cache, PROMPT)
        assert cache.tokens == []
    monkeypatch.setattr(engine._parts._layers, "read", read)
    with pytest.raises(Cancelled):
        engine.prefill(cache, PROMPT, cancel=lambda: next(asked) or next(asked))
    want = engine.prefill(engine.new_cache(16), PROMPT).copy()
    found = engine.prefill(cache, PROMPT)
    np.testing.assert_array_equal(found, want)


def test_texts_are_decoded_together_and_chosen_on_the_card(tmp_path: Path, make: Make) -> None:
    model = model_of(tmp_path, 2)
    whole, parted = make(model, "triton"), placed(make, model, 1, "triton")
    rows, texts = [], []
    for engine in (whole, parted):
        caches = engine.new_caches(2, 16)
        engine.prefill(caches[0], PROMPT[:3])
        rows.append(engine.decode_batch(caches, [9, 11]).copy())
        engine.begin_text(caches[0], SamplingParams(temperature=0.0), PROMPT[:3])
        text = [int(rows[-1][0].argmax())]
        for _ in range(2):
            text.append(engine.follow(caches[0], text[-1]))
        texts.append(text)
    assert np.abs(rows[0] - rows[1]).max() < 0.1 * rows[0].std()
    assert texts[0] == texts[1]


def test_caches_of_another_placement_are_read_anew(tmp_path: Path, make: Make) -> None:
    model = model_of(tmp_path)
    engines_ = [placed(make, model, first) for first in (1, 0, 2)]
    cache = engines_[0].new_cache(20)
    logits = engines_[0].prefill(cache, PROMPT)
    tokens = [int(logits.argmax())]
    for engine in engines_[1:]:
        tokens.append(int(engine.decode(cache, tokens[-1]).argmax()))
        assert cache.first == engine.placement.first
        assert (cache.host is None) == (cache.first == 0)
        assert cache.tokens == PROMPT + tokens[:-1]
    with Engine(model, threads=1, outliers=False) as alone:
        assert tokens == [int(row.argmax()) for row in answer(alone, PROMPT, 2)]


def test_what_ffns_get_is_studied_on_one_device(tmp_path: Path, make: Make) -> None:
    engine = placed(make, model_of(tmp_path), 1)
    with pytest.raises(UsageError, match="use device='cpu'"):
        engine.ffn_inputs(engine.new_cache(4), [1, 2])
    assert engine.hidden(engine.new_cache(4), [1, 2]).shape == (2, 64)
