"""Decoding with the neurons that matter, on whole models, against the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.config import ACTIVATIONS
from stem_runtime.engine import Engine
from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.kernels import available
from stem_runtime.kernels.cpu.ffn import REST_TOKENS
from stem_runtime.kernels.oracle_sparse import Outcome
from stem_runtime.kv_cache import KVCache
from stem_runtime.neuron_tables import COUNTS
from stem_runtime.quant import Kind, PackedMatrix
from stem_runtime.sparsity.exact import exact_neurons
from stem_runtime.sparsity.neurons import Neurons, Parts, Predictor, layer_weights
from stem_runtime.sparsity.plan import Candidates, FfnPlan, Mode

from .skipping import Truth, changed, mask_of, neurons_of
from .tiny import random_matrix, random_packed, tiny_config

VARIANTS = [name for name, lacks in available().items() if not lacks]
CANDIDATES, GATED, ACTIVE, CORE, IMPLIED, FLOOR, CAP, DENSE = range(len(COUNTS))
MODES: tuple[Mode, ...] = ("gate", "contribution")
KINDS: tuple[Kind, ...] = ("int4", "int4m", "int8")
EXACT = ("relu", "relu2", "fatrelu", "drelu")
TOKENS = np.random.default_rng(0).integers(0, 301, 16).tolist()
FFN = 100
EQUAL = 1e-4
"""Of the logits' spread: what another order of sums may change."""

Models = Callable[..., PackedModel]
F32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """One-layer models in which the FFN is most of what happens."""
    made: dict[str, PackedModel] = {}

    def model(kinds: Kind | dict[str, Kind] | None = None, **over: Any) -> PackedModel:
        key = f"{kinds} {over}"
        if key not in made:
            values = {"n_layers": 1, "vocab_size": 301, "ffn_dim": FFN, "residual_scale": 3.0}
            if over.get("activation") == "fatrelu":
                values["activation_param"] = 0.2
            folder = tmp_path_factory.mktemp("model") / "packed"
            made[key] = open_packed(random_packed(folder, tiny_config(**values | over), 3, kinds))
        return made[key]

    return model


def plan_of(layers: int, mode: Mode, first: float, second: float = 0.0, **more: Any) -> FfnPlan:
    """One mode and pair of cut-offs for all layers; nothing runs dense unless it is asked for."""
    gates = (first if mode == "gate" else 0.0,) * layers
    return FfnPlan((mode,) * layers, gates, (second,) * layers, **{"sinks": 0} | more)


@dataclass(frozen=True, slots=True)
class Steps:
    """What an engine said of each token: [n, vocab], [n, layers, 8], [n, layers], [n, layers, ffn]
    contributions by which heat grew, [n, layers].
    """

    logits: F32
    counts: NDArray[np.int64]
    captured: F32
    heat: F32
    sharpness: F32


