"""Expensive potentials: which neurons matter to a token, and what leaving the others out costs.

For an FFN input x with g = W_gate x, u = W_up x, a = act(g), h = act(g) * u and n_j the norm of
column j of the down projection:

- the gate potential is P_j = |a_j| w_j with w_j = n_j times the root mean square of u_j: known
  before the up row is read;
- the contribution is C_j = |h_j| n_j, the length of what neuron j adds to the output.

A table says, for each layer and test, which cut-off leaves out which share of the neurons and of
the layer's output. The dropped share (CETT, after Luo et al. 2024, "Sparsing Law") is the root mean
square over tokens of |what is left out| / |output|.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..formats.packed import PackedModel
from ..kernels.oracle import OUTLIERS
from ..quant import GROUP, unpack
from .head import rounded

EXACT_ZEROS = ("relu", "fatrelu", "relu2", "drelu")
"""Activations that are exactly zero for many gates, so that a cut-off of zero skips neurons."""

GATE, CONTRIBUTION = 0, 1
"""Places of the tests in a table."""

LEVELS = 21
"""Rows of a table: from nothing left out to MOST of what is not exactly zero."""

MOST = 0.95

BEHIND = 0.8
"""What the contribution test behind a gate test may drop, as a part of what the gate test does."""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

CROWDED = 0.55
"""Share of neurons that pass a gate test beyond which it is of no use: decode runs layers dense for
a while where more than 5/8 do for one token, and tokens differ."""

PROJECTED = 128
"""Numbers that stand for an output where its length is all that is asked."""

_LEAST = 1e-12
_NEVER = 1e30  # bytes


@dataclass(frozen=True, slots=True)
class FfnWeights:
    """Unpacked weights of a layer's FFN, float32: gate and up [ffn, d], down [d, ffn]."""

    gate: F32
    up: F32
    down: F32

    @classmethod
    def of(cls, model: PackedModel, layer: int) -> FfnWeights:
        parts = (unpack(model.matrix(f"layers.{layer}.{name}")) for name in ("gate", "up", "down"))
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class Fired:
    """What a layer's neurons do for some tokens, float32 [n, ffn] each.

    `gate` is act(g), `up` is u (relu(u) for drelu), `hidden` their product.
    """

    gate: F32
    up: F32
    hidden: F32


def fire(config: ModelConfig, weights: FfnWeights, inputs: F32) -> Fired:
    """Run gate and up of a layer on FFN inputs float32 [n, d], rounded as the kernels round."""
    x = rounded(inputs, OUTLIERS)
    gate = activate(config, x @ weights.gate.T)
    up = x @ weights.up.T
    if config.activation == "drelu":
        np.maximum(up, 0, out=up)
    return Fired(gate, up, gate * up)


def activate(config: ModelConfig, g: F32) -> F32:
    """act(g) for the model's activation, float32."""
    if config.activation == "fatrelu":
        return np.where(g > np.float32(config.activation_param), g, np.float32(0))
    return _ACTIVATIONS[config.activation](g)


def _silu(g: F32) -> F32:
    found: F32 = g / (1 + np.exp(-np.maximum(g, np.float32(-80))))
    return found


def _gelu_tanh(g: F32) -> F32:
    inner = np.float32(np.sqrt(2 / np.pi)) * (g + np.float32(0.044715) * g * g * g)
    found: F32 = g * np.float32(0.5) * (1 + np.tanh(inner))
    return found


def _relu(g: F32) -> F32:
    return np.maximum(g, np.float32(0))


def _relu2(g: F32) -> F32:
    return np.square(_relu(g))


_ACTIVATIONS: dict[str, Callable[[F32], F32]] = {
    "silu": _silu,
    # the tanh form differs from the exact one by less than any cut-off notices
    "gelu": _gelu_tanh,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "relu2": _relu2,
    "drelu": _relu,
}


