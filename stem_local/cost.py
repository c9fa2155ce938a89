"""What a decoded token costs: how many weights it is multiplied by, layer by layer and in all."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stem_runtime.formats.packed import expected_tensors
from stem_runtime.neuron_tables import COUNTS

if TYPE_CHECKING:
    from stem_runtime.config import ModelConfig
    from stem_runtime.formats.packed import PackedModel
    from stem_runtime.sparsity.ffn_profile import FfnSetting
    from stem_runtime.sparsity.neurons import Predictor
    from stem_runtime.sparsity.plan import FfnPlan
    from stem_runtime.sparsity.profile import HeadSetting

F64 = NDArray[np.float64]

_PARTS = [COUNTS.index(name) for name in ("candidates", "gated", "active")]
_DENSE = COUNTS.index("dense")


@functools.lru_cache(maxsize=8)
def layer_parameters(config: ModelConfig) -> tuple[int, ...]:
    """How many weights each layer has."""
    counts = [0] * config.n_layers
    for name, shape in expected_tensors(config):
        if name.startswith("layers."):
            counts[int(name.split(".")[1])] += math.prod(shape)
    return tuple(counts)


def sparse_layers(config: ModelConfig, counts: F64, ranks: Sequence[int]) -> list[float]:
    """How many weights of each layer a token is multiplied by where neurons are left out.

    `counts` float64 [n_layers, 8] are means of `Engine.last_counts`: one gate row, up row or down
    row is d_model weights. `ranks` are those of the layers' predictors, whose weights count too.
    """
    # a layer that ran dense reports no neurons, and computed them all
    rows = counts[:, _PARTS].sum(axis=1) + 3 * config.ffn_dim * counts[:, _DENSE]
    left_out = config.d_model * (3 * config.ffn_dim - rows)
    sides = config.d_model + config.ffn_dim
    predicted = [rank * sides for rank in ranks]
    found = np.array(layer_parameters(config)) - left_out + np.array(predicted)
    active: list[float] = found.tolist()
    return active


def predictor_ranks(plan: FfnPlan, predictors: Sequence[Predictor] | None) -> list[int]:
    """Rank of the predictor that each layer asks under a plan, 0 for none."""
    if predictors is None or plan.candidates != "predicted":
        return [0] * len(plan.modes)
    return [
        predictor.axes.rows if mode == "gate" else 0
        for mode, predictor in zip(plan.modes, predictors, strict=True)
    ]


def active_parameters(packed: PackedModel, rows: float, dims: int, layers: Sequence[float]) -> int:
    """How many weights a token is multiplied by, those of the layers being `layers`.

    `rows` rows of the head are computed in full, after a look along `dims` axes (0 for none). An
    embedding that is only looked up counts as one row.
    """
    config = packed.config
    vocab, d = config.vocab_size, config.d_model
    count = packed.parameters - (vocab - rows) * d + dims * (d + vocab)
    if not config.tied_head:
        count -= (vocab - 1) * d
    return round(count + sum(layers) - sum(layer_parameters(config)))


def measured_parameters(
    packed: PackedModel, head: HeadSetting | None, ffn: FfnSetting | None
) -> int:
    """How many weights a token was multiplied by in calibration; None is a part left whole."""
    config = packed.config
    skipped = 0.0 if ffn is None else 1 - ffn.active_parameters
    missing = skipped * 3 * config.ffn_dim * config.d_model
    layers = [whole - missing for whole in layer_parameters(config)]
    rows, dims = (config.vocab_size, 0) if head is None else (head.mean_rows, head.dims)
    return active_parameters(packed, rows, dims, layers)


def dense_ffn_bytes(packed: PackedModel) -> int:
    """Bytes of all FFN weights, which a token reads where nothing is left out."""
    return sum(
        packed.matrix(f"layers.{index}.{name}").nbytes
        for index in range(packed.config.n_layers)
        for name in ("gate", "up", "down")
    )
