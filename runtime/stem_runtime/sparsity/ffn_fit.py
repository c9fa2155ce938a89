"""Fitting the FFN part of a profile: tables, rules and predictors from what the FFNs got."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..formats.packed import PackedModel
from ..quant import GROUP
from . import coherence, predictor
from .capture import layer_inputs
from .ffn_profile import FfnProfile, FfnRules
from .neurons import Predictor, mask_of
from .potentials import (
    EXACT_ZEROS,
    FfnWeights,
    Fired,
    LayerTrial,
    Potentials,
    costs,
    fire,
    make_tables,
)

SPARSE = 0.5
"""Share of firing neurons under which a model counts as naturally sparse."""

_TRIED = 320  # tokens that cut-offs are tried on
_TYPICAL = 6  # level of the tables whose survivors count as firing where nothing is exactly zero
_RANK = 128

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(slots=True)
class _Layers:
    """Collects layers as they are fitted."""

    rows: list[F32] = field(default_factory=list)
    prices: list[F32] = field(default_factory=list)
    potentials: list[Potentials] = field(default_factory=list)
    predictors: list[Predictor] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(default_factory=list)
    frequencies: list[F32] = field(default_factory=list)


def fit(model: PackedModel, paths: Sequence[Path], step: Callable[[int, int], None]) -> FfnProfile:
    """A profile without settings. Layers are fitted one at a time, so that memory is bounded.

    `paths` are the files of `capture_ffn`; `step` receives (done, total) and may raise. Raises
    FormatError where a layer computes what is not finite.
    """
    found = _Layers()
    sparse = naturally_sparse(model, paths)
    layers = _fitted(model, paths, step, found, sparse)
    if sparse:
        rules = coherence.learn(layers)
    else:
        # who implies whom only matters where gates are skipped
        rules = tuple(
            coherence.Rules(coherence.core(fires, added), *coherence.bounds(fires), None)
            for fires, added in layers
        )
    tables = make_tables(found.rows, found.prices)
    exact = model.config.activation in EXACT_ZEROS
    frequencies = np.stack([potentials.frequency for potentials in found.potentials])
    alive = frequencies > 0 if exact else np.ones_like(frequencies, np.bool_)
    floors, caps = np.array(found.bounds, np.float32).T
    implied = None
    if found.predictors:
        none = np.full((frequencies.shape[1], coherence.IMPLIED), -1, np.int32)
        implied = np.stack([none if rule.implied is None else rule.implied for rule in rules])
    return FfnProfile(
        (),
        (),
        tables,
        FfnRules(
            weights=np.stack([potentials.weights for potentials in found.potentials]),
            norms=np.stack([potentials.norms for potentials in found.potentials]),
            core=np.stack([rule.core for rule in rules]),
            alive=np.stack([mask_of(layer) for layer in alive]),
            implied=implied,
            sharpness=np.zeros((tables.layers, 2), np.float32),
            floors=np.ascontiguousarray(floors),
            caps=np.ascontiguousarray(caps),
            frequency=np.stack(found.frequencies),
        ),
        tuple(found.predictors) or None,
    )


def naturally_sparse(model: PackedModel, paths: Sequence[Path]) -> bool:
    """Whether fewer than half of the neurons fire, judged by three layers and a few tokens."""
    config = model.config
    if config.activation not in EXACT_ZEROS:
        return False
    shares = []
    for layer in {0, config.n_layers // 2, config.n_layers - 1}:
        inputs = layer_inputs(paths, layer)
        few = inputs[:: max(1, len(inputs) // 64)]
        fired = fire(config, FfnWeights.of(model, layer), few)
        shares.append(np.count_nonzero(fired.gate) / fired.gate.size)
    return float(np.mean(shares)) < SPARSE


def _fitted(
    model: PackedModel,
    paths: Sequence[Path],
    step: Callable[[int, int], None],
    found: _Layers,
    sparse: bool,
) -> Iterator[tuple[Bools, F32]]:
    """Fit layer after layer; yields who fired, and what everyone added on average."""
    config = model.config
    for layer in range(config.n_layers):
        step(layer, config.n_layers)
        inputs = layer_inputs(paths, layer)
        weights = FfnWeights.of(model, layer)
        fired = fire(config, weights, inputs)
        if not np.isfinite(fired.hidden).all():
            raise FormatError(
                f"Layer {layer} of {model.info['name']} computes what is not a finite number, so "
                "that it cannot be calibrated; its weights are damaged, pull or convert it again."
            )
        potentials = Potentials.of(weights, fired)
        rows = LayerTrial(weights, potentials, _some(fired)).rows()
        contribution = potentials.contribution(fired)
        cutoff = 0.0 if config.activation in EXACT_ZEROS else rows[0, _TYPICAL, 0]
        fires = potentials.gate(fired) > cutoff
        found.rows.append(rows)
        found.prices.append(costs(model, layer))
        found.potentials.append(potentials)
        found.frequencies.append(fires.mean(axis=0, dtype=np.float32))
        mean = max(1.0, float(fires.sum(axis=1).mean()))
        floor, cap = coherence.bounds(fires)
        found.bounds.append((min(1.0, floor / mean), max(1.0, cap / mean)))
        if sparse:
            rank = min(_RANK, config.d_model // 2 // GROUP * GROUP)
            made = predictor.fit(weights.gate, inputs, fires, contribution, rank=rank)
            found.predictors.append(made.predictor)
        yield fires, contribution.mean(axis=0)
    step(config.n_layers, config.n_layers)


def _some(fired: Fired) -> Fired:
    """Evenly spread tokens of all."""
    chosen = slice(None, None, max(1, len(fired.gate) // _TRIED))
    return Fired(fired.gate[chosen], fired.up[chosen], fired.hidden[chosen])
