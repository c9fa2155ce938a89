"""Fitting the FFN part of a profile to what the FFNs of tiny models get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stem_runtime.engine import Engine
from stem_runtime.errors import FormatError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.sparsity import capture, ffn_fit
from stem_runtime.sparsity.capture import layer_inputs
from stem_runtime.sparsity.neurons import bits_of
from stem_runtime.sparsity.potentials import FfnWeights, fire

from .fitted import SPARSE, captured, fitted, sequences
from .tiny import random_packed, tiny_config


def test_inputs_are_those_of_the_last_tokens(tmp_path: Path) -> None:
    model = open_packed(random_packed(tmp_path / "m", tiny_config()))
    paths = captured(model, tmp_path / "held")
    with Engine(model, threads=1) as engine:
        expected = [engine.ffn_inputs(engine.new_cache(80), part)[:, -79:] for part in sequences()]
    for layer in (0, 1):
        found = layer_inputs(paths, layer)
        assert found.shape == (4 * 79, 64)
        whole = np.concatenate([part[layer] for part in expected])
        assert np.allclose(found, whole, atol=2e-3, rtol=1e-3)


def test_files_stay_small_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_packed(random_packed(tmp_path / "m", tiny_config()))
    monkeypatch.setattr(capture, "FFN_TOKENS", 100)
    paths = captured(model, tmp_path / "held")
    assert layer_inputs(paths, 0).shape == (100, 64)
    whole = [path.read_bytes() for path in paths]
    paths[1].write_bytes(whole[1][:50])
    paths[2].unlink()
    calls: list[int] = []
    inputs = Engine.ffn_inputs

    def counted(self: Engine, cache: object, tokens: list[int]) -> object:
        calls.append(len(tokens))
        return inputs(self, cache, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "ffn_inputs", counted)
    assert captured(model, tmp_path / "held") == paths
    assert len(calls) == 2
    assert [path.read_bytes() for path in paths] == whole


def test_inputs_that_are_no_numbers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_packed(random_packed(tmp_path / "m", tiny_config()))
    inputs = Engine.ffn_inputs

    def broken(self: Engine, cache: object, tokens: list[int]) -> object:
        states = inputs(self, cache, tokens)  # type: ignore[arg-type]
        states[1, -1, 3] = np.inf
        return states

    monkeypatch.setattr(Engine, "ffn_inputs", broken)
    with pytest.raises(FormatError, match="not finite"):
        captured(model, tmp_path / "held")
    assert not list((tmp_path / "held").glob("*"))


def test_layers_that_compute_no_numbers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_packed(random_packed(tmp_path / "m", tiny_config()))
    paths = captured(model, tmp_path / "held")
    huge = np.full((8, 64), np.float32(3e38))
    monkeypatch.setattr(ffn_fit, "layer_inputs", lambda _paths, _layer: huge)
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(FormatError, match="Layer 0 of tiny computes what is not a finite number"),
    ):
        ffn_fit.fit(model, paths, lambda _done, _total: None)


def test_a_naturally_sparse_model_gets_predictors_and_implications(tmp_path: Path) -> None:
    model, profile = fitted(tmp_path, **SPARSE)
    assert profile.sparse
    assert profile.predictors is not None
    assert profile.rules.implied is not None
    assert profile.rules.implied.shape == (2, 96, 4)
    assert len(profile.predictors) == 2
    assert profile.predictors[0].axes.cols == 64
    assert (profile.tables.active[:, 0, 0] < 0.5).all()
    assert_alive_is_who_fired(model, profile.rules.alive, tmp_path)
    assert profile.rules.frequency is not None
    assert_frequency_is_how_often_gates_fired(model, profile.rules.frequency, tmp_path)


def assert_frequency_is_how_often_gates_fired(
    model: PackedModel, frequency: np.ndarray, folder: Path
) -> None:
    paths = sorted((folder / "held").glob("*.npy"))
    for layer in (0, 1):
        fired = fire(model.config, FfnWeights.of(model, layer), layer_inputs(paths, layer))
        assert np.allclose(frequency[layer], (fired.gate != 0).mean(axis=0), atol=1e-6)


def assert_alive_is_who_fired(model: PackedModel, alive: np.ndarray, folder: Path) -> None:
    paths = sorted((folder / "held").glob("*.npy"))
    for layer in (0, 1):
        fired = fire(model.config, FfnWeights.of(model, layer), layer_inputs(paths, layer))
        assert (bits_of(alive[layer], 96) == (fired.hidden != 0).any(axis=0)).all()


def test_other_models_get_neither(tmp_path: Path) -> None:
    _, profile = fitted(tmp_path)
    assert not profile.sparse
    assert profile.rules.implied is None
    assert bits_of(profile.rules.alive[0], 96).all()
    assert not profile.rules.sharpness.any()
    dense = fitted(tmp_path / "relu", activation="relu")[1]
    assert dense.tables.active[0, 0, 0] < 0.6
    # a gate that fires for half of the tokens is not worth predicting
    assert dense.sparse == (dense.tables.gated[:, 0, 0].mean() < 0.5)


def test_rules_follow_the_share_that_is_skipped(tmp_path: Path) -> None:
    _, profile = fitted(tmp_path)
    last = (97, 0)
    for s in (0.2, 0.5, 0.8):
        plan = profile.constrained(profile.plan(s))
        assert plan.core
        assert plan.floors is not None
        assert plan.caps is not None
        gated = profile.tables.gated[:, 0]
        for layer, mode in enumerate(plan.modes):
            if mode == "gate":
                cutoffs = profile.tables.gate_cutoffs[layer, 0]
                mean = 96 * np.interp(plan.gate_cutoffs[layer], cutoffs, gated[layer])
                assert plan.floors[layer] <= mean <= plan.caps[layer] <= 96
        assert plan.caps[0] <= last[0]
        last = (plan.caps[0], plan.floors[0])
