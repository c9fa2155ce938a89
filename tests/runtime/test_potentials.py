"""Potentials and tables of cut-offs, against their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stem_runtime.config import ACTIVATIONS
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.kernels import oracle
from stem_runtime.sparsity import potentials
from stem_runtime.sparsity.potentials import (
    CONTRIBUTION,
    EXACT_ZEROS,
    GATE,
    MOST,
    FfnWeights,
    Fired,
    LayerTrial,
    Potentials,
    costs,
    fire,
    make_tables,
)

from .tiny import random_packed, tiny_config

TOKENS = 40


def model_of(folder: Path, activation: str = "silu", **over: object) -> PackedModel:
    param = 0.2 if activation == "fatrelu" else 0.0
    config = tiny_config(activation=activation, activation_param=param, **over)
    return open_packed(random_packed(folder / "m", config))


def inputs(width: int = 64, count: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, width)).astype(np.float32)


def trial(model: PackedModel) -> tuple[FfnWeights, Fired, Potentials]:
    weights = FfnWeights.of(model, 0)
    fired = fire(model.config, weights, inputs(model.config.d_model))
    return weights, fired, Potentials.of(weights, fired)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_neurons_fire_as_the_definition_says(tmp_path: Path, activation: str) -> None:
    model = model_of(tmp_path, activation)
    _, fired, found = trial(model)
    x = inputs().astype(np.float64)
    gate = oracle.matmul(model.matrix("layers.0.gate"), x, oracle.OUTLIERS)
    up = oracle.matmul(model.matrix("layers.0.up"), x, oracle.OUTLIERS)
    hidden = oracle.ffn_hidden(activation, gate, up, model.config.activation_param)
    assert np.allclose(fired.hidden, hidden, atol=2e-3, rtol=1e-3)
    down = oracle.dequantize(model.matrix("layers.0.down"))
    norms = np.sqrt((down.astype(np.float64) ** 2).sum(axis=0))
    assert np.allclose(found.norms, norms, rtol=1e-5)
    assert np.allclose(found.contribution(fired), np.abs(hidden) * norms, atol=5e-3, rtol=1e-3)
    seen = np.maximum(up, 0) if activation == "drelu" else up
    typical = norms * np.sqrt((seen**2).mean(axis=0))
    assert np.allclose(found.weights, typical, rtol=1e-3)
    one = np.ones_like(gate)
    act = oracle.ffn_hidden(activation, gate, one, model.config.activation_param)
    assert np.allclose(found.gate(fired), np.abs(act) * typical, atol=5e-3, rtol=1e-3)


def test_tables_say_what_the_tests_leave_out(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    weights, fired, found = trial(model)
    rows = LayerTrial(weights, found, fired).rows()
    gates, contributions = found.gate(fired), found.contribution(fired)
    whole = fired.hidden.astype(np.float64) @ weights.down.T.astype(np.float64)
    for test, level in ((GATE, 6), (GATE, 20), (CONTRIBUTION, 3), (CONTRIBUTION, 19)):
        gate, contribution, gated, active, groups, dropped = rows[test, level]
        passed = gates > gate if test == GATE else np.ones_like(gates, bool)
        kept = passed & (contributions > contribution)
        assert gated == pytest.approx(passed.mean())
        assert active == pytest.approx(kept.mean())
        assert groups == pytest.approx(kept.reshape(TOKENS, 3, 32).any(axis=2).mean())
        lost = np.where(kept, 0, fired.hidden).astype(np.float64) @ weights.down.T
        ratio = np.linalg.norm(lost, axis=1) / np.linalg.norm(whole, axis=1)
        assert dropped == pytest.approx(np.sqrt((ratio**2).mean()), rel=1e-4)
    late = rows[CONTRIBUTION]
    assert np.allclose(1 - late[:, 3], np.linspace(0, MOST, len(late)), atol=1e-3)
    for column, sign in ((0, 1), (3, -1), (5, 1)):
        assert (sign * np.diff(rows[GATE, :, column]) >= 0).all()
    assert (rows[:, 0] == [0, 0, 1, 1, 1, 0]).all()


@pytest.mark.parametrize("activation", EXACT_ZEROS)
def test_the_first_level_skips_exact_zeros_for_nothing(tmp_path: Path, activation: str) -> None:
    model = model_of(tmp_path, activation)
    weights, fired, found = trial(model)
    rows = LayerTrial(weights, found, fired).rows()
    share = np.count_nonzero(fired.hidden) / fired.hidden.size
    assert 0.1 < share < 0.7
    assert rows[:, 0, 3] == pytest.approx(share)
    assert (rows[:, 0, [0, 1, 5]] == 0).all()
    assert found.frequency.mean() == pytest.approx(share)
    assert (rows[:, -1, 3] <= share * (1 - MOST) + 1e-3).all()


def test_wide_outputs_are_compared_by_projections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tmp_path, d_model=256, n_heads=8, head_dim=32)
    weights, fired, found = trial(model)
    near = LayerTrial(weights, found, fired).rows()
    monkeypatch.setattr(potentials, "PROJECTED", 256)
    exact = LayerTrial(weights, found, fired).rows()
    assert not np.array_equal(near, exact)
    assert np.allclose(near[:, 1:, 5], exact[:, 1:, 5], rtol=0.08)
    assert np.allclose(near[CONTRIBUTION, :, :5], exact[CONTRIBUTION, :, :5])


def test_bytes_add_up(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    weights, fired, found = trial(model)
    rows = LayerTrial(weights, found, fired).rows()
    tables = make_tables([rows, rows], [costs(model, 0), costs(model, 1)])
    matrices = [model.matrix(f"layers.{i}.{n}") for i in (0, 1) for n in ("gate", "up", "down")]
    assert tables.dense_bytes == sum(matrix.nbytes for matrix in matrices)
    assert tables.nbytes[:, :, 0].sum(axis=0) == pytest.approx([tables.dense_bytes] * 2)
    gate, up = matrices[0].nbytes, matrices[1].nbytes
    assert (tables.nbytes[0, CONTRIBUTION] >= gate + up).all()
    assert (tables.nbytes[0, GATE] >= gate).all()
    assert (np.diff(tables.nbytes, axis=2) <= 0).all()
    assert tables.nbytes[0, GATE, -1] < tables.nbytes[0, CONTRIBUTION, -1]
    assert not tables.measured
