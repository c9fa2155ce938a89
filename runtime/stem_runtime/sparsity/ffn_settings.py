"""Choosing and measuring the ways to skip neurons that a profile offers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..formats.packed import PackedModel
from . import budget
from .ffn_profile import FfnProfile, FfnSetting, PolicyTrial
from .measure import (
    PROMPT,
    Check,
    Decoded,
    Divergence,
    Passage,
    decode_all,
    dense_losses,
    race,
    read_losses,
)
from .neurons import Parts, layer_weights
from .plan import FfnPlan, parts_for
from .potentials import CONTRIBUTION, EXACT_ZEROS, GATE

BUDGETS = {"1%": 0.01, "5%": 0.05}
"""Settings by name, and how much of its perplexity each may add."""

HALVINGS = 6
"""How finely the share of skipped neurons is searched for."""

RETREATS = 3
"""How often a setting over its budget on held-out text is drawn back."""

_LEAST = 0.01  # share of skipped neurons whose only effect is another rounding
_BACK = 0.8
_SHARP = 256  # tokens that the sharpness of attention is learned from
_TIMED = 13.0  # level of the tables that leaves few enough neurons to pick them
_SLOWEST = 2.5  # times as long as a whole matrix; more is a machine that did something else
_SURE = 2.0  # standard errors

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring takes: passages to choose plans on (`seen`) and to judge them by (`unseen`),
    an engine for a profile's neurons with some parts of their weights, where to report (what, done,
    total), what may raise Cancelled, and where to keep what is finished.
    """

    seen: Sequence[Passage]
    unseen: Sequence[Passage]
    make_engine: Callable[[FfnProfile, Parts], Engine]
    report: Callable[[str, int, int], None]
    check: Check
    keep: Callable[[FfnProfile], None]


def measure_ffn(model: PackedModel, profile: FfnProfile, bench: Bench) -> FfnProfile:
    """Learn budgets and measure settings, those that `profile` has not yet."""
    if not profile.rules.sharpness.any():
        with bench.make_engine(profile, "up") as engine:
            profile = _with_sharpness(engine, profile, bench)
    with bench.make_engine(profile, "gate" if profile.sparse else "up") as engine:
        profile = _Measuring(engine, profile, bench).run()
    most = max(BUDGETS.values())
    paying = [s for s in profile.settings if s.faster and s.perplexity_change <= most]
    if not paying:
        return dataclasses.replace(profile, reason=_reason(profile.settings))
    parts = parts_for(setting.plan for setting in paying)
    layers = range(model.config.n_layers)
    alive = profile.rules.alive
    stored = tuple(layer_weights(model, layer, parts, alive[layer]) for layer in layers)
    return dataclasses.replace(profile, stored=stored)


