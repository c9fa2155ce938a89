"""Budget policies: how one total share of skipped neurons is spread over layers and tokens.

- uniform: every layer skips the same share.
- global: every layer loses the same share of its output, so that layers whose neurons matter less
  skip more. One knob for the whole model.
- greedy: starts dense, and gives the next slice of sparsity to the layer that it hurts least, by
  how much calibration saw the loss grow when that layer alone was thinned out.
- learned: factors on the global rule's shares, found by the cross-entropy method (Rubinstein 1999)
  with the reward `-loss - COMPUTE_PRICE * (share of FFN bytes read)`.
- attention: the global rule, and tokens whose attention is sharp get lower cut-offs.

Each layer uses whichever test takes less reading at the share of its output that it may lose.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .plan import FfnPlan, Mode
from .potentials import CONTRIBUTION, GATE, FfnTables

PolicyName = Literal["uniform", "global", "greedy", "learned", "attention"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)

MOST = 0.95
"""The largest share of neurons that can be asked to be skipped."""

ATTENTION = 0.25
"""Strength of the multiplier that the attention policy puts on a token's cut-offs."""

COMPUTE_PRICE = 0.1
"""Nats that the learned policy pays for reading the FFNs whole."""

PROBE = 0.3
"""Share of a layer's output that is dropped to see how much that layer matters."""

_HALVINGS = 24
ROUNDS, SIZE = 6, 8
"""Rounds of plans that the learned policy tries, and plans of a round."""

_LEAST, _STEPS = 1e-3, 96  # dropped shares that greedy goes through, from the least to 1
_MODES: dict[int, Mode] = {GATE: "gate", CONTRIBUTION: "contribution"}

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Loss = Callable[[FfnPlan], float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Where every layer stands: its test, int [n_layers], and its fractional level in the table of
    that test, float64 [n_layers].
    """

    tests: Ints
    levels: F64

    def active(self, tables: FfnTables) -> float:
        """Share of neurons that read their down row, mean over layers."""
        return float(self.of(tables.active).mean())

    def bytes_share(self, tables: FfnTables) -> float:
        """Share of the FFNs' bytes that are read."""
        return float(self.of(tables.nbytes).sum()) / tables.dense_bytes

    def plan(self, tables: FfnTables) -> FfnPlan:
        gates, contributions = self.of(tables.gate_cutoffs), self.of(tables.contribution_cutoffs)
        idle = (gates == 0) & (contributions == 0) & (self.of(tables.active) > 1 - 1e-3)
        modes = tuple(
            "dense" if i else _MODES[int(test)] for i, test in zip(idle, self.tests, strict=True)
        )
        return FfnPlan(modes, tuple(gates.tolist()), tuple(contributions.tolist()))

    def of(self, column: NDArray[np.float32]) -> F64:
        """The column's value of every layer, between levels in proportion."""
        each = np.arange(len(self.tests))
        rows = column[each, self.tests].astype(np.float64)
        low = np.minimum(self.levels.astype(np.int64), rows.shape[1] - 1)
        high = np.minimum(low + 1, rows.shape[1] - 1)
        found: F64 = rows[each, low] + (self.levels - low) * (rows[each, high] - rows[each, low])
        return found


def plan(tables: FfnTables, s: float, policy: str = "global") -> FfnPlan:
    """The plan of a policy under which a mean share `s` of the neurons, 0..0.95, adds nothing.

    Where more than that is exactly zero, just those are skipped. Raises UsageError.
    """
    if not 0 <= s <= MOST:
        raise UsageError(f"The share of skipped neurons is from 0 to {MOST}, not {s!r:.20}.")
    found = spread(tables, s, policy).plan(tables)
    return _attentive(tables, s, found) if policy == "attention" else found


def plan_within(tables: FfnTables, dropped: float) -> FfnPlan:
    """The plan of the global rule that leaves out a share `dropped` of every layer's output."""
    return better_tests(tables, np.full(tables.layers, dropped)).plan(tables)


def spread(tables: FfnTables, s: float, policy: str = "global") -> Spread:
    """What `plan` makes its plan of."""
    if policy == "uniform":
        return _uniform(tables, s)
    if policy == "greedy":
        return _greedy(tables, s)
    if policy == "learned":
        return _scaled(tables, s, tables.learned.astype(np.float64))
    if policy in POLICIES:
        return _scaled(tables, s, np.ones(tables.layers))
    raise UsageError(f"A budget policy is one of {', '.join(POLICIES)}, not {policy!r:.40}.")


def better_tests(tables: FfnTables, dropped: F64) -> Spread:
    """For every layer the test that takes less reading where a share `dropped` [n_layers] of the
    output may be lost, and how far it may go.
    """
    levels = _levels(tables.dropped, dropped[:, None])
    each = np.arange(tables.layers)
    read = [
        Spread(np.full(tables.layers, test), levels[:, test]).of(tables.times)
        for test in (GATE, CONTRIBUTION)
    ]
    tests = np.where(read[GATE] <= read[CONTRIBUTION], GATE, CONTRIBUTION)
    return Spread(tests, levels[each, tests])


def _levels(rising: NDArray[np.float32], values: F64 | float) -> F64:
    """The last fractional places of rows [..., levels] at which they are at most `values`."""
    rows = np.maximum.accumulate(rising.astype(np.float64), axis=-1)
    most = rows.shape[-1] - 1
    values = np.broadcast_to(values, rows.shape[:-1])
    low = np.clip(np.count_nonzero(rows <= values[..., None], axis=-1) - 1, 0, most)
    high = np.minimum(low + 1, most)
    start, end = (np.take_along_axis(rows, at[..., None], -1)[..., 0] for at in (low, high))
    part = np.divide(values - start, end - start, out=np.zeros_like(start), where=end > start)
    found: F64 = low + np.clip(part, 0, 1)
    return found


def _scaled(tables: FfnTables, s: float, factors: F64) -> Spread:
    """Dropped shares in proportion to `factors`, as large as it takes to skip a share `s`."""

    def at(log_dropped: float) -> Spread:
        return better_tests(tables, np.exp(log_dropped) * factors)

    nothing = better_tests(tables, np.zeros(tables.layers))
    if nothing.active(tables) <= 1 - s:
        return nothing
    low, high = -16.0, 4.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle).active(tables) <= 1 - s else (middle, high)
    return _stretched(tables, s, at(high), at(low))


