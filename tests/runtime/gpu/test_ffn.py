"""FFNs on the device, dense and of the neurons that matter, against the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stem_runtime.config import ACTIVATIONS
from stem_runtime.formats.packed import PackedModel
from stem_runtime.kernels import oracle_sparse
from stem_runtime.kernels.gpu import compact, ffn
from stem_runtime.kernels.gpu.layout import Activations, DeviceMatrix
from stem_runtime.kernels.gpu.matvec import matvec
from stem_runtime.kernels.gpu.quantize import quantize
from stem_runtime.kernels.gpu.records import DeviceNeurons, FfnTests, Tally
from stem_runtime.kernels.oracle_sparse import Outcome
from stem_runtime.quant import Kind, PackedMatrix, unpack
from stem_runtime.sparsity.neurons import LayerNeurons, Parts, layer_weights, mask_of

from ..tiny import random_matrix

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
KINDS: tuple[Kind, ...] = ("int4", "int4m", "int8")
PARAM = 0.2


class Layer:
    """Random gate, up and down; neurons have u of size 0.7."""

    def __init__(
        self, device: str, d_model: int, count: int, kinds: tuple[Kind, Kind, Kind], seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        shapes = ((count, d_model), (count, d_model), (d_model, count))
        self.device, self.d_model, self.count, self.rng = device, d_model, count, rng
        self.gate, self.up, self.down = (
            random_matrix(rng, *shape, kind, std=shape[1] ** -0.5)
            for shape, kind in zip(shapes, kinds, strict=True)
        )
        self.norms = np.linalg.norm(unpack(self.down), axis=0).astype(np.float32)
        self.core, self.alive = np.zeros(count, np.bool_), np.ones(count, np.bool_)

    def matrix(self, name: str) -> PackedMatrix:
        found: PackedMatrix = getattr(self, name.rpartition(".")[2])
        return found

    def neurons(self, parts: Parts) -> DeviceNeurons:
        stored = layer_weights(cast("PackedModel", self), 0, parts)
        weights, core, alive = 0.7 * self.norms, mask_of(self.core), mask_of(self.alive)
        layer = LayerNeurons(stored, weights, self.norms, core, alive)
        return DeviceNeurons.of(layer, self.gate, self.up, self.down, self.device)

    def oracle(self, activation: str) -> oracle_sparse.Ffn:
        matrices = (self.gate, self.up, self.down)
        return oracle_sparse.Ffn(*matrices, activation, PARAM, 0.7 * self.norms, self.norms)

    def inputs(self, batch: int) -> F32:
        return self.rng.standard_normal((batch, self.d_model)).astype(np.float32)

    def rounded(self, x: F32) -> Activations:
        acts = Activations.empty(len(x), self.d_model, self.device)
        quantize(acts, torch.from_numpy(x).to(self.device), self.d_model)
        return acts


@dataclass(frozen=True, slots=True)
class Found:
    """What a sparse FFN left behind, on the host."""

    y: F32
    counts: NDArray[np.int32]
    captured: F32
    heat: F32


def run(
    layer: Layer,
    x: F32,
    activation: str,
    tests: list[oracle_sparse.Tests],
    *,
    twice: bool = False,
) -> Found:
    """The two launches of one sparse FFN; the tests' mode and sets are those of the first."""
    mode, batch, device = tests[0].mode, len(x), layer.device
    chosen = tests[0].candidates is not None
    parts: Parts = "down" if mode == "contribution" else "gate" if chosen else "up"
    neurons, acts = layer.neurons(parts), layer.rounded(x)
    gate, up = (DeviceMatrix.of(matrix, device) for matrix in (layer.gate, layer.up))
    bounded = any(t.floor or t.cap is not None for t in tests)
    limits = FfnTests.empty(batch, layer.count, device, bounds=bounded)
    limits.cutoffs.copy_(torch.tensor([[t.gate_cutoff, t.contribution_cutoff] for t in tests]))
    if tests[0].core is not None:
        limits.core.copy_(neurons.core)
    if limits.bounds is not None:
        caps = [layer.count if t.cap is None else t.cap for t in tests]
        limits.bounds.copy_(torch.tensor([[t.floor, c] for t, c in zip(tests, caps, strict=True)]))
    candidates = None
    if chosen:
        masks = np.stack([mask_of(cast("Bools", t.candidates)) for t in tests])
        candidates = torch.from_numpy(masks.view(np.int32)).to(device)
    survivors = compact.Survivors.empty(batch, layer.count, device)
    report = Tally.empty(batch, layer.count, device)
    out = torch.full((batch, layer.d_model + 3), 7.0, device=device)
    for _ in range(1 + twice):
        if mode == "gate":
            ffn.find_survivors(
                out, survivors, acts, gate, neurons, limits, report, activation, PARAM,
                candidates=candidates,
            )  # fmt: skip
            ffn.add_survivors(out, survivors, acts, neurons, limits, report, activation)
        else:
            hidden = Activations.empty(batch, layer.count, device)
            ffn.find_contributors(
                out, hidden, survivors, acts, gate, up, neurons, limits, report, activation, PARAM
            )
            ffn.add_contributors(out, hidden, survivors, neurons)
    assert survivors.count.tolist() == [0, 0], "the queue is left empty"
    assert (out[:, layer.d_model :] == 7).all()
    arrays = (out[:, : layer.d_model], report.counts, report.captured, report.heat)
    return Found(*(array.cpu().numpy() for array in arrays))