@dataclass(frozen=True, slots=True)
class Potentials:
    """A layer's scales: `norms` n_j and `weights` w_j, float32 [ffn]; `frequency` float32 [ffn],
    the share of calibration tokens for which a neuron contributed anything.
    """

    norms: F32
    weights: F32
    frequency: F32

    @classmethod
    def of(cls, weights: FfnWeights, fired: Fired) -> Potentials:
        norms = np.linalg.norm(weights.down, axis=0).astype(np.float32)
        typical = np.sqrt(np.mean(np.square(fired.up), axis=0))
        frequency = np.count_nonzero(fired.hidden, axis=0) / len(fired.hidden)
        return cls(norms, (norms * typical).astype(np.float32), frequency.astype(np.float32))

    def gate(self, fired: Fired) -> F32:
        """P, float32 [n, ffn]."""
        return np.abs(fired.gate) * self.weights

    def contribution(self, fired: Fired) -> F32:
        """C, float32 [n, ffn]."""
        return np.abs(fired.hidden) * self.norms


@dataclass(frozen=True, slots=True)
class FfnTables:
    """What every layer can leave out, and at what price.

    All float32 [n_layers, 2, levels]: the first place of axis 1 is the gate test (with a
    contribution test for the down row behind it), the second the contribution test alone. Level 0
    has cut-offs of zero; `active` falls from level to level.

    `gate_cutoffs`, `contribution_cutoffs`: as in FfnPlan. `gated`, `active`: share of neurons that
    read their up and their down row; `groups`: share of groups of 32 neurons of which any does, so
    that the scales they have in common are read. `dropped`: share of the output left out.
    `costs` float32 [n_layers, 4]: bytes of gate whole, up whole, down's quants and down's scales.
    `hurts` float32 [n_layers]: loss per square of the dropped share, 1 where it was not measured;
    `learned` float32 [n_layers]: factors on the dropped share that the learned policy found.
    `gather` float32 [2]: for each test, how many times as long a byte takes that is read neuron by
    neuron as one of a whole matrix.
    """

    gate_cutoffs: F32
    contribution_cutoffs: F32
    gated: F32
    active: F32
    groups: F32
    dropped: F32
    costs: F32
    hurts: F32
    learned: F32
    gather: F32

    @property
    def layers(self) -> int:
        return len(self.costs)

    @property
    def measured(self) -> bool:
        """Whether `hurts` and `learned` were measured."""
        return bool((self.hurts != 1).any())

    @property
    def nbytes(self) -> F32:
        """Bytes read per token, float32 [n_layers, 2, levels]."""
        whole, gathered = self.read
        return whole + gathered

    @property
    def times(self) -> F32:
        """What reading takes, in bytes of whole matrices: float32 [n_layers, 2, levels].

        Out of the question is a gate test that too many pass: decode runs such a layer dense.
        """
        whole, gathered = self.read
        found = whole + gathered * self.gather[:, None]
        found[:, GATE][self.gated[:, GATE] > CROWDED] = _NEVER
        return found

    @property
    def read(self) -> tuple[F32, F32]:
        """Bytes read in whole matrices and neuron by neuron, both [n_layers, 2, levels]."""
        gate, up, down, scales = (self.costs[:, i, None, None] for i in range(4))
        ups = up * self.gated
        gathered = down * self.active + scales * self.groups
        late = np.array([0, 1], np.float32)[:, None]  # the contribution test reads up whole
        return gate + ups * late, gathered + ups * (1 - late)

    @property
    def dense_bytes(self) -> float:
        """Bytes that the FFNs read per token when nothing is left out."""
        return float(self.costs.sum(dtype=np.float64))


def costs(model: PackedModel, layer: int) -> F32:
    """Bytes of a layer's gate, up, down's quants and down's scales and minima: float32 [4]."""
    gate, up, down = (model.matrix(f"layers.{layer}.{name}") for name in ("gate", "up", "down"))
    scales = down.nbytes - down.quants.nbytes
    return np.array([gate.nbytes, up.nbytes, down.quants.nbytes, scales], np.float32)


