"""Measuring plans with the engine's own sparse steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from stem_runtime.engine import Cancelled, Engine
from stem_runtime.sparsity import measure
from stem_runtime.sparsity.budget import Spread
from stem_runtime.sparsity.ffn_profile import FfnProfile
from stem_runtime.sparsity.measure import (
    Decoded,
    Divergence,
    Passage,
    decode_all,
    dense_losses,
    in_turns,
    log_softmax,
    race,
    read_losses,
)
from stem_runtime.sparsity.plan import FfnPlan
from stem_runtime.sparsity.potentials import CONTRIBUTION, LEVELS, MOST

from .fitted import SPARSE, fitted, sequences

PASSAGES = [Passage(tokens, 20) for tokens in sequences(3, 60)]


def check() -> None:
    pass


def late(profile: FfnProfile, s: float) -> FfnPlan:
    """The contribution test alone in every layer."""
    tests, levels = np.full(2, CONTRIBUTION), np.full(2, s / MOST * (LEVELS - 1))
    return Spread(tests, levels).plan(profile.tables)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, FfnProfile]]:
    """A naturally sparse model with everything that its profile offers."""
    model, profile = fitted(tmp_path_factory.mktemp("sparse"), **SPARSE)
    with Engine(model, threads=1, neurons=profile.neurons(model, parts="gate")) as engine:
        yield engine, profile


@pytest.fixture(scope="module")
def silu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, FfnProfile]]:
    model, profile = fitted(tmp_path_factory.mktemp("silu"))
    with Engine(model, threads=1, neurons=profile.neurons(model, parts="gate")) as engine:
        yield engine, profile


def test_divergence_is_zero_for_nothing_and_grows(silu: tuple[Engine, FfnProfile]) -> None:
    engine, profile = silu
    divergence = Divergence(engine, PASSAGES, profile.plan(0.01), check)
    assert divergence(profile.plan(0.01)) == 0
    found = [divergence(profile.plan(s)) for s in (0.2, 0.5, 0.9)]
    assert found == sorted(found)
    assert found[0] > 0


def test_divergence_is_that_of_the_definition(silu: tuple[Engine, FfnProfile]) -> None:
    engine, profile = silu
    plan, least = profile.plan(0.6), profile.plan(0.01)
    tokens = PASSAGES[0].tokens

    def logs(sparse: FfnPlan | None) -> np.ndarray:
        if sparse is not None:
            engine.set_plan(sparse)
        found = engine.logits(engine.new_cache(60), tokens, sparse=sparse is not None)
        wide = found.astype(np.float64)
        return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))

    dense = logs(None)
    by_hand = [(np.exp(dense) * (dense - logs(p))).sum(axis=1).mean() for p in (plan, least)]
    found = Divergence(engine, PASSAGES[:1], least, check)(plan)
    assert found == pytest.approx(by_hand[0] - by_hand[1], rel=0.01)


def test_few_scores_are_held(
    silu: tuple[Engine, FfnProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, profile = silu
    monkeypatch.setattr(measure, "SCORES", 320 * 70)
    divergence = Divergence(engine, PASSAGES, profile.plan(0.01), check)
    assert [len(tokens) for tokens in divergence._tokens] == [60, 10]


def test_reading_and_decoding_agree(silu: tuple[Engine, FfnProfile]) -> None:
    engine, profile = silu
    for s in (0.0, 0.6):
        # decode runs layers dense where too many pass the gate test
        plan = late(profile, s)
        decoded = decode_all(engine, plan, PASSAGES, check)
        read = read_losses(engine, plan, PASSAGES, check)
        assert len(read) == len(decoded.losses) == 3 * 39
        assert read == pytest.approx(decoded.losses, abs=0.3)
        active = decoded.counts[:, 2].mean() / 96
        assert active == pytest.approx(1 - s, abs=0.1)
    dense = dense_losses(engine, PASSAGES, check)
    nothing = decode_all(engine, profile.plan(0.0), PASSAGES, check)
    assert nothing.losses == pytest.approx(dense, abs=0.05)
    assert (nothing.counts[:, :3] == 96).all()
    assert nothing.sharpness.shape == (3 * 39, 2)


def test_exact_zeros_change_nothing(sparse: tuple[Engine, FfnProfile]) -> None:
    engine, _ = sparse
    dense = dense_losses(engine, PASSAGES, check)
    exact = decode_all(engine, FfnPlan.exact(2), PASSAGES, check)
    assert exact.change(dense) == pytest.approx(0, abs=0.01)
    assert 0.1 < exact.counts[:, 2].mean() / 96 < 0.5
    assert exact.recall(exact) == 1


@pytest.mark.parametrize("candidates", ["predicted", "resampled"])
def test_candidates_are_fewer_and_hold_most(
    sparse: tuple[Engine, FfnProfile], candidates: str
) -> None:
    engine, _ = sparse
    exact = FfnPlan.exact(2)
    full = decode_all(engine, exact, PASSAGES, check)
    some = FfnPlan(
        exact.modes, exact.gate_cutoffs, exact.contribution_cutoffs, candidates=candidates
    )  # type: ignore[arg-type]
    found = decode_all(engine, some, PASSAGES, check)
    # a resampler may find that its sets are not worth keeping to
    fewer = found.counts[:, 0].mean() < full.counts[:, 0].mean()
    assert fewer or candidates == "resampled"
    assert 0.5 < found.recall(full) <= 1


def test_recall_is_the_share_that_was_computed() -> None:
    none = np.zeros((2, 8))
    full = Decoded(np.zeros(2), none, np.array([[2, 4], [2, 4]], np.float32), np.zeros((2, 2)))
    some = Decoded(np.zeros(2), none, np.array([[1, 9], [2, 4]], np.float32), np.zeros((2, 2)))
    assert some.recall(full) == pytest.approx((3 / 4 + 1) / 2)
    empty = Decoded(np.zeros(2), none, np.zeros((2, 2), np.float32), np.zeros((2, 2)))
    assert some.recall(empty) == 1
    worse = Decoded(np.full(2, np.log(1.05)), none, full.captured, full.sharpness)
    assert worse.change(full.losses) == pytest.approx(0.05)


@pytest.mark.parametrize("candidates", ["all", "predicted", "resampled"])
def test_a_race_times_both_sides(
    sparse: tuple[Engine, FfnProfile], candidates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = sparse
    asked: list[tuple[int, bool]] = []
    decode = Engine.decode

    def watched(self: Engine, cache: object, token: int, **options: bool) -> object:
        asked.append((token, options.get("sparse", False)))
        return decode(self, cache, token, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "decode", watched)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    exact = FfnPlan.exact(2)
    plan = FfnPlan(
        exact.modes, exact.gate_cutoffs, exact.contribution_cutoffs, candidates=candidates
    )  # type: ignore[arg-type]
    assert min(race(engine, plan, PASSAGES, check)) > 0
    runs = [asked[i : i + 40] for i in range(0, len(asked), 40)]
    assert [run[0][1] for run in runs] == [True, False, False, True]
    assert [token for token, _ in runs[0]] == [token for token, _ in runs[1]]


def test_a_machine_that_is_slow_for_a_while_changes_no_ratio() -> None:
    """Though one side has most of its turns in that time, and the other has not."""
    slow = np.array([1, 4, 1, 4, 1, 4, 1, 4, 1])
    dense, sparse = 100 / slow, 150 / slow
    sparse[4] /= 4  # others began between the two runs of this turn
    assert in_turns(dense.tolist(), sparse.tolist()) == pytest.approx((100, 150))
    assert in_turns([100, 110, 90], [80, 88, 72]) == pytest.approx((100, 80))


def test_everything_can_be_stopped(silu: tuple[Engine, FfnProfile]) -> None:
    engine, profile = silu

    def stop() -> None:
        raise Cancelled("stopped")

    plan = profile.plan(0.3)
    divergence = Divergence(engine, PASSAGES, plan, check)
    divergence._check = stop
    for work in (
        lambda: divergence(plan),
        lambda: decode_all(engine, plan, PASSAGES, stop),
        lambda: read_losses(engine, plan, PASSAGES, stop),
        lambda: dense_losses(engine, PASSAGES, stop),
        lambda: race(engine, plan, PASSAGES, stop),
    ):
        with pytest.raises(Cancelled):
            work()


def test_log_softmax() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32) * 50
    found = log_softmax(logits.copy())
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide - wide.max()).sum(axis=1, keepdims=True)) - wide.max()
    assert np.allclose(found, expected, atol=1e-4)
