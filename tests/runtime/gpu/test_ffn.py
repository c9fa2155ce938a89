"""FFNs on the device, dense and of the neurons that matter, against the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.config import ACTIVATIONS
from stem_runtime.formats.packed import PackedModel
from stem_runtime.kernels import oracle, oracle_sparse
from stem_runtime.kernels.gpu import compact, ffn
from stem_runtime.kernels.gpu.activation import activate, hidden_of
from stem_runtime.kernels.gpu.layout import Activations, DeviceMatrix
from stem_runtime.kernels.gpu.matvec import matvec
from stem_runtime.kernels.gpu.quantize import quantize
from stem_runtime.kernels.gpu.records import Attention, DeviceNeurons, FfnTests, Followers, Tally
from stem_runtime.kernels.oracle_sparse import Outcome
from stem_runtime.neuron_tables import COUNTS
from stem_runtime.quant import Kind, PackedMatrix, unpack
from stem_runtime.sparsity.neurons import LayerNeurons, Parts, layer_weights, mask_of

from ..tiny import random_matrix

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
KINDS: tuple[Kind, ...] = ("int4", "int4m", "int8")
PARAM = 0.2
ACTIVE = COUNTS.index("active")


@triton.jit
def hidden(gates, ups, out, param, NAME: tl.constexpr):
    at = tl.arange(0, 512)
    act = activate(tl.load(gates + at), param, NAME)
    tl.store(out + at, hidden_of(act, tl.load(ups + at), NAME))


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

    def neurons(self, parts: Parts, resident: Bools | None = None) -> DeviceNeurons:
        stored = layer_weights(cast("PackedModel", self), 0, parts)
        weights, core, alive = 0.7 * self.norms, mask_of(self.core), mask_of(self.alive)
        layer = LayerNeurons(stored, weights, self.norms, core, alive)
        masks = None if resident is None else mask_of(resident)
        return DeviceNeurons.of(layer, self.gate, self.up, self.down, self.device, masks)

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
    implied: NDArray[np.int32] | None


@dataclass(frozen=True, slots=True)
class Sharp:
    """How sharp the attention of each token is, by head [b, heads], and what a plan makes of it."""

    heads: F32
    strength: float
    mean: float
    spread: float

    def factors(self) -> list[float]:
        rule = (self.strength, self.mean, self.spread)
        return [oracle_sparse.multiplier(*rule, sharp) for sharp in self.heads.mean(1).tolist()]

    def upload(self, device: str) -> Attention:
        rule = torch.tensor([self.strength / self.spread, self.mean], device=device)
        moved = torch.full((len(self.heads), 2), torch.nan, device=device)
        return Attention(torch.from_numpy(self.heads).to(device), rule, moved)


def run(
    layer: Layer,
    x: F32,
    activation: str,
    tests: list[oracle_sparse.Tests],
    *,
    times: int = 1,
    sharp: Sharp | None = None,
    implied: Bools | None = None,
    chosen: Bools | None = None,
    names: NDArray[np.int32] | None = None,
    resident: Bools | None = None,
) -> Found:
    """The launches of one sparse FFN, `times` one after the other.

    Mode, core, and whether there are candidates, are those of the first of `tests`. These have the
    cut-offs that attention as `sharp` leads to, and as candidates those `chosen` or `implied`, bool
    [b, ffn]. `names` int32 [ffn, k] are whom who is added implies. Only `resident` neurons, bool
    [ffn], are there, and with them no tiles of gates.
    """
    mode, batch, device = tests[0].mode, len(x), layer.device
    listed = tests[0].candidates is not None
    by_records = listed or resident is not None
    parts: Parts = "down" if mode == "contribution" else "gate" if by_records else "up"
    neurons, acts = layer.neurons(parts, resident), layer.rounded(x)
    gate, up = (DeviceMatrix.of(matrix, device) for matrix in (layer.gate, layer.up))
    tiles = None if by_records else gate
    bounded = any(t.floor or t.cap is not None for t in tests)
    limits = FfnTests.empty(batch, layer.count, device, bounds=bounded)
    cutoffs = np.array([[t.gate_cutoff, t.contribution_cutoff] for t in tests])
    if sharp is not None:
        limits = limits._replace(attention=sharp.upload(device))
        cutoffs /= np.array(sharp.factors())[:, None]
    limits.cutoffs.copy_(torch.from_numpy(cutoffs))
    if tests[0].core is not None:
        limits.core.copy_(neurons.core)
    if limits.bounds is not None:
        caps = [layer.count if t.cap is None else t.cap for t in tests]
        limits.bounds.copy_(torch.tensor([[t.floor, c] for t, c in zip(tests, caps, strict=True)]))
    candidates = followers = None
    if listed:
        sets = [cast("Bools", t.candidates) for t in tests] if chosen is None else chosen
        candidates = upload_masks(sets, device)
    if names is not None:
        padding = ((0, -len(names) % 32), (0, 0))
        padded = torch.from_numpy(np.pad(names, padding, constant_values=-1)).to(device)
        followers = Followers(padded, torch.zeros_like(upload_masks([layer.core] * batch, device)))
    survivors = compact.Survivors.empty(batch, layer.count, device)
    report = Tally.empty(batch, layer.count, device)
    out = torch.full((batch, layer.d_model + 3), 7.0, device=device)
    for _ in range(times):
        if mode == "gate":
            ffn.find_survivors(
                out, survivors, acts, tiles, neurons, limits, report, activation, PARAM,
                candidates=candidates,
                implied=None if implied is None else upload_masks(implied, device),
            )  # fmt: skip
            ffn.add_survivors(
                out, survivors, acts, neurons, limits, report, activation, followers=followers
            )
        else:
            hidden = Activations.empty(batch, layer.count, device)
            ffn.find_contributors(
                out, hidden, survivors, acts, gate, up, neurons, limits, report, activation, PARAM,
                followers=followers,
            )  # fmt: skip
            ffn.add_contributors(out, hidden, survivors, neurons)
    assert survivors.length.tolist() == [0, 0], "the queue is left empty"
    assert (out[:, layer.d_model :] == 7).all()
    arrays = (out[:, : layer.d_model], report.counts, report.captured, report.heat)
    told = None if followers is None else followers.implied.cpu().numpy()
    return Found(*(array.cpu().numpy() for array in arrays), told)


def upload_masks(sets: Sequence[Bools] | Bools, device: str) -> torch.Tensor:
    """bool [b, ffn] -> masks int32 [b, groups]."""
    masks = np.stack([mask_of(each) for each in sets])
    return torch.from_numpy(masks.view(np.int32)).to(device)


def judge(
    layer: Layer, x: F32, activation: str, tests: list[oracle_sparse.Tests], **how: Any
) -> tuple[Found, list[Outcome]]:
    """Run, and compare everything with the oracle."""
    found = run(layer, x, activation, tests, **how)
    want = oracle_sparse.sparse_ffn(layer.oracle(activation), tests, x)
    for b, outcome in enumerate(want):
        sets = (outcome.candidates, outcome.passed, outcome.added)
        assert found.counts[b, :3].tolist() == [int(each.sum()) for each in sets]
        heat = np.where(outcome.passed, outcome.contributions, 0.0)
        np.testing.assert_allclose(found.heat[b, : layer.count], heat, rtol=1e-3, atol=1e-4)
        assert not found.heat[b, layer.count :].any()
        captured = outcome.contributions[outcome.added].sum()
        np.testing.assert_allclose(found.captured[b], captured, rtol=1e-3, atol=1e-4)
    compare(found.y, np.stack([outcome.y for outcome in want]))
    return found, want


def compare(found: F32, want: NDArray[np.float64]) -> None:
    """Equal, but where a hidden value lies so near a half that it is rounded the other way."""
    size = np.abs(want).max() + 1e-6
    errors = np.abs(found - want).max(axis=1) / size
    assert errors.max() < 0.02
    assert np.median(errors) < 1e-4


def asked(
    layer: Layer, x: F32, activation: str, mode: str, first: float, second: float, **more: Any
) -> list[oracle_sparse.Tests]:
    """Tests that about these shares of neurons pass, of the first token; others follow suit.

    Cut-offs lie in gaps between values, since who passes is certain only there.
    """
    dense = [oracle_sparse.Tests("dense")] * len(x)
    outcomes = oracle_sparse.sparse_ffn(layer.oracle(activation), dense, x)
    return [
        oracle_sparse.Tests(mode, gap(o.potentials, first), gap(o.contributions, second), **more)
        for o in outcomes
    ]


def gap(values: NDArray[np.float64], share: float) -> float:
    """A cut-off that about a share of `values` is over, in the middle of a wide gap; 0 for all."""
    steps = np.unique(np.append(values, 0.0))
    if share == 1 or len(steps) == 1:
        return 0.0
    place = min(int((1 - share) * len(steps)), len(steps) - 2)
    near = slice(max(place - 3, 0), place + 4)
    best = near.start + int(np.argmax(np.diff(steps)[near]))
    return float(steps[best] + steps[best + 1]) / 2


# -- dense


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_dense(device: str, activation: str) -> None:
    number = ACTIVATIONS.index(activation)
    layer = Layer(device, 40, 29 + 11 * number, (KINDS[number % 3],) * 3, seed=number)
    x = layer.inputs(2)
    acts, hidden = layer.rounded(x), Activations.empty(2, layer.count, device)
    gate, up, down = (DeviceMatrix.of(layer.matrix(n), device) for n in ("gate", "up", "down"))
    ffn.hidden_values(hidden, acts, gate, up, activation, PARAM)
    out = torch.zeros((2, layer.d_model), device=device)
    matvec(out, down, *hidden)
    dense = [oracle_sparse.Tests("dense")] * 2
    want = [o.y for o in oracle_sparse.sparse_ffn(layer.oracle(activation), dense, x)]
    compare(out.cpu().numpy(), np.stack(want))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_their_edges(device: str, name: str) -> None:
    edges = [0.0, -0.0, 0.01, 1e-20, 60.0, -60.0, 88.0, -88.0, 200.0, -200.0, 1e4, -1e4, 3e5]
    gates = np.append(edges, [PARAM] * 3 + np.linspace(-9, 9, 496).tolist()[:496])
    gates = np.resize(gates, 512).astype(np.float32)
    ups = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    tensors = [torch.from_numpy(values).to(device) for values in (gates, ups, np.zeros_like(ups))]
    hidden[(1,)](*tensors, float(np.float32(PARAM)), NAME=name)
    want = oracle.ffn_hidden(name, gates, ups, float(np.float32(PARAM)))
    np.testing.assert_allclose(tensors[2].cpu().numpy(), want, rtol=1e-5, atol=1e-6)


# -- of the neurons that matter


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_sparse(device: str, activation: str) -> None:
    number = ACTIVATIONS.index(activation)
    layer = Layer(device, 40, 45, (KINDS[number % 3],) * 3, seed=number)
    x = layer.inputs(1)
    for mode in ("gate", "contribution"):
        seen = []
        for share in (0.4, 1.0):
            second = share if mode == "contribution" else 1.0
            tests = asked(layer, x, activation, mode, share, second)
            seen.append(judge(layer, x, activation, tests)[0].counts[0, ACTIVE])
        assert 0 < seen[0] < seen[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["gate", "candidates", "contribution"])
def test_every_kind(device: str, kind: Kind, how: str) -> None:
    """No size is a multiple of what the kernels work in; a column ends in half a chunk."""
    layer = Layer(device, 331, 77, (kind,) * 3)
    x, mode = layer.inputs(1), "contribution" if how == "contribution" else "gate"
    chosen = layer.rng.random(77) < 0.8 if how == "candidates" else None
    tests = asked(layer, x, "silu", mode, 0.7, 0.4, candidates=chosen)
    found, _ = judge(layer, x, "silu", tests)
    candidates, gated, active = found.counts[0, :3]
    assert 10 < active < gated <= candidates <= 77
    assert (chosen is None) == (candidates == 77)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    d_model=st.integers(1, 200),
    count=st.integers(1, 80),
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 3),
    batch=st.integers(1, 4),
    how=st.sampled_from(("gate", "gate", "candidates", "contribution")),
    activation=st.sampled_from(("silu", "relu", "drelu")),
    core=st.booleans(),
)
def test_any_shape(
    device: str,
    seed: int,
    d_model: int,
    count: int,
    kinds: tuple[Kind, Kind, Kind],
    batch: int,
    how: str,
    activation: str,
    core: bool,
) -> None:
    layer = Layer(device, d_model, count, kinds, seed)
    rng, x = layer.rng, layer.inputs(batch)
    layer.core, layer.alive = rng.random(count) < 0.1, rng.random(count) < 0.9
    shares = rng.random(2)
    tests = asked(
        layer,
        x,
        activation,
        "contribution" if how == "contribution" else "gate",
        *shares,
        core=layer.core if core else None,
        alive=layer.alive,
    )
    if how == "candidates":
        tests = [dataclasses.replace(t, candidates=rng.random(count) < 0.5) for t in tests]
    judge(layer, x, activation, tests)


def test_eight_sequences_share_what_any_of_them_needs(device: str) -> None:
    """Each with cut-offs, candidates and an outcome of its own; some need nothing at all."""
    layer = Layer(device, 64, 70, ("int4", "int4", "int4"))
    x = layer.inputs(8)
    tests = asked(layer, x, "silu", "gate", 0.5, 0.8)
    sets = layer.rng.random((8, 70)) < np.linspace(0, 1, 8)[:, None]
    tests = [
        dataclasses.replace(t, candidates=own, gate_cutoff=1e9 if b == 4 else t.gate_cutoff)
        for b, (t, own) in enumerate(zip(tests, sets, strict=True))
    ]
    found, _ = judge(layer, x, "silu", tests)
    assert found.counts[[0, 4], ACTIVE].tolist() == [0, 0]
    assert len(set(found.counts[:, ACTIVE])) > 3


@pytest.mark.parametrize("mode", ["gate", "contribution"])
def test_the_core_is_always_added(device: str, mode: str) -> None:
    layer = Layer(device, 32, 70, ("int4", "int4", "int4"))
    layer.core[[0, 31, 32, 69]] = True
    layer.alive[32] = False
    none = oracle_sparse.Tests(mode, 1e9, 1e9, core=layer.core, alive=layer.alive)
    if mode == "gate":
        none = dataclasses.replace(none, candidates=np.arange(70) < 3)
    found, _ = judge(layer, layer.inputs(1), "silu", [none])
    assert found.counts[0, [ACTIVE, COUNTS.index("core_added")]].tolist() == [3, 3]


def test_nobody_passes(device: str) -> None:
    layer = Layer(device, 32, 70, ("int4", "int4", "int4"))
    for mode in ("gate", "contribution"):
        found, _ = judge(layer, layer.inputs(1), "silu", [oracle_sparse.Tests(mode, 1e9, 1e9)])
        assert not found.y.any()


def test_few_programs_take_turns(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue longer than the grid, used twice: reports add up, the output does not."""
    monkeypatch.setattr(ffn, "_PROGRAMS", 2)
    layer = Layer(device, 32, 100, ("int4", "int4", "int4"))
    x = layer.inputs(1)
    for mode in ("gate", "contribution"):
        tests = asked(layer, x, "silu", mode, 0.5, 0.5)
        once, _ = judge(layer, x, "silu", tests)
        twice = run(layer, x, "silu", tests, times=2)
        np.testing.assert_allclose(twice.y, once.y, rtol=1e-4, atol=1e-5)
        assert twice.counts.tolist() == (2 * once.counts).tolist()
        np.testing.assert_allclose(twice.captured, 2 * once.captured, rtol=1e-5)
        np.testing.assert_allclose(twice.heat, 2 * once.heat, rtol=1e-5)


