"""FFNs of which only some neurons are on the device: what those of two devices add is the whole."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel
from stem_runtime.gpu.cache import GpuCache
from stem_runtime.gpu.sparse import SparseFfns
from stem_runtime.gpu.weights import Layer
from stem_runtime.kernels import oracle_sparse
from stem_runtime.kernels.gpu.layout import Activations, DeviceMatrix
from stem_runtime.kernels.gpu.matvec import SplitSums
from stem_runtime.kernels.gpu.quantize import quantize
from stem_runtime.sparsity.neurons import Neurons
from stem_runtime.sparsity.plan import FfnPlan

from ..skipping import changed, mask_of, neurons_of
from ..sparse_steps import (
    ACTIVE,
    CANDIDATES,
    DENSE,
    FFN,
    GATED,
    Models,
    guess,
    plan_of,
)

F32 = NDArray[np.float32]
EVERYONE = mask_of(np.ones(FFN, np.bool_))

PLANS = {
    "gate": plan_of(1, "gate", 0.3, 0.2, core=True),
    "contribution": plan_of(1, "contribution", 0.0, 0.3, core=True),
    "predicted": plan_of(1, "gate", 0.2, candidates="predicted", core=True),
    "resampled": plan_of(1, "gate", 0.2, candidates="resampled"),
    "attention": plan_of(1, "gate", 0.4, 0.1, attention=2.0),
}


def masks(seed: int, share: float) -> NDArray[np.uint32]:
    return mask_of(np.random.default_rng(seed).random(FFN) < share)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def model(models: Models) -> PackedModel:
    return models(activation="relu", vocab_size=48)


@pytest.fixture(scope="module")
def neurons(model: PackedModel) -> Neurons:
    """Of some of which calibration has seen no ups."""
    return known(model)


def known(model: PackedModel) -> Neurons:
    found = neurons_of(
        model,
        core=masks(1, 0.1),
        alive=masks(2, 0.9),
        predictor=guess(np.random.default_rng(3)),
        sharpness=(0.4, 0.1),
        implied=np.random.default_rng(4).integers(-1, FFN, (FFN, 2)).astype(np.int32),
    )
    (first, *_) = found.layers
    assert first is not None
    return changed(found, 0, weights=np.where(np.arange(FFN) % 9, first.weights, 0))


class Found:
    """What the last FFN made of a token that all get: y float32 [d], counts [8], captured, heat
    float32 [ffn].
    """

    def __init__(
        self, ffns: SparseFfns, model: PackedModel, x: F32, device: str, *, sparse: bool = True
    ) -> None:
        config = model.config
        inputs = Activations.empty(1, config.d_model, device)
        hidden = Activations.empty(1, config.ffn_dim, device)
        quantize(inputs, torch.from_numpy(x[None]).to(device), config.d_model)
        out = torch.full((1, config.d_model), 7.0, device=device)
        # of what a split FFN has no tiles
        names = () if ffns.split else ("gate", "up")
        ffns.sharpness.fill_(0.45)
        cache = SimpleNamespace(length=5, candidates=np.stack([masks(6, 0.5)] * config.n_layers))
        ffns.begin([cast("GpuCache", cache)], sparse=sparse)
        ffns.clear()
        for index in range(config.n_layers):
            matrices = {name: model.matrix(f"layers.{index}.{name}") for name in names}
            tiles = {name: DeviceMatrix.of(each, device) for name, each in matrices.items()}
            layer = cast("Layer", SimpleNamespace(**tiles))
            ffns.add(index, layer, out, inputs, hidden, SplitSums.empty(1, device))
        self.y = out[0].cpu().numpy()
        self.counts = ffns.counts[-1]
        self.captured, self.heat = ffns.captured[0, -1], ffns.heat[0, -1]


def halves(
    model: PackedModel, neurons: Neurons, plan: FfnPlan | None, device: str, share: float
) -> list[SparseFfns]:
    """FFNs of complementary parts of the neurons."""
    resident = masks(5, share)
    found = []
    for own in (resident, EVERYONE & ~resident):
        everywhere = np.stack([own] * model.config.n_layers)
        found.append(SparseFfns(model, neurons, torch.device(device), everywhere))
        found[-1].set_plan(plan)
    return found


def inputs(model: PackedModel) -> F32:
    return np.random.default_rng(0).standard_normal(model.config.d_model).astype(np.float32)


@pytest.mark.parametrize("name", PLANS)
def test_parts_add_up_under_a_plan(
    name: str, model: PackedModel, neurons: Neurons, device: str
) -> None:
    """But for the rounding of groups whose neurons are apart. One part may be all."""
    plan, share = PLANS[name], 1.0 if name == "gate" else 0.4
    whole = SparseFfns(model, neurons, torch.device(device))
    whole.set_plan(plan)
    x = inputs(model)
    want = Found(whole, model, x, device)
    parts = [Found(ffns, model, x, device) for ffns in halves(model, neurons, plan, device, share)]
    counts = sum(part.counts for part in parts)
    gated = (ACTIVE,) if plan.modes[0] == "contribution" else (CANDIDATES, GATED, ACTIVE)
    assert [counts[i] for i in gated] == [want.counts[i] for i in gated]
    assert 0 < want.counts[ACTIVE] < FFN
    apart = 0.01 if share < 1 else 1e-4
    size = np.abs(want.y).max()
    np.testing.assert_allclose(sum(part.y for part in parts), want.y, atol=apart * size)
    np.testing.assert_allclose(sum(part.captured for part in parts), want.captured, rtol=1e-4)
    np.testing.assert_allclose(sum(part.heat for part in parts), want.heat, atol=1e-4 * size)
    assert parts[1].y.any() == (share < 1)


@pytest.mark.parametrize("plan", [None, plan_of(1, "gate", 9.0, sinks=6), plan_of(1, "dense", 0)])
@pytest.mark.parametrize("sparse", [False, True])
def test_parts_of_a_dense_ffn_add_up(
    plan: FfnPlan | None, sparse: bool, model: PackedModel, neurons: Neurons, device: str
) -> None:
    """Neurons that calibration thought dead, or of no weight, count like all others."""
    if plan is None and sparse:
        return
    useless = np.zeros(FFN, np.float32)
    neurons = changed(neurons, 0, weights=useless, norms=useless)
    x = inputs(model)
    matrices = [model.matrix(f"layers.0.{name}") for name in ("gate", "up", "down")]
    truth = oracle_sparse.Ffn(*matrices, "relu", 0.0, useless, useless)
    (want,) = oracle_sparse.sparse_ffn(truth, [oracle_sparse.Tests("dense")], x[None])
    parts = [
        Found(ffns, model, x, device, sparse=sparse)
        for ffns in halves(model, neurons, plan, device, 0.4)
    ]
    np.testing.assert_allclose(
        sum(part.y for part in parts), want.y, atol=0.01 * np.abs(want.y).max()
    )
    for part in parts:
        assert part.counts.tolist() == [0] * DENSE + [1]
        assert not part.heat.any()
        assert not part.captured


def test_rules_about_all_neurons_are_left_out(models: Models, device: str) -> None:
    model = models(activation="relu", vocab_size=48, n_layers=2)
    rules = {"floors": (99, 99), "caps": (0, 0), "implications": True}
    plain = plan_of(2, "gate", 0.3, candidates="resampled")
    x = inputs(model)
    for ffns in halves(model, known(model), plain, device, 0.4):
        want = Found(ffns, model, x, device)
        ffns.set_plan(dataclasses.replace(plain, **rules))
        found = Found(ffns, model, x, device)
        np.testing.assert_allclose(found.y, want.y, atol=1e-5)
        assert found.counts.tolist() == want.counts.tolist()
        assert want.counts[ACTIVE] > 0


def test_each_kind_of_step_has_a_structure(
    model: PackedModel, neurons: Neurons, device: str
) -> None:
    """What is captured once runs again only for steps of the same launches."""
    plans = [None, *PLANS.values(), plan_of(1, "dense", 0)]
    cache, seen = cast("GpuCache", SimpleNamespace(length=5, candidates=EVERYONE[None])), []
    (ffns, _) = halves(model, neurons, None, device, 0.4)
    for plan in plans:
        ffns.set_plan(plan)
        seen += [ffns.begin([cache], sparse=sparse) for sparse in (False, plan is not None)]
    assert None not in seen
    assert len(set(seen)) == len(plans)


def test_all_layers_run_the_same_machine_code(models: Models, device: str) -> None:
    """Triton compiles for addresses that are multiples of 16 bytes, and again for others."""
    model = models(activation="relu", vocab_size=48, n_layers=2)
    ffns = SparseFfns(model, known(model), torch.device(device)).of(3)
    tensors = [t for t in vars(ffns).values() if isinstance(t, torch.Tensor) and len(t) == 2]
    assert len(tensors) > 9
    assert [t.shape for t in tensors if any(row.data_ptr() % 16 for row in t)] == []


def test_neurons_without_gate_rows_cannot_be_split(model: PackedModel, device: str) -> None:
    with pytest.raises(UsageError, match="has no gate rows"):
        SparseFfns(model, neurons_of(model, "up"), torch.device(device), masks(5, 0.5)[None])