def run(
    engine: Engine,
    plan: FfnPlan,
    tokens: Sequence[int] = TOKENS,
    *,
    chosen: NDArray[np.bool_] | None = None,
    rest: bool = False,
) -> Steps:
    """Decode tokens. Without `rest` layers wake before each, and run as the plan says."""
    config, steps = engine.config, []
    cache = engine.new_cache(len(tokens))
    engine.set_plan(plan)
    for place, token in enumerate(tokens):
        if not rest:
            cache.rest[:] = 0
        if chosen is not None:
            cache.candidates = np.stack([mask_of(layer[place]) for layer in chosen])
        cache.heat = np.zeros((config.n_layers, -(-config.ffn_dim // 32) * 32), np.float32)
        logits = engine.decode(cache, token, sparse=True).copy()
        assert not cache.heat[:, config.ffn_dim :].any(), "neurons of padding"
        heat = cache.heat[:, : config.ffn_dim]
        steps.append((logits, engine.last_counts, cache.captured, heat, engine.last_sharpness))
    return Steps(*map(np.array, zip(*steps, strict=True)))


def judge(
    model: PackedModel,
    neurons: Neurons,
    plan: FfnPlan,
    *,
    chosen: NDArray[np.bool_] | None = None,
    threads: int = 2,
    kernels: str | None = None,
) -> Steps:
    """Decode TOKENS, and compare everything with the oracle."""
    with Engine(model, threads=threads, kernels=kernels, neurons=neurons) as engine:
        steps = run(engine, plan, chosen=chosen)
    truth = Truth(model, neurons, plan, TOKENS, chosen=chosen, sharpness=steps.sharpness.T)
    assert np.median(compare(steps, truth, plan)) < EQUAL
    return steps


def compare(steps: Steps, truth: Truth, plan: FfnPlan, *, most: float = 0.12) -> F32:
    """Logits are near the oracle's, and nearly all equal; returns how far off, of each token.

    Activations next to a half may be rounded to the other integer, which seldom happens, but then
    later tokens see it in the cache. Neurons are compared where nothing such has happened.
    """
    errors: F32 = np.abs(steps.logits - truth.logits).max(axis=1) / truth.logits.std()
    assert errors.max() < most, errors
    for layer, outcomes in enumerate(truth.outcomes):
        for place, outcome in enumerate(outcomes):
            counts = steps.counts[place, layer]
            if outcome is None:
                assert counts.tolist() == [0] * DENSE + [1]
            elif errors[place] < EQUAL:
                seen = (steps.captured[place, layer], steps.heat[place, layer])
                same_neurons(counts, *seen, outcome, plan.contribution_cutoffs[layer])
    return errors


def same_neurons(
    counts: NDArray[np.int64], captured: float, heat: F32, outcome: Outcome, cutoff: float
) -> None:
    """The same ones, but for those whose potential or contribution is next to its cut-off."""
    either = around(outcome.potentials, passing(outcome)) & outcome.candidates
    added = (either | around(outcome.contributions, cutoff)) & outcome.candidates
    assert counts[DENSE] == 0
    assert counts[CANDIDATES] == outcome.candidates.sum()
    assert abs(counts[GATED] - outcome.passed.sum()) <= either.sum()
    assert abs(counts[ACTIVE] - outcome.added.sum()) <= added.sum()
    size = 1e-3 * outcome.contributions.max()
    want = np.where(outcome.passed, outcome.contributions, 0.0)
    np.testing.assert_allclose(heat[~either], want[~either], rtol=1e-3, atol=size)
    total, open_ = (outcome.contributions[which].sum() for which in (outcome.added, added))
    assert abs(captured - total) <= open_ + 2e-3 * total + 1e-6


def around(values: NDArray[np.float64], cutoff: float) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.abs(values - cutoff) <= EQUAL * (cutoff + 1e-9)
    return found


def passing(outcome: Outcome) -> float:
    """Between the least potential that passes and the greatest that does not."""
    low = outcome.potentials[outcome.candidates & ~outcome.passed].max(initial=0.0)
    high = outcome.potentials[outcome.passed].min(initial=np.inf)
    return float(low if np.isinf(high) else (low + high) / 2)


def cutoff_of(model: PackedModel, mode: Mode, share: float) -> float:
    """What a share of the neurons is over, of all tokens together; 1 passes everyone."""
    truth = Truth(model, neurons_of(model), plan_of(model.config.n_layers, mode, 0.0), TOKENS)
    name = "potentials" if mode == "gate" else "contributions"
    values = np.array([[getattr(o, name) for o in layer] for layer in truth.outcomes])
    return float(0.0 if share == 1 else np.quantile(values, 1 - share) if share else 1e9)


# -- against the oracle


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_active_fraction(models: Models, activation: str) -> None:
    number = ACTIVATIONS.index(activation)
    model = models(KINDS[number % 3], activation=activation)
    neurons = neurons_of(model)
    for mode in MODES:
        seen = []
        for share in (0.0, 0.03, 0.3, 0.7, 1.0):
            cutoff = cutoff_of(model, mode, share)
            plan = plan_of(1, mode, cutoff, cutoff if mode == "contribution" else 0.0)
            seen.append(judge(model, neurons, plan).counts[:, 0, ACTIVE].mean() / FFN)
        assert seen == sorted(seen)
        assert seen[0] == 0
        assert seen[-1] > (0.2 if activation in EXACT else 0.99)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_variant(models: Models, kind: Kind, variant: str) -> None:
    """No size is a multiple of what the kernels work in; both tests at once leave some neurons."""
    shape = {"d_model": 200, "head_dim": 20, "n_heads": 3, "kv_heads": 1, "ffn_dim": 141}
    model = models(kind, **shape)
    ways: tuple[tuple[Parts, Mode], ...] = (
        ("down", "contribution"),
        ("up", "gate"),
        ("gate", "gate"),
    )
    for parts, mode in ways:
        plan = plan_of(1, mode, 0.15, 0.1)
        steps = judge(model, neurons_of(model, parts), plan, kernels=variant)
        counts = steps.counts[:, 0].mean(axis=0)
        assert 0.1 * 141 < counts[ACTIVE] < 0.9 * counts[CANDIDATES] == 0.9 * 141


@pytest.mark.parametrize("ffn", [1, 32, 33, 250])
@pytest.mark.parametrize("d_model", [32, 64, 72, 136])
def test_sizes(models: Models, d_model: int, ffn: int) -> None:
    kinds: dict[str, Kind] = {"gate": "int8", "up": "int4m", "down": KINDS[d_model % 3]}
    model = models(kinds, d_model=d_model, ffn_dim=ffn)
    for mode in MODES:
        judge(model, neurons_of(model), plan_of(1, mode, 0.2, 0.1), threads=1 + ffn % 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sets_that_change_with_each_token(models: Models, variant: str) -> None:
    """Nothing outside of them is computed, wherever they lie and however small they are."""
    model = models({"gate": "int4m", "up": "int8"})
    chosen = np.zeros((1, len(TOKENS), FFN), np.bool_)
    rng = np.random.default_rng(1)
    for place in range(3, len(TOKENS)):
        chosen[0, place] = rng.random(FFN) < place / len(TOKENS)
    chosen[0, 1, 98:], chosen[0, 2, :3], chosen[0, 5, 32:], chosen[0, 6] = True, True, False, True
    for threads in (1, 3):
        plan = plan_of(1, "gate", 0.05, candidates="resampled")
        judge(model, neurons_of(model), plan, chosen=chosen, threads=threads, kernels=variant)


def test_layers_differ(models: Models) -> None:
    """Each layer has a mode and cut-offs of its own; plans change between tokens."""
    kinds: dict[str, Kind] = {"gate": "int8", "up": "int4", "down": "int4m"}
    model = models(kinds, n_layers=4, residual_scale=1.0)
    modes: tuple[Mode, ...] = ("gate", "contribution", "dense", "gate")
    plan = FfnPlan(modes, (0.2, 0.0, 0.0, 0.1), (0.0, 0.3, 0.0, 0.2), sinks=3)
    steps = judge(model, neurons_of(model), plan)
    assert np.all(steps.counts[3:, :, DENSE] == [0, 0, 1, 0])
    assert np.all(steps.counts[:3, :, DENSE] == 1)


# -- exactness


@pytest.fixture(params=EXACT)
def zeros(request: pytest.FixtureRequest, models: Models) -> Iterator[Engine]:
    model = models(activation=request.param, n_layers=3, residual_scale=1.0)
    with Engine(model, threads=2, neurons=exact_neurons(model)) as engine:
        engine.set_plan(FfnPlan.exact(3))
        yield engine


def assert_float_order(found: F32, want: F32) -> None:
    """Equal but for the order of sums, and the few activations that round otherwise for it."""
    errors = np.abs(found - want).reshape(-1, want.shape[-1]).max(axis=1) / want.std()
    assert errors.max() < 0.12, errors
    assert np.quantile(errors, 0.25) < EQUAL, errors


def decode(engine: Engine, cache: KVCache, tokens: Sequence[int], **how: bool) -> F32:
    return np.stack([engine.decode(cache, token, **how).copy() for token in tokens])


def test_zeros_are_left_out_and_nothing_changes(zeros: Engine) -> None:
    """However the tokens are read: one by one, all at once, or first so and then so."""
    engine = zeros
    dense = decode(engine, engine.new_cache(16), TOKENS)
    sparse = decode(engine, engine.new_cache(16), TOKENS, sparse=True)
    assert np.all(engine.last_counts[:, ACTIVE] < 0.7 * FFN)
    assert_float_order(sparse, dense)
    assert_float_order(engine.logits(engine.new_cache(16), TOKENS, sparse=True), dense)
    for count in (1, 5):
        cache = engine.new_cache(16)
        engine.prefill(cache, TOKENS[:count])
        rest = decode(engine, cache, TOKENS[count:], sparse=True)
        assert_float_order(rest, dense[count:])


@pytest.mark.parametrize("mode", MODES)
def test_reading_at_once_leaves_out_what_decoding_does(models: Models, mode: Mode) -> None:
    model = models(n_layers=2, residual_scale=1.0)
    core, alive = np.arange(FFN) % 10 == 0, np.arange(FFN) % 7 > 0
    neurons = neurons_of(model, core=mask_of(core), alive=mask_of(alive))
    plan = plan_of(2, mode, 0.2, 0.15, core=True)
    with Engine(model, threads=2, neurons=neurons) as engine:
        steps = run(engine, plan)
        together = engine.logits(engine.new_cache(16), TOKENS, sparse=True)
        dense = engine.logits(engine.new_cache(16), TOKENS)
    assert_float_order(together, steps.logits)
    assert np.abs(together - dense).max() > 0.5 * dense.std()
    compare(steps, Truth(model, neurons, plan, TOKENS), plan)


# -- rules


def bits(*places: int) -> NDArray[np.bool_]:
    found = np.zeros(FFN, np.bool_)
    found[list(places)] = True
    return found


@pytest.mark.parametrize("mode", MODES)
def test_the_core_is_always_added(models: Models, mode: Mode) -> None:
    """Even far under every cut-off, and outside of all candidate sets; but not without the rule."""
    model, core = models(), bits(0, 31, 32, 98)
    neurons = neurons_of(model, core=mask_of(core))
    plan = plan_of(1, mode, 1e9, 1e9, core=True)
    steps = judge(model, neurons, plan)
    assert np.all(steps.counts[:, 0, [ACTIVE, CORE]] == 4)
    without = judge(model, neurons, dataclasses.replace(plan, core=False))
    assert not without.counts[:, 0, [ACTIVE, CORE]].any()
    if mode == "gate":
        chosen = np.zeros((1, len(TOKENS), FFN), np.bool_)
        chosen[0, 5:, 40:50] = True
        plan = dataclasses.replace(plan, candidates="resampled")
        steps = judge(model, neurons, plan, chosen=chosen)
        assert np.all(steps.counts[:, 0, CANDIDATES] == np.where(np.arange(16) < 5, 4, 14))


@pytest.mark.parametrize("mode", MODES)
def test_dead_neurons_are_never_computed(models: Models, mode: Mode) -> None:
    model = models()
    alive = np.arange(FFN) % 3 > 0
    neurons = neurons_of(model, alive=mask_of(alive), core=mask_of(bits(0, 1)))
    steps = judge(model, neurons, plan_of(1, mode, 0.0, core=True))
    assert np.all(steps.counts[:, 0, CANDIDATES] == alive.sum())
    assert not steps.heat[:, 0, ~alive].any()


def bounded(model: PackedModel, plan: FfnPlan, threads: int) -> Steps:
    """Steps under a floor or a cap. Who passes is who should, but for two that are hard to part."""
    with Engine(model, threads=threads, neurons=neurons_of(model)) as engine:
        steps = run(engine, plan)
    # later tokens see what the first ones left in the cache, so that small differences grow
    for place, outcome in enumerate(Truth(model, neurons_of(model), plan, TOKENS).outcomes[0][:4]):
        assert outcome is not None
        passed = steps.heat[place, 0] > 0
        low = outcome.potentials[~passed].max(initial=0.0)
        assert outcome.potentials[passed].min() >= low * (1 - 1e-4)
        assert np.sum(passed != outcome.passed) <= 1
    return steps


@pytest.mark.parametrize("threads", [1, 3])
def test_a_cap_keeps_the_strongest(models: Models, threads: int) -> None:
    model = models()
    for cutoff in (0.0, 0.05):
        plan = plan_of(1, "gate", cutoff, caps=(10,))
        counts = bounded(model, plan, threads).counts[:, 0]
        assert counts[:, GATED].max() <= 10
        assert counts[:, GATED].mean() > 9.5  # two may be too alike to part
        assert np.all(counts[:, [FLOOR, CAP]] == [0, 1])
    roomy = judge(model, neurons_of(model), plan_of(1, "gate", 0.05, caps=(FFN,)))
    assert not roomy.counts[:, 0, [FLOOR, CAP]].any()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_floor_lets_more_in(models: Models, threads: int) -> None:
    model = models()
    for cutoff in (5.0, 2.0):
        plan = plan_of(1, "gate", cutoff, floors=(20,))
        counts = bounded(model, plan, threads).counts[:, 0]
        moved = counts[:, FLOOR] == 1
        assert moved.any()
        assert not counts[:, CAP].any()
        assert counts[:, GATED].min() >= 20
        assert counts[moved, GATED].mean() < 20.5
    met = judge(model, neurons_of(model), plan_of(1, "gate", 0.05, floors=(20,)))
    assert not met.counts[:, 0, [FLOOR, CAP]].any()


def test_the_core_joins_whatever_the_cap(models: Models) -> None:
    model = models()
    neurons = neurons_of(model, core=mask_of(bits(3, 50, 99)))
    with Engine(model, threads=2, neurons=neurons) as engine:
        steps = run(engine, plan_of(1, "gate", 0.0, caps=(10,), core=True))
    assert np.all(steps.heat[:, 0, [3, 50, 99]] > 0)
    assert steps.counts[:, 0, GATED].max() <= 13


def test_what_fired_names_candidates(models: Models) -> None:
    """Of the next layer, besides its set and its core; dense layers name nobody."""
    model = models(n_layers=4, residual_scale=1.0)
    implied = np.full((FFN, 2), -1, np.int32)
    implied[:, 1] = FFN - 1 - np.arange(FFN)
    neurons = neurons_of(model, implied=implied, core=mask_of(bits(7)))
    chosen = np.zeros((4, len(TOKENS), FFN), np.bool_)
    chosen[0], chosen[1, :, 60:], chosen[3, :, 40:50] = True, True, True
    plan = FfnPlan(
        ("gate", "gate", "dense", "gate"),
        (0.3, 0.1, 0.0, 0.1),
        (0.1, 0.0, 0.0, 0.0),
        candidates="resampled",
        core=True,
        implications=True,
        sinks=0,
    )
    for threads in (1, 3):
        steps = judge(model, neurons, plan, chosen=chosen, threads=threads)
        fired = (steps.heat[:, 0] > plan.contribution_cutoffs[0]) | bits(7)
        named = fired[:, ::-1] | chosen[1] | bits(7)
        assert steps.counts[:, 1, CANDIDATES].tolist() == named.sum(axis=1).tolist()
        more = (steps.heat[:, 1] > 0) & ~chosen[1] & fired[:, ::-1]
        assert steps.counts[:, 1, IMPLIED].tolist() == more.sum(axis=1).tolist()
        assert more.any()
        assert np.all(steps.counts[:, 3, CANDIDATES] == 11)
    without = judge(model, neurons, dataclasses.replace(plan, implications=False), chosen=chosen)
    assert np.all(without.counts[:, 1, CANDIDATES] == 41)
    assert not without.counts[:, :, IMPLIED].any()


def test_resting_layers_name_nobody(models: Models) -> None:
    model = models(n_layers=3, residual_scale=1.0)
    neurons = neurons_of(model, implied=np.arange(FFN, dtype=np.int32)[:, None])
    plan = plan_of(3, "gate", 0.0, candidates="resampled", implications=True)
    chosen = np.zeros((3, len(TOKENS), FFN), np.bool_)
    chosen[0], chosen[2, :, :10] = True, True
    with Engine(model, threads=2, neurons=neurons) as engine:
        counts = run(engine, plan, chosen=chosen, rest=True).counts
    assert counts[0, :, CANDIDATES].tolist() == [FFN, FFN, FFN]
    assert counts[1:, 0, DENSE].all()
    assert np.all(counts[REST_TOKENS, :, DENSE] == 1)


def test_the_first_positions_run_dense(models: Models) -> None:
    model = models(n_layers=2, residual_scale=1.0)
    neurons, plan = neurons_of(model), plan_of(2, "gate", 0.3, sinks=5)
    steps = judge(model, neurons, plan)
    assert steps.counts[:, :, DENSE].tolist() == [[1, 1]] * 5 + [[0, 0]] * 11
    with Engine(model, threads=2, neurons=neurons) as engine:
        dense = decode(engine, engine.new_cache(16), TOKENS)
    np.testing.assert_array_equal(steps.logits[:5], dense[:5])
    assert np.abs(steps.logits[5:] - dense[5:]).max(axis=1).min() > 0.01


def test_sharpness_is_the_largest_weight(models: Models) -> None:
    with Engine(model := models(attn_scale=1e-9), threads=3, neurons=neurons_of(model)) as engine:
        flat = run(engine, plan_of(1, "gate", 0.0)).sharpness[:, 0]
    np.testing.assert_allclose(flat, 1 / np.arange(1, 17), rtol=1e-3)
    with Engine(
        model := models(layer_windows=(1,)), threads=2, neurons=neurons_of(model)
    ) as engine:
        np.testing.assert_allclose(run(engine, plan_of(1, "gate", 0.0)).sharpness, 1.0, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_sharp_attention_lowers_the_cutoffs(models: Models, mode: Mode) -> None:
    model = models()
    neurons = neurons_of(model, sharpness=(0.5, 0.25))
    plan = plan_of(1, mode, 0.2, 0.2)
    even = judge(model, neurons, plan)
    moved = judge(model, neurons, dataclasses.replace(plan, attention=1.0))
    assert even.sharpness.max() == 1
    assert even.sharpness.min() < 0.4
    more = (moved.counts - even.counts)[:, 0, ACTIVE]
    sharp = even.sharpness[:, 0] > 0.5
    assert np.all(more[sharp] >= 0)
    assert np.all(more[~sharp] <= 0)
    assert more[sharp].max() > 0 > more[~sharp].min()
    # at most by a factor of 4, either way
    for strength, factor in (((0.0, 0.05), 0.25), ((2.0, 0.05), 4.0)):
        extreme = neurons_of(model, sharpness=strength)
        steps = judge(model, extreme, dataclasses.replace(plan, attention=8.0))
        same = judge(model, neurons, plan_of(1, mode, 0.2 * factor, 0.2 * factor))
        assert steps.counts.tolist() == same.counts.tolist()


def test_without_a_set_everyone_is_a_candidate(models: Models) -> None:
    model = models()
    steps = judge(
        model,
        neurons_of(model),
        plan_of(1, "gate", 0.1, candidates="resampled"),
        chosen=np.ones((1, 16, FFN), np.bool_),
    )
    with Engine(model, threads=2, neurons=neurons_of(model)) as engine:
        free = run(engine, plan_of(1, "gate", 0.1, candidates="resampled"))
    assert_float_order(free.logits, steps.logits)
    assert free.counts.tolist() == steps.counts.tolist()


@pytest.mark.parametrize("rank", [1, 48, 64])
def test_a_predictor_names_the_candidates(models: Models, rank: int) -> None:
    """Whatever its rank, and however small its numbers are."""
    model, predictor = models(), guess(np.random.default_rng(rank), rank, std=1e-3)
    predictor.cutoffs[90:] = np.finfo(np.float32).max
    neurons = neurons_of(model, predictor=predictor)
    for threads in (1, 2):
        plan = plan_of(1, "gate", 0.1, candidates="predicted")
        counts = judge(model, neurons, plan, threads=threads).counts[:, 0]
        assert 20 < counts[:, CANDIDATES].mean() < 70
        assert counts[:, CANDIDATES].std() > 1


def guess(rng: np.random.Generator, rank: int = 32, std: float = 1.0) -> Predictor:
    """A predictor that knows nothing, for 64 inputs; it names about half of the neurons."""
    axes = random_matrix(rng, rank, 64, "int8", std=std)
    cutoffs = rng.normal(0.0, 8 * std * rank**0.5, FFN).astype(np.float32)
    return Predictor(axes, random_matrix(rng, FFN, rank, "int8"), cutoffs)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    modes=st.tuples(*[st.sampled_from(("gate", "gate", "contribution", "dense"))] * 3),
    candidates=st.sampled_from(("all", "resampled", "predicted")),
    switches=st.tuples(*[st.booleans()] * 4),
    activation=st.sampled_from(("silu", "drelu")),
    threads=st.integers(1, 4),
)
def test_rules_together(
    models: Models,
    seed: int,
    modes: tuple[Mode, ...],
    candidates: Candidates,
    switches: tuple[bool, ...],
    activation: str,
    threads: int,
) -> None:
    rng, count = np.random.default_rng(seed), len(TOKENS)
    model = models(n_layers=3, residual_scale=1.0, activation=activation)
    neurons = neurons_of(model, sharpness=(0.5, 0.3))
    for layer in range(3):
        neurons = changed(
            neurons,
            layer,
            core=mask_of(rng.random(FFN) < 0.1),
            alive=mask_of(rng.random(FFN) < 0.9),
            implied=rng.integers(-1, FFN, (FFN, 1 + layer)).astype(np.int32),
            predictor=guess(rng),
        )
    gates, downs = (tuple(rng.choice([0.0, 0.1, 0.4], 3).tolist()) for _ in range(2))
    core, implications, attention, sinks = switches
    plan = FfnPlan(
        modes,
        gates,
        downs,
        candidates,
        core=core,
        implications=implications,
        attention=1.5 * attention,
        sinks=2 * sinks,
    )
    chosen = rng.random((3, count, FFN)) < rng.random((3, count, 1))
    errors = []
    with Engine(model, threads=threads, neurons=neurons) as engine:
        for start in range(0, count, 4):  # short ones, so that differences do not go far
            tokens, sets = TOKENS[start : start + 4], chosen[:, start : start + 4]
            steps = run(engine, plan, tokens, chosen=sets)
            truth = Truth(model, neurons, plan, tokens, chosen=sets, sharpness=steps.sharpness.T)
            errors.append(compare(steps, truth, plan, most=0.3))
    assert np.median(errors) < EQUAL, errors


# -- what steps leave behind


def test_heat_is_what_neurons_contributed(models: Models) -> None:
    """Of all tokens read at once; of one decoded, those who passed the gate test."""
    model = models("int8", n_layers=2, residual_scale=1.0)
    neurons, plan = neurons_of(model), plan_of(2, "contribution", 0.0, 0.3)
    truth = Truth(model, neurons, plan_of(2, "gate", 0.0), TOKENS)
    want = np.array([sum(o.contributions for o in layer if o) for layer in truth.outcomes])
    with Engine(model, threads=3, neurons=neurons) as engine:
        for count in (16, 3):
            cache = engine.new_cache(16)
            cache.heat = np.zeros((2, 128), np.float32)
            engine.prefill(cache, TOKENS[:count])
            engine.logits(cache, TOKENS[count:]) if count < 16 else None
            np.testing.assert_allclose(cache.heat[:, :FFN], want, rtol=0.02, atol=0.02)
            assert not cache.heat[:, FFN:].any()
        alone = run(engine, plan_of(2, "contribution", 0.0)).heat.sum(axis=0)
        np.testing.assert_allclose(alone, want, rtol=0.02, atol=0.02)
        steps = run(engine, plan)
    for place in range(2, 16):
        active = np.where(steps.heat[place] > 0.3, steps.heat[place], 0).sum(axis=1)
        np.testing.assert_allclose(steps.captured[place], active, rtol=1e-5)


def test_layers_that_leave_out_next_to_nothing_rest(models: Models) -> None:
    model = models(n_layers=2, residual_scale=1.0, ffn_dim=96)
    neurons = neurons_of(model)
    tokens = TOKENS + TOKENS + TOKENS[:4]
    for mode in MODES:
        gates = (0.001, 0.5) if mode == "gate" else (0.0, 0.0)
        plan = FfnPlan((mode, mode), gates, (0.0, 1e9), sinks=2)
        with Engine(model, threads=2, neurons=neurons) as engine:
            steps = run(engine, plan, tokens, rest=True)
            again = run(engine, plan, tokens, rest=True)
        once = [1, 1, 0, *[1] * REST_TOKENS]
        assert steps.counts[:, 0, DENSE].tolist() == [*once, *once[2:], 0, 1]
        assert steps.counts[:, 1, DENSE].tolist() == [1, 1] + [0] * (len(tokens) - 2)
        np.testing.assert_array_equal(again.logits, steps.logits)
        np.testing.assert_array_equal(again.counts, steps.counts)


def test_a_sequence_begins_rested(models: Models) -> None:
    """However it begins, nothing is left of what was decoded before."""
    model = models()
    with Engine(model, threads=2, neurons=neurons_of(model)) as engine:
        engine.set_plan(plan_of(1, "gate", 0.001))
        for begin in (1, 3):
            cache = engine.new_cache(16)
            for _ in range(2):  # the second puts the layer to rest
                engine.decode(cache, 5, sparse=True)
            assert engine.last_counts[0, DENSE] == 1
            cache = engine.new_cache(16)
            if begin > 1:
                engine.prefill(cache, TOKENS[: begin - 1])
            engine.decode(cache, 5, sparse=True)
            assert engine.last_counts[0, DENSE] == 0


# -- threads


@pytest.mark.parametrize("where", ["everywhere", "front", "end", "nowhere"])
def test_the_number_of_threads_does_not_show(models: Models, where: str) -> None:
    """Wherever the active neurons are, and with more threads than groups."""
    model = models(ffn_dim=300)
    alive = np.full(300, where == "everywhere")
    alive[{"front": slice(0, 20), "end": slice(280, 300)}.get(where, slice(0, 0))] = True
    neurons, plan = neurons_of(model, alive=mask_of(alive)), plan_of(1, "gate", 0.1, 0.05)
    seen = [judge(model, neurons, plan, threads=threads) for threads in (1, 2, 3, 4, 11)]
    for other in seen[1:]:
        assert_float_order(other.logits, seen[0].logits)
        assert other.counts.tolist() == seen[0].counts.tolist()


# -- what does not fit, and what is broken


def test_what_does_not_fit_is_refused(models: Models) -> None:
    model = models(n_layers=2)
    neurons = neurons_of(model)
    with Engine(model, threads=1) as engine:
        for call in (
            lambda: engine.decode(engine.new_cache(2), 1, sparse=True),
            lambda: engine.logits(engine.new_cache(2), [1], sparse=True),
            lambda: engine.set_plan(None),
            lambda: engine.last_counts,
        ):
            with pytest.raises(UsageError, match="without neurons to skip"):
                call()
    with Engine(model, threads=1, neurons=neurons) as engine:
        with pytest.raises(UsageError, match="no plan"):
            engine.decode(engine.new_cache(2), 1, sparse=True)
        with pytest.raises(UsageError, match="3 layers"):
            engine.set_plan(plan_of(3, "gate", 0.0))
        with pytest.raises(UsageError, match="no predictor"):
            engine.set_plan(plan_of(2, "gate", 0.0, candidates="predicted"))
        engine.set_plan(plan_of(2, "gate", 0.0))
        cache = engine.new_cache(2)
        cache.candidates = np.zeros((2, 3), np.uint32)
        with pytest.raises(UsageError, match="another model"):
            engine.decode(cache, 1, sparse=True)
        assert cache.length == 0
    lacking: tuple[tuple[Parts, FfnPlan, str], ...] = (
        ("down", plan_of(2, "gate", 0.0), "rows of up"),
        ("up", plan_of(2, "gate", 0.0, candidates="resampled"), "gate rows"),
    )
    for parts, plan, lacks in lacking:
        with Engine(model, threads=1, neurons=neurons_of(model, parts)) as engine:
            with pytest.raises(UsageError, match=lacks):
                engine.set_plan(plan)
            engine.set_plan(plan_of(2, "contribution", 0.0))


def test_neurons_of_another_model_are_refused(models: Models) -> None:
    model, predictor = models(), guess(np.random.default_rng(0))
    foreign = [neurons_of(models(ffn_dim=96)), neurons_of(models(d_model=96))]
    foreign += [neurons_of(models("int8")), neurons_of(models(n_layers=2))]
    wrong: list[dict[str, Any]] = [
        {"weights": np.ones(FFN - 1, np.float32)},
        {"norms": np.ones((FFN, 1), np.float32)},
        {"core": np.zeros(3, np.uint32)},
        {"alive": np.zeros(5, np.uint32)},
        {"implied": np.full((FFN - 1, 2), -1, np.int32)},
        {"implied": np.full((FFN, 2), FFN, np.int32)},
        {"predictor": dataclasses.replace(predictor, cutoffs=np.zeros(3, np.float32))},
        {"predictor": dataclasses.replace(predictor, axes=predictor.scores)},
        {"predictor": dataclasses.replace(predictor, scores=predictor.axes)},
        {"stored": layer_weights(models(d_model=96), 0, "up")},
    ]
    foreign += [neurons_of(model, **values) for values in wrong]
    for neurons in foreign:
        with pytest.raises(UsageError, match="another"):
            Engine(model, threads=1, neurons=neurons)
    Engine(model, threads=1, neurons=neurons_of(model, predictor=predictor)).close()


def test_layers_without_neurons_run_dense(models: Models) -> None:
    model = models(n_layers=2, residual_scale=1.0)
    neurons = neurons_of(model)
    some = Neurons((neurons.layers[0], None))
    plan = FfnPlan(("gate", "dense"), (0.2, 0.0), (0.0, 0.0), sinks=0)
    with Engine(model, threads=2, neurons=some) as engine:
        with pytest.raises(UsageError, match="Layer 1 has no neurons"):
            engine.set_plan(plan_of(2, "gate", 0.0))
        steps = run(engine, plan)
        compare(steps, Truth(model, neurons, plan, TOKENS), plan)
        assert_float_order(engine.logits(engine.new_cache(16), TOKENS, sparse=True), steps.logits)
        cache = engine.new_cache(16)
        cache.heat = np.zeros((2, 128), np.float32)
        engine.prefill(cache, TOKENS)
        assert cache.heat[0].any()
        assert not cache.heat[1].any()


@pytest.mark.parametrize("broken", ["inputs", "gate", "up", "down", "weights", "norms"])
def test_broken_numbers_crash_nothing(
    models: Models, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They spoil logits at most: every count stays one of neurons."""
    model = models()
    neurons = neurons_of(model)
    values = np.ones(FFN, np.float32)
    values[::3], values[1::5] = np.nan, np.inf
    whole, vector = PackedModel.matrix, PackedModel.vector
    if broken in ("weights", "norms"):
        neurons = changed(neurons, 0, **{broken: values})
    else:

        def spoiled(self: PackedModel, name: str) -> PackedMatrix:
            matrix = whole(self, name)
            if name.rpartition(".")[2] != broken:
                return matrix
            tiles = matrix.joined().copy()
            tiles[::2, 0, :2], tiles[1::2, 0, :2] = (0x00, 0x7E), (0x00, 0x7C)
            return PackedMatrix.of_tiles(name, matrix.rows, matrix.cols, matrix.kind, tiles)

        def spoiled_vector(self: PackedModel, name: str) -> F32:
            found = vector(self, name)
            return found * np.nan if broken == "inputs" and name.endswith("ffn_norm") else found

        monkeypatch.setattr(PackedModel, "matrix", spoiled)
        monkeypatch.setattr(PackedModel, "vector", spoiled_vector)
        with np.errstate(invalid="ignore"):
            neurons = neurons_of(model)
    for mode, more in (
        ("gate", {}),
        ("gate", {"caps": (5,)}),
        ("gate", {"floors": (50,), "candidates": "resampled"}),
        ("contribution", {}),
    ):
        with Engine(model, threads=2, neurons=neurons) as engine:
            plan = plan_of(1, mode, 0.3, 0.1, attention=1.0, **more)  # type: ignore[arg-type]
            counts = run(engine, plan).counts[:, 0]
            engine.logits(engine.new_cache(16), TOKENS, sparse=True)
        assert np.all(np.diff(counts[:, [CANDIDATES, GATED, ACTIVE]], axis=1) <= 0)
        assert counts[:, CANDIDATES].max() <= FFN
        assert counts.min() >= 0