def judge(
    layer: Layer, x: F32, activation: str, tests: list[oracle_sparse.Tests], **how: Any
) -> tuple[Found, list[Outcome]]:
    """Run, and compare everything with the oracle; cut-offs are moved away from values near them,
    since only then who passes is certain.
    """
    model = layer.oracle(activation)
    found, want = run(layer, x, activation, tests, **how), oracle_sparse.sparse_ffn(model, tests, x)
    for b, outcome in enumerate(want):
        sets = (outcome.candidates, outcome.passed, outcome.added)
        assert found.counts[b, :3].tolist() == [int(each.sum()) for each in sets]
        scale = np.abs(outcome.y).max() + 1e-6
        np.testing.assert_allclose(found.y[b], outcome.y, atol=0.02 * scale)
        heat = np.where(outcome.passed, outcome.contributions, 0.0)
        np.testing.assert_allclose(found.heat[b, : layer.count], heat, rtol=1e-3, atol=1e-4)
        assert not found.heat[b, layer.count :].any()
        captured = outcome.contributions[outcome.added].sum()
        np.testing.assert_allclose(found.captured[b], captured, rtol=1e-3, atol=1e-4)
    # few hidden values lie so near a half that they are rounded to the other integer
    errors = np.abs(found.y - [o.y for o in want]).max(axis=1)
    assert np.median(errors) <= 1e-4 * max(np.abs(o.y).max() for o in want)
    return found, want


def cutoff_of(values: NDArray[np.float64], share: float) -> float:
    """A cut-off that about a share of `values` is over, in the middle of a gap."""
    steps = np.unique(np.append(values, [0.0, 2 * values.max() + 1]))
    place = min(int((1 - share) * len(steps)), len(steps) - 2)
    gaps = np.diff(steps)
    near = slice(max(place - 3, 0), place + 4)
    best = near.start + int(np.argmax(gaps[near]))
    return float(steps[best] + steps[best + 1]) / 2


# -- dense


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_dense(device: str, activation: str) -> None:
    number = ACTIVATIONS.index(activation)
    layer = Layer(device, 72, 41 + 9 * number, (KINDS[number % 3],) * 3, seed=number)
    x = layer.inputs(3)
    acts, hidden = layer.rounded(x), Activations.empty(3, layer.count, device)
    gate, up, down = (DeviceMatrix.of(layer.matrix(n), device) for n in ("gate", "up", "down"))
    ffn.hidden_values(hidden, acts, gate, up, activation, PARAM)
    out = torch.zeros((3, layer.d_model), device=device)
    matvec(out, down, *hidden)
    dense = [oracle_sparse.Tests("dense")] * 3
    want = [o.y for o in oracle_sparse.sparse_ffn(layer.oracle(activation), dense, x)]
    errors = np.abs(out.cpu().numpy() - want).max(axis=1) / np.std(want)
    assert errors.max() < 0.02
    assert np.median(errors) < 1e-4


@pytest.mark.parametrize("mode", ["gate", "contribution"])
def test_first(device: str, mode: str) -> None:
    layer = Layer(device, 200, 141, ("int4", "int4", "int4"))
    x = layer.inputs(1)
    judge(layer, x, "silu", [oracle_sparse.Tests(mode)], twice=False)