# -- where only some neurons are on the device


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    d_model=st.integers(1, 200),
    count=st.integers(1, 100),
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 3),
    batch=st.integers(1, 3),
    how=st.sampled_from(("gate", "candidates", "contribution")),
    share=st.sampled_from((0.0, 0.05, 0.5, 0.9, 1.0)),
    core=st.booleans(),
)
def test_any_of_the_neurons_alone(
    device: str,
    seed: int,
    d_model: int,
    count: int,
    kinds: tuple[Kind, Kind, Kind],
    batch: int,
    how: str,
    share: float,
    core: bool,
) -> None:
    """The others are as if they never fired."""
    layer = Layer(device, d_model, count, kinds, seed)
    rng, x = layer.rng, layer.inputs(batch)
    resident = rng.random(count) < share
    layer.core, layer.alive = rng.random(count) < 0.2, rng.random(count) < 0.9
    mode = "contribution" if how == "contribution" else "gate"
    sets = {"core": layer.core if core else None, "alive": layer.alive & resident}
    tests = asked(layer, x, "relu", mode, *rng.random(2), **sets)
    if how == "candidates":
        tests = [dataclasses.replace(t, candidates=rng.random(count) < 0.5) for t in tests]
    judge(layer, x, "relu", tests, resident=resident)


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_make_a_whole(device: str, kind: Kind) -> None:
    """Neurons of a group that are apart are rounded apart; nothing else changes."""
    layer = Layer(device, 96, 135, (kind,) * 3)
    layer.core[[3, 50, 134]] = True
    x = layer.inputs(2)
    tests = asked(layer, x, "silu", "gate", 0.6, 0.4, core=layer.core)
    whole, _ = judge(layer, x, "silu", tests)
    for half in (np.arange(135) % 64 < 32, layer.rng.random(135) < 0.4):
        parts = [run(layer, x, "silu", tests, resident=each) for each in (half, ~half)]
        assert all(part.counts[:, ACTIVE].all() for part in parts)
        np.testing.assert_array_equal(sum(part.counts for part in parts), whole.counts)
        np.testing.assert_allclose(sum(part.heat for part in parts), whole.heat, rtol=1e-4)
        apart = 1e-4 if half[:32].all() else 0.01
        size = np.abs(whole.y).max()
        np.testing.assert_allclose(sum(part.y for part in parts), whole.y, atol=apart * size)