class LayerTrial:
    """Tests tried on some tokens of a layer, through its down projection.

    Of a wide model's outputs, random projections to 128 numbers are compared, which keep lengths to
    a few percent for one token and hardly change a mean over tokens (Johnson and Lindenstrauss).
    """

    def __init__(self, weights: FfnWeights, potentials: Potentials, fired: Fired) -> None:
        self._hidden, self._down = fired.hidden, _projected(weights.down).T
        self._gate = potentials.gate(fired)
        self._contribution = potentials.contribution(fired)
        self._size = np.maximum(np.linalg.norm(fired.hidden @ self._down, axis=1), _LEAST)

    def rows(self) -> F32:
        """Both tests at every level: float32 [2, levels, 6], the columns in the tables' order."""
        none = np.zeros(LEVELS, np.float32)
        late = self._measured(none, self._cutoffs(self._contribution))
        gates = self._cutoffs(self._gate)
        alone = np.array([self._dropped(self._gate > cutoff) for cutoff in gates])
        # the down rows of survivors are skipped as well where that adds little to what is lost
        behind = np.interp(BEHIND * alone, late[:, 5], late[:, 1], right=late[-1, 1])
        behind[0] = 0
        return np.stack([self._measured(gates, behind.astype(np.float32)), late])

    def _cutoffs(self, values: F32) -> F32:
        """Cut-offs of levels that leave evenly falling shares of what is not zero."""
        ordered = np.sort(values, axis=None)
        zeros = int(np.searchsorted(ordered, 0, side="right"))
        skipped = zeros + (len(ordered) - zeros) * np.linspace(0, MOST, LEVELS)
        found = ordered[np.maximum(skipped.astype(np.int64) - 1, 0)]
        found[0] = 0
        return found

    def _measured(self, gates: F32, contributions: F32) -> F32:
        rows = np.empty((len(gates), 6), np.float32)
        for row, gate, contribution in zip(rows, gates, contributions, strict=True):
            kept = self._contribution > contribution
            passed = np.ones_like(kept)
            if gates.any():
                passed = self._gate > gate
                kept &= passed
            row[:] = (
                gate,
                contribution,
                passed.mean(),
                kept.mean(),
                _groups(kept).mean(),
                self._dropped(kept),
            )
        return rows

    def _dropped(self, kept: Bools) -> float:
        if kept.all():
            return 0.0
        lost = np.linalg.norm(np.where(kept, np.float32(0), self._hidden) @ self._down, axis=1)
        return float(np.sqrt(np.mean(np.square(lost / self._size), dtype=np.float64)))


def _projected(down: F32) -> F32:
    """The down projection [d, ffn], or [128, ffn] that makes outputs of nearly the same length."""
    if len(down) <= PROJECTED:
        return down
    noise = np.random.default_rng(0).standard_normal((PROJECTED, len(down)), np.float32)
    noise /= np.float32(np.sqrt(PROJECTED))
    return noise @ down


def _groups(kept: Bools) -> Bools:
    """Which groups of 32 neurons have any that is kept: bool [n, groups]."""
    missing = -kept.shape[1] % GROUP
    padded = np.pad(kept, ((0, 0), (0, missing)))
    grouped: Bools = padded.reshape(len(kept), -1, GROUP)
    return np.logical_or.reduce(grouped, axis=2)  # type: ignore[no-any-return]


def make_tables(rows: list[F32], prices: list[F32]) -> FfnTables:
    """Tables of layers from what `LayerTrial.rows` and `costs` gave for each of them."""
    columns = np.stack(rows).transpose(3, 0, 1, 2)
    even = np.ones(len(rows), np.float32)
    names = ("gate_cutoffs", "contribution_cutoffs", "gated", "active", "groups", "dropped")
    named = {
        name: np.ascontiguousarray(column) for name, column in zip(names, columns, strict=True)
    }
    return FfnTables(
        **named,
        costs=np.stack(prices),
        hurts=even,
        learned=even.copy(),
        gather=np.ones(2, np.float32),
    )