class _Measuring:
    """One engine's measurements of one profile, which grows with them."""

    def __init__(self, engine: Engine, profile: FfnProfile, bench: Bench) -> None:
        self._engine, self._profile, self._bench = engine, profile, bench
        self._exact = engine.config.activation in EXACT_ZEROS
        least = budget.plan(profile.tables, _LEAST, "uniform")
        self._divergence = Divergence(engine, bench.seen, least, bench.check)
        self._dense = dense_losses(engine, bench.unseen, bench.check)

    def run(self) -> FfnProfile:
        self._learn()
        policy = self._try_policies()
        if self._exact:
            self._natural()
        for done, (name, allowed) in enumerate(BUDGETS.items()):
            self._bench.report("Measuring", done, len(BUDGETS))
            self._within(name, allowed, policy)
        self._bench.report("Measuring", len(BUDGETS), len(BUDGETS))
        return self._profile

    def _learn(self) -> None:
        """What the greedy and the learned policy need to know."""
        tables = self._profile.tables
        if tables.measured:
            return
        layers = tables.layers
        if not self._exact:
            tables = dataclasses.replace(tables, gather=self._gather())
            self._grow(tables=tables)
        total = layers + budget.ROUNDS * budget.SIZE
        report = self._bench.report
        hurts = budget.sensitivities(
            tables, self._divergence, lambda done: report("Budgeting", done, total)
        )
        tables = dataclasses.replace(tables, hurts=hurts)
        target = self._reach("global", BUDGETS["5%"])
        learned = budget.learn(
            tables, target, self._divergence, lambda done: report("Budgeting", layers + done, total)
        )
        self._grow(tables=dataclasses.replace(tables, learned=learned))

    def _gather(self) -> NDArray[np.float32]:
        """How much longer a byte takes neuron by neuron, timed for each test on its own."""
        tables, step = self._profile.tables, self._engine.weight_bytes_per_token(PROMPT)
        whole, gathered = tables.read
        each = np.arange(tables.layers)
        found = []
        for test in (GATE, CONTRIBUTION):
            spread = budget.Spread(np.full(tables.layers, test), np.full(tables.layers, _TIMED))
            plan = spread.plan(tables)
            dense, sparse = self._race(plan)
            rest = step - tables.dense_bytes + whole[each, test, int(_TIMED)].sum()
            left = step * dense / sparse - rest
            found.append(left / gathered[each, test, int(_TIMED)].sum())
        return np.clip(np.array(found, np.float32), 1, _SLOWEST)

    def _try_policies(self) -> str:
        """Measure every policy at the same target. Returns the one to use."""
        trials = {trial.policy: trial for trial in self._profile.trials}
        target = next(iter(trials.values())).target if trials else None
        if target is None:
            target = self._reach("global", BUDGETS["5%"])
        for done, policy in enumerate(budget.POLICIES):
            self._bench.report("Comparing", done, len(budget.POLICIES))
            if policy not in trials:
                trials[policy] = self._trial(policy, target)
                self._grow(trials=tuple(trials.values()))
        self._bench.report("Comparing", len(budget.POLICIES), len(budget.POLICIES))
        return max(trials.values(), key=lambda trial: trial.reward).policy

    def _trial(self, policy: str, target: float) -> PolicyTrial:
        tables, unseen, check = self._profile.tables, self._bench.unseen, self._bench.check
        plan = budget.plan(tables, target, policy)
        if policy == "attention":
            # reading does not follow attention, so this one is decoded
            decoded = decode_all(self._engine, plan, unseen, check)
            losses, active = decoded.losses, self._parameters(decoded)
        else:
            losses = read_losses(self._engine, plan, unseen, check)
            active = budget.spread(tables, target, policy).bytes_share(tables)
        change, error = compare(losses, self._dense)
        # the divergence is the surer measure; what it cannot see must make up for its doubt
        beyond = change + _SURE * error if policy == "attention" else self._divergence(plan)
        return PolicyTrial(policy, target, active, change, max(beyond, 0.0))

    def _natural(self) -> None:
        """Settings that skip what is exactly zero."""
        exact = FfnPlan.exact(self._profile.tables.layers)
        target = 1 - float(self._profile.tables.active[:, 0, 0].mean())
        predicted = dataclasses.replace(exact, candidates="predicted", sinks=4)
        resampled = dataclasses.replace(exact, candidates="resampled", sinks=4)
        full = decode_all(self._engine, exact, self._bench.unseen, self._bench.check)
        if self._found("exact") is None:
            self._add("exact", "global", target, exact, full, full)
        plans = {"predicted": predicted, "resampled": resampled} if self._profile.sparse else {}
        for name, plan in plans.items():
            if self._found(name) is None:
                self._add(name, "global", target, *self._ruled(plan, self._decoded(plan)), full)

    def _base(self, allowed: float) -> FfnSetting | None:
        """The fastest setting so far, without a budget of its own, that leaves half of one."""
        good = [
            setting
            for setting in self._profile.settings
            if setting.name not in BUDGETS and setting.perplexity_change <= allowed / 2
        ]
        return max(good, key=lambda setting: setting.tokens_per_second, default=None)

    def _within(self, name: str, allowed: float, policy: str) -> None:
        """Measure the largest share of skipped neurons that stays within a budget."""
        if self._found(name) is not None:
            return
        base = self._base(allowed)
        target = self._reach(policy, allowed)
        for left in range(RETREATS, -1, -1):
            plan = self._profile.plan(target, policy)
            if base is not None and base.plan.candidates != "all":
                plan = dataclasses.replace(plan, candidates=base.plan.candidates)
            decoded = self._decoded(plan)
            if not left or decoded.change(self._dense) <= allowed:
                break
            target *= _BACK
        full = decoded
        if plan.candidates != "all":
            full = self._decoded(dataclasses.replace(plan, candidates="all"))
        self._add(name, policy, target, *self._ruled(plan, decoded), full)

    def _ruled(self, plan: FfnPlan, decoded: Decoded) -> tuple[FfnPlan, Decoded]:
        """The plan with the structural rules, where it surely loses less, by more than what they
        make it read; else as it is.
        """
        ruled = self._profile.constrained(plan)
        found = self._decoded(ruled)
        change, error = compare(found.losses, decoded.losses)
        more = self._parameters(found) - self._parameters(decoded)
        helps = change + _SURE * error + budget.COMPUTE_PRICE * max(more, 0.0) < 0
        return (ruled, found) if helps else (plan, decoded)

    def _reach(self, policy: str, allowed: float) -> float:
        """The largest share of neurons whose divergence stays within a budget."""
        low, high = 0.0, budget.MOST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            plan = self._profile.plan(middle, policy)
            within = self._divergence(plan) <= math.log1p(allowed)
            low, high = (middle, high) if within else (low, middle)
        return low

    def _add(
        self,
        name: str,
        policy: str,
        target: float,
        plan: FfnPlan,
        decoded: Decoded,
        full: Decoded,
    ) -> None:
        ffn = self._engine.config.ffn_dim
        dense, sparse = self._race(plan)
        setting = FfnSetting(
            name=name,
            policy=policy,
            target=target,
            controls=_controls(policy, plan),
            plan=plan,
            active_neurons=float(decoded.counts[:, 2].mean() / ffn),
            active_parameters=self._parameters(decoded),
            recall=decoded.recall(full),
            perplexity_change=decoded.change(self._dense),
            positions=len(decoded.losses),
            dense_tokens_per_second=dense,
            tokens_per_second=sparse,
            kernels=self._engine.kernels.name,
            threads=self._engine.threads,
        )
        self._grow(settings=(*self._profile.settings, setting))

    def _race(self, plan: FfnPlan) -> tuple[float, float]:
        """Time a plan with just the parts of the weights that it reads, as it is used later."""
        with self._bench.make_engine(self._profile, parts_for([plan])) as engine:
            return race(engine, plan, self._bench.unseen, self._bench.check)

    def _decoded(self, plan: FfnPlan) -> Decoded:
        return decode_all(self._engine, plan, self._bench.unseen, self._bench.check)

    def _parameters(self, decoded: Decoded) -> float:
        """Share of the FFNs' weights that were used: gate, up and down are of one size."""
        return float(decoded.counts[:, :3].mean() / self._engine.config.ffn_dim)

    def _found(self, name: str) -> FfnSetting | None:
        return next((s for s in self._profile.settings if s.name == name), None)

    def _grow(self, **changes: object) -> None:
        self._profile = dataclasses.replace(self._profile, **changes)  # type: ignore[arg-type]
        self._bench.keep(self._profile)