def test_the_bounds_of_few_neurons(device: str) -> None:
    layer = Layer(device, 32, 100, ("int4", "int4", "int4"))
    x = layer.inputs(2)
    resident = layer.rng.random(100) < 0.4
    tests = asked(layer, x, "silu", "gate", 0.5, 1.0, alive=resident)
    tests = [dataclasses.replace(tests[0], cap=5), dataclasses.replace(tests[1], floor=30)]
    found, _ = judge(layer, x, "silu", tests, resident=resident)
    assert found.counts[:, 1].tolist() == [5, 30]


# -- attention and the layer before


@pytest.mark.parametrize("mode", ["gate", "contribution"])
def test_sharp_attention_leaves_out_less(device: str, mode: str) -> None:
    """Every sequence has its own, also far beyond what a cut-off is moved by at most."""
    layer = Layer(device, 32, 70, ("int4", "int4", "int4"))
    x = np.repeat(layer.inputs(1), 4, 0)
    heads = np.array([[0.2, 0.4, 0.3], [0.5, 0.6, 0.4], [1, 1, 1], [0, 0, 0]], np.float32)
    sharp = Sharp(heads, 1.5, 0.4, 0.2)
    factors = sharp.factors()
    assert factors[2:] == [0.25, 4.0]
    (usual,) = asked(layer, x[:1], "silu", mode, 0.5, 0.5)
    tests = [
        # with a gap around them, since who passes is certain only there
        dataclasses.replace(
            usual,
            gate_cutoff=nearest_gap(layer, x, "potentials", f * usual.gate_cutoff),
            contribution_cutoff=nearest_gap(
                layer, x, "contributions", f * usual.contribution_cutoff
            ),
            cap=40 if mode == "gate" else None,
        )
        for f in factors
    ]
    found, _ = judge(layer, x, "silu", tests, sharp=sharp)
    active = found.counts[:, ACTIVE].tolist()
    assert active[3] < active[0] < active[1] < active[2]