def _stretched(tables: FfnTables, s: float, enough: Spread, less: Spread) -> Spread:
    """Between two spreads of the same tests, exactly a share `s`; else the one that is enough.

    A change of tests makes the share jump; the levels of `enough` are then drawn back together.
    """
    start = less.levels if (less.tests == enough.tests).all() else np.zeros_like(enough.levels)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = Spread(enough.tests, start + middle * (enough.levels - start))
        low, high = (low, middle) if found.active(tables) <= 1 - s else (middle, high)
    return Spread(enough.tests, start + high * (enough.levels - start))


def _attentive(tables: FfnTables, s: float, plan: FfnPlan) -> FfnPlan:
    """The plan with attention's multiplier, its cut-offs changed so that it still skips `s`.

    Sharpness is taken to be normally distributed: cut-offs are then multiplied by exp of a normal
    variable, which does not leave the mean number of active neurons as it was.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    factors = np.exp(ATTENTION * nodes)
    curves = []
    for layer, mode in enumerate(plan.modes):
        test = GATE if mode == "gate" else CONTRIBUTION
        column = tables.gate_cutoffs if test == GATE else tables.contribution_cutoffs
        cutoffs = plan.gate_cutoffs if test == GATE else plan.contribution_cutoffs
        curves.append((cutoffs[layer], column[layer, test], tables.active[layer, test]))

    def active(scale: float) -> float:
        shares = [np.interp(scale * cutoff * factors, at, of) for cutoff, at, of in curves]
        return float(np.mean(shares, axis=0) @ weights / weights.sum())

    low, high = 0.0, 4.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if active(middle) <= 1 - s else (middle, high)
    return dataclasses.replace(
        plan,
        gate_cutoffs=tuple(high * cutoff for cutoff in plan.gate_cutoffs),
        contribution_cutoffs=tuple(high * cutoff for cutoff in plan.contribution_cutoffs),
        attention=ATTENTION,
    )


def _uniform(tables: FfnTables, s: float) -> Spread:
    levels = _levels(-tables.active, s - 1)
    late = Spread(np.full(tables.layers, CONTRIBUTION), levels[:, CONTRIBUTION])
    tests = better_tests(tables, late.of(tables.dropped)).tests
    return Spread(tests, levels[np.arange(tables.layers), tests])


def _greedy(tables: FfnTables, s: float) -> Spread:
    """Slices are steps of the dropped share; a layer's loss grows with the square of that.

    Slices are weighed by the reading that they save. That never rises from step to step; the number
    of neurons may, where a layer changes its test.
    """
    shares = np.concatenate([[0.0], np.geomspace(_LEAST, 1, _STEPS)])
    steps = [better_tests(tables, np.full(tables.layers, share)) for share in shares]
    active, read = (
        np.stack([step.of(column) for step in steps], axis=1)
        for column in (tables.active, tables.times)
    )
    hurt = tables.hurts[:, None] * np.square(shares)
    prices = np.diff(hurt, axis=1) / np.maximum(-np.diff(read, axis=1), _LEAST)
    now = np.zeros(tables.layers, np.int64)
    queue = [(float(price), layer) for layer, price in enumerate(prices[:, 0])]
    heapq.heapify(queue)
    left = active[:, 0].sum()
    while queue and left > (1 - s) * tables.layers:
        _, layer = heapq.heappop(queue)
        left += active[layer, now[layer] + 1] - active[layer, now[layer]]
        now[layer] += 1
        if now[layer] < _STEPS:
            heapq.heappush(queue, (float(prices[layer, now[layer]]), layer))
    each = np.arange(tables.layers)
    tests = np.stack([step.tests for step in steps], axis=1)[each, now]
    return Spread(tests, np.stack([step.levels for step in steps], axis=1)[each, now])


def sensitivities(tables: FfnTables, loss: Loss, step: Callable[[int], None]) -> F32:
    """How much each layer hurts when it alone is thinned out: float32 [n_layers] for `hurts`.

    `loss` is the loss of a plan beyond dense, in nats per token; it is asked once per layer.
    `step` receives how often that was.
    """
    found = np.empty(tables.layers, np.float32)
    for layer in range(tables.layers):
        step(layer)
        shares = np.zeros(tables.layers)
        shares[layer] = PROBE
        spread = better_tests(tables, shares)
        lost = max(float(spread.of(tables.dropped)[layer]), _LEAST)
        found[layer] = max(loss(spread.plan(tables)), _LEAST * PROBE**2) / lost**2
    return found


def learn(
    tables: FfnTables,
    s: float,
    loss: Loss,
    step: Callable[[int], None],
    *,
    seed: int = 0,
) -> F32:
    """Factors float32 [n_layers] for `learned`, found with plans that skip a share `s`.

    Logarithms of the factors are drawn from a normal distribution for each layer, which is moved to
    the best quarter of every round. The global rule itself, and what the measured sensitivities
    suggest, are in the first round; the best plan of all is what is returned.
    """
    rng = np.random.default_rng(seed)
    hint = np.log(np.maximum(tables.hurts, _LEAST).astype(np.float64)) / -2
    mean, spread = np.zeros(tables.layers), np.full(tables.layers, 0.5)
    best, kept = -np.inf, mean
    for turn in range(ROUNDS):
        drawn = mean + spread * rng.standard_normal((SIZE, tables.layers))
        if turn == 0:
            drawn[0], drawn[1] = 0, (hint - hint.mean()) / 2
        rewards = np.empty(SIZE)
        for i, logs in enumerate(drawn):
            step(turn * SIZE + i)
            found = _scaled(tables, s, np.exp(logs))
            rewards[i] = -loss(found.plan(tables)) - COMPUTE_PRICE * found.bytes_share(tables)
        order = np.argsort(-rewards)
        if rewards[order[0]] > best:
            best, kept = rewards[order[0]], drawn[order[0]]
        chosen = drawn[order[: SIZE // 4]]
        mean = (mean + chosen.mean(axis=0)) / 2
        spread = (spread + chosen.std(axis=0)) / 2
    step(ROUNDS * SIZE)
    factors: F32 = np.exp(kept - kept.mean()).astype(np.float32)
    return factors
