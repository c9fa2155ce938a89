"""How weights and energy are counted, in cases that can be worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stem_local.cost import (
    active_parameters,
    dense_ffn_bytes,
    layer_parameters,
    predictor_ranks,
    sparse_layers,
)
from stem_runtime.formats.packed import open_packed
from stem_runtime.neuron_tables import COUNTS
from stem_runtime.quant import PlainMatrix, pack
from stem_runtime.sparsity.neurons import Predictor
from stem_runtime.sparsity.plan import FfnPlan
from stem_runtime.stats import Rules, Stats
from tests.runtime.tiny import random_packed, tiny_config

# q and o [64, 64], k and v [32, 64], gate, up and down [96, 64], two norms [64]
LAYER = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64
EMBED = 320 * 64
TOTAL = 2 * LAYER + EMBED + 64


def counts(*rows: dict[str, float]) -> np.ndarray:
    return np.array([[row.get(name, 0.0) for name in COUNTS] for row in rows])


def predictor(rank: int, d: int = 64, ffn: int = 96) -> Predictor:
    def matrix(rows: int, cols: int) -> PlainMatrix:
        groups = -(-cols // 32)
        quants = np.full((rows, groups * 32), 128, np.uint8)
        return PlainMatrix("int8", quants, np.ones((rows, groups), np.float16))

    return Predictor(
        pack(matrix(rank, d), "axes", d),
        pack(matrix(ffn, rank), "scores", rank),
        np.zeros(ffn, np.float32),
    )


def test_layers_are_counted() -> None:
    assert layer_parameters(tiny_config()) == (LAYER, LAYER)
    biased = tiny_config("qwen2")
    assert layer_parameters(biased) == (LAYER + 64 + 2 * 32,) * 2


def test_rows_that_are_left_out_are_not_active() -> None:
    config = tiny_config()
    found = sparse_layers(
        config,
        counts({"candidates": 96, "gated": 40, "active": 10.5}, {"dense": 1}),
        [0, 0],
    )
    assert found == [LAYER - 64 * (56 + 85.5), LAYER]
    # the first quarter of the tokens ran dense
    mixed = counts({"candidates": 72, "gated": 30, "active": 9, "dense": 0.25}, {"dense": 1})
    assert sparse_layers(config, mixed, [0, 0])[0] == LAYER - 64 * (3 * 96 * 0.75 - 111)


def test_a_predictor_is_paid_for() -> None:
    plan = FfnPlan(("gate", "dense"), (0.0, 0.0), (0.0, 0.0), candidates="predicted")
    predictors = (predictor(32), predictor(32))
    ranks = predictor_ranks(plan, predictors)
    assert ranks == [32, 0]
    assert predictor_ranks(dataclasses.replace(plan, candidates="all"), predictors) == [0, 0]
    assert predictor_ranks(plan, None) == [0, 0]
    few = counts({"candidates": 10, "gated": 8, "active": 6}, {"dense": 1})
    found = sparse_layers(tiny_config(), few, ranks)
    assert found == [LAYER - 64 * (86 + 88 + 90) + 32 * (64 + 96), LAYER]


def test_all_of_a_model(tmp_path: Path) -> None:
    packed = open_packed(random_packed(tmp_path / "tied", tiny_config()))
    layers = [float(LAYER), LAYER - 640.0]
    assert active_parameters(packed, 320, 0, [LAYER, LAYER]) == TOTAL == packed.parameters
    assert active_parameters(packed, 320, 0, layers) == TOTAL - 640
    # 12.5 rows in full after a look along 32 axes
    found = active_parameters(packed, 12.5, 32, layers)
    assert found == TOTAL - 640 - round(307.5 * 64) + 32 * (64 + 320)
    untied = open_packed(random_packed(tmp_path / "untied", tiny_config(tied_head=False)))
    assert untied.parameters == TOTAL + EMBED
    assert active_parameters(untied, 320, 0, [LAYER, LAYER]) == TOTAL + 64


def test_bytes_of_ffns(tmp_path: Path) -> None:
    packed = open_packed(random_packed(tmp_path / "m", tiny_config()))
    # int4: 16 bytes and a scale of 2 for each group of 32
    assert dense_ffn_bytes(packed) == 2 * 3 * 96 * 2 * 18
    wide = open_packed(random_packed(tmp_path / "wide", tiny_config(), kinds={"down": "int8"}))
    assert dense_ffn_bytes(wide) == 2 * (2 * 96 * 2 * 18 + 64 * 3 * 34)


def stats(**changes: object) -> Stats:
    made = Stats(
        head_rows=320.0,
        active_parameters=60,
        total_parameters=80,
        layer_active_fraction=(0.5, 0.75),
        bytes_per_token=2_000_000,
        rules=Rules(caps=3),
        model="m",
        kernels="k",
        threads=2,
        prompt_tokens=20,
        reused_tokens=10,
        completion_tokens=11,
        decode_steps=10,
        drafted_tokens=0,
        accepted_tokens=0,
        prefill_seconds=0.5,
        decode_seconds=0.25,
        time_to_first_token=0.6,
        joules_per_token=None,
        sparsity="dense: why",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_figures_that_follow_from_others() -> None:
    found = stats().to_dict()
    assert found["tokens_per_second"] == 40
    assert found["prefill_tokens_per_second"] == 20
    assert found["gb_per_second"] == pytest.approx(0.08)
    assert found["active_fraction"] == 0.75
    assert found["layer_active_fraction"] == (0.5, 0.75)
    assert found["rules"]["caps"] == 3
    assert found["joules_per_token"] is None
    assert found["tokens_per_step"] == 1
    assert "a step" not in str(stats())
    drafted = stats(drafted_tokens=9, accepted_tokens=5)
    assert (drafted.tokens_per_second, drafted.tokens_per_step) == (60, 1.5)
    assert drafted.gb_per_second == pytest.approx(0.12)
    assert "at 60.0 tok/s (0.1 GB/s, 1.5 a step), first" in str(drafted)
    assert stats(decode_steps=0).tokens_per_step == 0
    assert "J a token" not in str(stats())
    assert "0.1 GB/s, 0.05 J a token)" in str(stats(joules_per_token=0.05))