def nearest_gap(layer: Layer, x: F32, of: str, value: float) -> float:
    """The middle of the gap between sorted values in which `value` lies."""
    dense = [oracle_sparse.Tests("dense")]
    (outcome,) = oracle_sparse.sparse_ffn(layer.oracle("silu"), dense, x[:1])
    values = np.sort(getattr(outcome, of))
    place = int(np.searchsorted(values, value))
    return float(np.append(0.0, values)[place] + np.append(values, 2 * values[-1])[place]) / 2


@pytest.mark.parametrize("mode", ["gate", "contribution"])
def test_who_is_added_names_candidates_of_the_next_layer(device: str, mode: str) -> None:
    layer = Layer(device, 32, 70, ("int4", "int4", "int4"))
    layer.alive[::9] = False
    x = layer.inputs(3)
    names = layer.rng.integers(-1, 70, (70, 3)).astype(np.int32)
    tests = asked(layer, x, "silu", mode, 0.4, 0.1, alive=layer.alive)
    tests[2] = dataclasses.replace(tests[2], gate_cutoff=1e9, contribution_cutoff=1e9)
    found, want = judge(layer, x, "silu", tests, names=names)
    assert found.implied is not None
    for told, outcome in zip(found.implied.view(np.uint32), want, strict=True):
        wanted = np.zeros(70, np.bool_)
        wanted[names[outcome.added][names[outcome.added] >= 0]] = True
        assert told.tolist() == mask_of(wanted).tolist()
    assert [bool(told.any()) for told in found.implied] == [True, True, False]


