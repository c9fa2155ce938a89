"""Budget policies: what they promise, on random tables and on ones made for the purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_runtime.errors import UsageError
from stem_runtime.sparsity import budget
from stem_runtime.sparsity.plan import FfnPlan
from stem_runtime.sparsity.potentials import CONTRIBUTION, CROWDED, GATE, LEVELS, FfnTables

LAYERS = 5


def tables(seed: int = 0, natural: float = 1.0, layers: int = LAYERS) -> FfnTables:
    """Layers whose loss grows in different ways; a share `natural` of the neurons fires."""
    rng = np.random.default_rng(seed)
    skipped = np.linspace(0, 0.95, LEVELS)
    active = np.tile(natural * (1 - skipped), (layers, 2, 1))
    power = rng.uniform(1.2, 2.5, (layers, 1))
    scale = rng.uniform(0.2, 1, (layers, 1))
    dropped = np.empty_like(active)
    dropped[:, CONTRIBUTION] = scale * skipped**power
    dropped[:, GATE] = np.minimum(1, dropped[:, CONTRIBUTION] * rng.uniform(1.2, 3, (layers, 1)))
    cutoffs = np.cumsum(rng.uniform(0, 1, active.shape), axis=2)
    cutoffs[:, :, 0] = 0
    gated = np.ones_like(active)
    gated[:, GATE] = natural * (1 - skipped * 0.9)
    gates = cutoffs.copy()
    gates[:, CONTRIBUTION] = 0
    columns = (gates, cutoffs, gated, active, np.minimum(1, active * 8), dropped)
    one = np.ones(layers, np.float32)
    f32 = [column.astype(np.float32) for column in columns]
    costs = np.tile(np.array([3000, 3000, 2600, 400], np.float32), (layers, 1))
    return FfnTables(*f32, costs=costs, hurts=one, learned=one, gather=np.ones(2, np.float32))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.95), st.sampled_from(budget.POLICIES), st.booleans())
def test_a_plan_skips_the_share_that_was_asked_for(
    seed: int, s: float, policy: str, sparse: bool
) -> None:
    found = tables(seed, 0.3 if sparse else 1.0)
    rng = np.random.default_rng(seed)
    found = dataclasses.replace(
        found,
        hurts=rng.uniform(0.1, 4, LAYERS).astype(np.float32),
        learned=rng.uniform(0.5, 2, LAYERS).astype(np.float32),
    )
    spread = budget.spread(found, s, policy)
    # greedy stops at a whole slice
    slack = 0.08 if policy == "greedy" else 1e-3
    assert max(s, 0.7 * sparse) - 1e-3 <= 1 - spread.active(found) <= max(s, 0.7 * sparse) + slack
    plan = budget.plan(found, s, policy)
    assert len(plan.modes) == LAYERS
    assert plan.attention == (budget.ATTENTION if policy == "attention" else 0)
    assert ("dense" in plan.modes) <= (not sparse)
    if plan.attention:
        return
    for layer, (test, level) in enumerate(zip(spread.tests, spread.levels, strict=True)):
        cutoffs = found.contribution_cutoffs[layer, test]
        assert cutoffs[int(level)] - 1e-5 <= plan.contribution_cutoffs[layer]
        assert plan.contribution_cutoffs[layer] <= cutoffs[min(int(level) + 1, LEVELS - 1)] + 1e-5


def test_the_global_rule_drops_the_same_share_everywhere() -> None:
    found = tables()
    spread = budget.spread(found, 0.4, "global")
    dropped = [
        np.interp(level, range(LEVELS), found.dropped[layer, test])
        for layer, (test, level) in enumerate(zip(spread.tests, spread.levels, strict=True))
    ]
    assert max(dropped) - min(dropped) < 1e-3
    within = budget.plan_within(found, dropped[0])
    assert within.contribution_cutoffs == pytest.approx(
        budget.plan(found, 0.4).contribution_cutoffs, abs=0.02
    )
    skipped = 1 - np.array(spread.levels) / (LEVELS - 1)
    assert np.ptp(skipped) > 0.05
    uniform = budget.spread(found, 0.4, "uniform")
    assert np.ptp(uniform.levels) < 1e-3


def test_each_layer_has_the_test_that_reads_less() -> None:
    found = tables()
    even = np.full(LAYERS, 0.5)
    slow = dataclasses.replace(found, gather=np.array([9, 1], np.float32))
    assert (budget.better_tests(slow, even).tests == CONTRIBUTION).all()
    cheap, dear = found.dropped.copy(), found.dropped.copy()
    cheap[:, GATE] = cheap[:, CONTRIBUTION]
    dear[:, GATE, 1:] = 1
    for dropped, test in ((cheap, GATE), (dear, CONTRIBUTION)):
        now = dataclasses.replace(found, dropped=dropped)
        assert (budget.better_tests(now, even).tests == test).all()


def test_a_gate_test_that_too_many_pass_is_not_used() -> None:
    found = tables()
    for s in (0.1, 0.4, 0.7):
        for policy in budget.POLICIES:
            spread = budget.spread(found, s, policy)
            gated = spread.of(found.gated)[spread.tests == GATE]
            assert (gated <= CROWDED).all()
    assert set(budget.plan(found, 0.2, "uniform").modes) == {"contribution"}
    assert "gate" in budget.plan(found, 0.7).modes


def test_greedy_spares_the_layer_that_hurts() -> None:
    found = tables()
    hurts = np.ones(LAYERS, np.float32)
    hurts[2] = 100
    spared = budget.spread(dataclasses.replace(found, hurts=hurts), 0.5, "greedy")
    even = budget.spread(found, 0.5, "greedy")
    assert spared.levels[2] < even.levels[2] / 2


def loss_of(found: FfnTables, hurts: np.ndarray) -> budget.Loss:
    """A loss that grows with the square of what a layer drops, by as much as it hurts."""

    def loss(plan: FfnPlan) -> float:
        total = 0.0
        for layer, mode in enumerate(plan.modes):
            if mode != "dense":
                test = GATE if mode == "gate" else CONTRIBUTION
                cutoffs = found.contribution_cutoffs[layer, test]
                dropped = np.interp(
                    plan.contribution_cutoffs[layer], cutoffs, found.dropped[layer, test]
                )
                total += float(hurts[layer]) * float(dropped) ** 2
        return total

    return loss


def test_sensitivities_are_what_each_layer_hurts() -> None:
    found = tables()
    hurts = np.array([1, 5, 0.3, 2, 1])
    asked: list[int] = []
    measured = budget.sensitivities(found, loss_of(found, hurts), asked.append)
    assert measured == pytest.approx(hurts, rel=1e-3)
    assert asked == list(range(LAYERS))


def test_the_learned_policy_beats_the_global_rule() -> None:
    found = tables()
    loss = loss_of(found, np.array([8, 0.1, 0.1, 0.1, 4]))
    calls: list[int] = []
    learned = budget.learn(found, 0.5, loss, calls.append)
    assert calls == list(range(budget.ROUNDS * budget.SIZE + 1))
    better = dataclasses.replace(found, learned=learned)

    def price(policy: str) -> float:
        spread = budget.spread(better, 0.5, policy)
        return loss(spread.plan(better)) + budget.COMPUTE_PRICE * spread.bytes_share(better)

    assert price("learned") < 0.9 * price("global")
    assert np.array_equal(learned, budget.learn(found, 0.5, loss, lambda _: None))
    assert not np.array_equal(learned, budget.learn(found, 0.5, loss, lambda _: None, seed=1))


def test_attention_moves_cutoffs_and_keeps_the_mean() -> None:
    found = tables()
    plain, attentive = (budget.plan(found, 0.4, policy) for policy in ("global", "attention"))
    ratio = np.array(attentive.contribution_cutoffs) / np.array(plain.contribution_cutoffs)
    assert np.ptp(ratio) < 1e-6
    assert ratio[0] != pytest.approx(1, abs=1e-3)
    draws = np.exp(budget.ATTENTION * np.random.default_rng(0).standard_normal(4000))
    spread = budget.spread(found, 0.4, "attention")
    shares = [
        np.interp(
            draws * attentive.contribution_cutoffs[layer],
            found.contribution_cutoffs[layer, test],
            found.active[layer, test],
        ).mean()
        for layer, test in enumerate(spread.tests)
    ]
    assert np.mean(shares) == pytest.approx(0.6, abs=0.02)


def test_nothing_is_skipped_where_nothing_is_asked() -> None:
    assert set(budget.plan(tables(), 0.0).modes) == {"dense"}
    exact = budget.plan(tables(natural=0.2), 0.5)
    assert "dense" not in exact.modes
    assert set(exact.contribution_cutoffs) == {0.0}


@pytest.mark.parametrize("s", [-0.1, 0.96, float("nan")])
def test_other_shares_are_refused(s: float) -> None:
    with pytest.raises(UsageError, match=r"from 0 to 0\.95"):
        budget.plan(tables(), s)


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(UsageError, match="one of uniform, global"):
        budget.plan(tables(), 0.5, "clever")