def compare(losses: F64, dense: F64) -> tuple[float, float]:
    """Change of perplexity relative to dense losses of the same tokens, and its standard error."""
    difference = losses - dense
    change = float(np.expm1(difference.mean()))
    return change, float(difference.std() / math.sqrt(len(difference)))


def _with_sharpness(engine: Engine, profile: FfnProfile, bench: Bench) -> FfnProfile:
    """Mean and spread of how sharp every layer's attention is."""
    few, left = [], _SHARP
    for passage in bench.seen:
        tokens = passage.tokens[: passage.start + max(left, 0) + 1]
        left -= len(tokens) - passage.start - 1
        if len(tokens) > passage.start + 1:
            few.append(Passage(tokens, passage.start))
    plan = budget.plan(profile.tables, 0.0)
    seen = decode_all(engine, plan, few, bench.check).sharpness
    spread = np.maximum(seen.std(axis=0), 1e-3)
    sharpness = np.stack([seen.mean(axis=0), spread], axis=1).astype(np.float32)
    rules = dataclasses.replace(profile.rules, sharpness=sharpness)
    return dataclasses.replace(profile, rules=rules)


def _controls(policy: str, plan: FfnPlan) -> tuple[str, ...]:
    candidates = {"all": (), "predicted": ("prediction",), "resampled": ("resampling",)}
    more = (("constraints", plan.core), ("policy", policy != "global"))
    return ("potentials", *candidates[plan.candidates], *(name for name, has in more if has))


def _reason(settings: Sequence[FfnSetting]) -> str:
    """Why no setting pays."""
    good = [s for s in settings if s.perplexity_change <= max(BUDGETS.values())]
    if not good:
        return "every way to skip neurons cost too much quality"
    best = max(good, key=lambda s: s.tokens_per_second / s.dense_tokens_per_second)
    return (
        f"skipping neurons was not faster here ({best.tokens_per_second:.0f} tok/s, dense "
        f"{best.dense_tokens_per_second:.0f})"
    )