def test_those_named_by_the_layer_before_are_candidates(device: str) -> None:
    """They are counted where they pass and would not be candidates without."""
    layer = Layer(device, 32, 70, ("int4", "int4", "int4"))
    layer.core[[3, 50]] = True
    layer.alive[::9] = False
    x = layer.inputs(3)
    chosen, implied = (layer.rng.random((3, 70)) < 0.4 for _ in range(2))
    implied[1] = False
    tests = asked(layer, x, "silu", "gate", 0.5, 0.9, core=layer.core, alive=layer.alive)
    tests = [
        dataclasses.replace(t, candidates=both)
        for t, both in zip(tests, chosen | implied, strict=True)
    ]
    found, want = judge(layer, x, "silu", tests, chosen=chosen, implied=implied)
    more = implied & ~chosen
    expected = [int((o.passed & m).sum()) for o, m in zip(want, more, strict=True)]
    assert found.counts[:, COUNTS.index("implied_added")].tolist() == expected
    assert expected[0] > 0 == expected[1] < (want[0].passed & implied[0]).sum()


# -- floors and caps


def test_floors_and_caps(device: str) -> None:
    """Every sequence has its own, and each is told whether it acted."""
    layer = Layer(device, 32, 100, ("int4", "int4", "int4"))
    layer.core[[3, 50]] = True
    layer.alive[::9] = False
    x = layer.inputs(6)
    tests = asked(layer, x, "silu", "gate", 0.3, 1.0, core=layer.core, alive=layer.alive)
    limits = [(0, 100), (60, 100), (0, 7), (0, 0), (100, 100), (5, 90)]
    tests = [
        dataclasses.replace(t, floor=floor, cap=cap)
        for t, (floor, cap) in zip(tests, limits, strict=True)
    ]
    found, want = judge(layer, x, "silu", tests)
    bounds = found.counts[:, [COUNTS.index("floor"), COUNTS.index("cap")]].tolist()
    assert bounds == [[0, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 0]]
    assert want[1].passed.sum() >= 60 > 9 >= want[2].passed.sum()


def test_zeros_fill_no_floor(device: str) -> None:
    layer = Layer(device, 32, 40, ("int4", "int4", "int4"))
    x = layer.inputs(1)
    tests = asked(layer, x, "relu", "gate", 0.1, 1.0, floor=35)
    found, want = judge(layer, x, "relu", tests)
    assert found.counts[0, 1] == (want[0].potentials > 0).sum() < 35


# -- prediction


def test_candidates_are_named_by_their_scores(device: str) -> None:
    scores = np.random.default_rng(0).standard_normal((3, 80)).astype(np.float32)
    scores[0, :3] = np.inf, np.nan, -np.inf
    cutoffs = np.random.default_rng(1).standard_normal(71).astype(np.float32)
    scores[1, 5] = cutoffs[5]
    masks = torch.full((3, 3), 7, dtype=torch.int32, device=device)
    tensors = [torch.from_numpy(values).to(device) for values in (scores, cutoffs)]
    compact.name_candidates(masks, *tensors)
    want = np.stack([mask_of(row) for row in scores[:, :71] > cutoffs])
    assert masks.cpu().numpy().view(np.uint32).tolist() == want.tolist()
