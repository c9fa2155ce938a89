"""What decode leaves out of the FFNs: the runtime form of a sparsity setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError

if TYPE_CHECKING:
    from .neurons import Parts

Mode = Literal["dense", "gate", "contribution"]
Candidates = Literal["all", "predicted", "resampled"]

MODES: tuple[Mode, ...] = ("dense", "gate", "contribution")
CANDIDATES: tuple[Candidates, ...] = ("all", "predicted", "resampled")


@dataclass(frozen=True, slots=True)
class FfnPlan:
    """Which neurons of each layer's FFN a decoded token computes; one entry per layer throughout.

    With h = act(g) * u, n_j the norm of neuron j's column of the down projection and w_j that norm
    times the typical size of u_j, neuron j passes the gate test when |act(g_j)| * w_j is over
    `gate_cutoffs`, and the contribution test when |h_j| * n_j is over `contribution_cutoffs`.
    "gate" layers ask for the first before they read the up row and for the second before they read
    the down row; "contribution" layers read gate and up whole; "dense" layers skip nothing.

    `candidates` says whose gate rows are computed at all, in "gate" layers: everyone's, those that
    the predictor names, or the conversation's own set. `floors` and `caps` bound how many neurons
    pass the gate test, `core` lets the calibrated core pass always, `implications` make neurons
    candidates because of what fired in the layer before. `attention` is how strongly a token's
    attention moves the cut-offs. The first `sinks` positions of a sequence run dense.
    """

    modes: tuple[Mode, ...]
    gate_cutoffs: tuple[float, ...]
    contribution_cutoffs: tuple[float, ...]
    candidates: Candidates = "all"
    floors: tuple[int, ...] | None = None
    caps: tuple[int, ...] | None = None
    core: bool = False
    implications: bool = False
    attention: float = 0.0
    sinks: int = 4

    def __post_init__(self) -> None:
        layers = len(self.modes)
        cutoffs = (*self.gate_cutoffs, *self.contribution_cutoffs)
        per_layer = (self.gate_cutoffs, self.contribution_cutoffs, self.floors, self.caps)
        if any(values is not None and len(values) != layers for values in per_layer):
            raise UsageError(f"A plan of {layers} layers needs a value for each of them.")
        if not all(math.isfinite(value) and value >= 0 for value in cutoffs):
            raise UsageError("Cut-offs of a plan are finite numbers of at least 0.")
        if any(mode not in MODES for mode in self.modes) or self.candidates not in CANDIDATES:
            raise UsageError(f"A plan's modes are {MODES}, its candidates {CANDIDATES}.")
        bounds = (*(self.floors or ()), *(self.caps or ()), self.sinks)
        if min(bounds) < 0 or not 0 <= self.attention <= 8:
            raise UsageError("Floors, caps and sinks are at least 0, attention is from 0 to 8.")

    @classmethod
    def exact(cls, layers: int) -> FfnPlan:
        """Skip only what adds exactly zero: for activations that have zeros."""
        gate: Mode = "gate"
        return cls((gate,) * layers, (0.0,) * layers, (0.0,) * layers, sinks=0)

    def layers(self, start: int, stop: int) -> FfnPlan:
        """The plan of layers `start` to `stop` - 1 alone, as if they were a whole model."""
        return dataclasses.replace(
            self,
            modes=self.modes[start:stop],
            gate_cutoffs=self.gate_cutoffs[start:stop],
            contribution_cutoffs=self.contribution_cutoffs[start:stop],
            floors=None if self.floors is None else self.floors[start:stop],
            caps=None if self.caps is None else self.caps[start:stop],
        )


def parts_for(plans: Iterable[FfnPlan]) -> Parts:
    """What records must hold of every neuron so that all of these plans can run."""
    most: Parts = "down"
    for plan in plans:
        if "gate" in plan.modes:
            if plan.candidates != "all":
                return "gate"
            most = "up"
    return most
