"""What calibration learned of a model's FFNs: tables, rules, rows and the settings it measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import budget
from .neurons import (
    PARTS,
    LayerNeurons,
    LayerWeights,
    Neurons,
    Parts,
    Predictor,
    layer_weights,
)
from .plan import FfnPlan, parts_for
from .potentials import GATE, FfnTables

if TYPE_CHECKING:
    from ..formats.packed import PackedModel

_LEAST_SPREAD = 1e-3
_NOISE = 0.01

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class FfnSetting:
    """One way to skip neurons, as calibration measured it on text that nothing was fitted to.

    `target` is the share of neurons that should add nothing to the output of their layer, 0..1;
    `controls` names what takes part: potentials, prediction, resampling, constraints, policy.
    `active_neurons` is the share of neurons whose down row was read, `active_parameters` the share
    of the FFNs' weights, `recall` the share of the contribution that the candidates held (1 where
    everyone is one). `perplexity_change` is relative to dense (0.01 is +1%), token by token over
    `positions`. Speeds are tokens per second of whole decode steps with a dense head, of runs
    that took turns (see `measure.in_turns`), with `threads` threads of the `kernels` variant.
    """

    name: str
    policy: str
    target: float
    controls: tuple[str, ...]
    plan: FfnPlan
    active_neurons: float
    active_parameters: float
    recall: float
    perplexity_change: float
    positions: int
    dense_tokens_per_second: float
    tokens_per_second: float
    kernels: str
    threads: int

    @property
    def faster(self) -> bool:
        """Whether decoding was faster than dense, by more than such a measurement varies."""
        return self.tokens_per_second > (1 + _NOISE) * self.dense_tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class PolicyTrial:
    """How one budget policy did at the same `target`.

    `perplexity_change` is relative to dense, on text that nothing was fitted to; `divergence` from
    dense in nats per token, on other text (for the attention policy an upper bound of the first).
    """

    policy: str
    target: float
    active_parameters: float
    perplexity_change: float
    divergence: float

    @property
    def reward(self) -> float:
        """What the policies are ranked by: little loss, little compute."""
        return -self.divergence - budget.COMPUTE_PRICE * self.active_parameters


@dataclass(frozen=True, slots=True)
class FfnRules:
    """Arrays that the decode kernel reads, and the limits of every layer.

    `weights`, `norms` float32 [n_layers, ffn]: w_j and n_j of the potentials. `core`, `alive`
    uint32 [n_layers, groups]: always-on neurons, and those that were seen to fire. `implied` int32
    [n_layers, ffn, k]: neurons of the next layer that a firing one makes candidates, -1 for none.
    `sharpness` float32 [n_layers, 2]: mean and spread of attention's sharpness. `floors`, `caps`
    float32 [n_layers]: least and most neurons that pass the gate test, relative to their mean.
    `frequency` float32 [n_layers, ffn]: the share of tokens, 0..1, for which a neuron fires; None
    in profiles from before that was kept.
    """

    weights: F32
    norms: F32
    core: U32
    alive: U32
    implied: I32 | None
    sharpness: F32
    floors: F32
    caps: F32
    frequency: F32 | None = None


@dataclass(frozen=True, slots=True)
class FfnProfile:
    """The FFN part of a profile. `stored` weights are kept only where a setting pays; `reason` says
    why none does, empty where one does.
    """

    settings: tuple[FfnSetting, ...]
    trials: tuple[PolicyTrial, ...]
    tables: FfnTables
    rules: FfnRules
    predictors: tuple[Predictor, ...] | None = None
    stored: tuple[LayerWeights, ...] | None = None
    reason: str = ""

    @property
    def sparse(self) -> bool:
        """Whether the model is naturally sparse, so that gates can be predicted."""
        return self.predictors is not None

    @property
    def policy(self) -> str:
        """The budget policy that calibration found best."""
        best = max(self.trials, key=lambda trial: trial.reward, default=None)
        return "global" if best is None else best.policy

    def plan(self, s: float, policy: str = "") -> FfnPlan:
        """A plan in which a mean share `s` of the neurons, 0..0.95, adds nothing to the output.

        Spread by a policy, the best one unless told otherwise. Raises UsageError for other shares
        and unknown policies.
        """
        return budget.plan(self.tables, s, policy or self.policy)

    def best_plan(self, s: float) -> FfnPlan:
        """The plan for a share that is asked for: `plan`, with the rules where they helped."""
        found = self.plan(s)
        alike = (setting for setting in self.settings if setting.plan.candidates == "all")
        return self.constrained(found) if any(known.plan.core for known in alike) else found

    def constrained(self, plan: FfnPlan) -> FfnPlan:
        """The plan with the rules that calibration learned: the always-on core, floors and caps,
        and, where candidates are predicted, implications. Those of a conversation's own candidates
        would be outside its set, of which nothing is read.
        """
        ffn = self.rules.weights.shape[1]
        floors, caps = [], []
        for layer, mode in enumerate(plan.modes):
            cutoffs, gated = self.tables.gate_cutoffs[layer, GATE], self.tables.gated[layer, GATE]
            mean = ffn * float(np.interp(plan.gate_cutoffs[layer], cutoffs, gated))
            bound = mode == "gate"
            floors.append(int(mean * self.rules.floors[layer]) if bound else 0)
            caps.append(min(ffn, math.ceil(mean * self.rules.caps[layer])) if bound else ffn)
        return dataclasses.replace(
            plan,
            core=True,
            floors=tuple(floors),
            caps=tuple(caps),
            implications=plan.candidates == "predicted" and self.rules.implied is not None,
        )

    def parts(self) -> Parts:
        """What records must hold of every neuron for the plans that were measured."""
        plans = [setting.plan for setting in self.settings]
        return parts_for(plans) if plans else "down"

    def neurons(self, model: PackedModel, *, parts: Parts | None = None) -> Neurons:
        """What the engine needs to decode; `parts` for other plans than the measured ones.

        Weights that are not kept are copied from the model.
        """
        wanted, stored = parts or self.parts(), self.stored
        if stored is None or PARTS.index(stored[0].parts) < PARTS.index(wanted):
            alive = enumerate(self.rules.alive)
            stored = tuple(layer_weights(model, layer, wanted, mask) for layer, mask in alive)
        return self.joined(stored)

    def joined(self, stored: Sequence[LayerWeights]) -> Neurons:
        """Weights together with what this profile knows of the neurons."""
        return Neurons(tuple(self._layer(layer, found) for layer, found in enumerate(stored)))

    def to_dict(self) -> dict[str, Any]:
        """What was measured, for JSON."""
        return {
            "settings": [setting.to_dict() for setting in self.settings],
            "policies": [dataclasses.asdict(trial) for trial in self.trials],
            "reason": self.reason,
        }

    def _layer(self, layer: int, stored: LayerWeights) -> LayerNeurons:
        rules = self.rules
        mean, spread = rules.sharpness[layer].tolist()
        return LayerNeurons(
            stored=stored,
            weights=rules.weights[layer],
            norms=rules.norms[layer],
            core=rules.core[layer],
            alive=rules.alive[layer],
            implied=None if rules.implied is None else rules.implied[layer],
            predictor=None if self.predictors is None else self.predictors[layer],
            sharpness=(mean, max(spread, _LEAST_SPREAD)),
        )
