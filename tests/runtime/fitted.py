"""Profiles of tiny models, fitted by the real thing on random tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stem_runtime.engine import Engine
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.sparsity.capture import Part, capture_ffn
from stem_runtime.sparsity.ffn_fit import fit
from stem_runtime.sparsity.ffn_profile import FfnProfile

from .tiny import random_packed, tiny_config

SPARSE = {"activation": "fatrelu", "activation_param": 0.5}
"""A tiny model of which a third of the neurons fires."""


def sequences(count: int = 4, length: int = 80, vocab: int = 320) -> list[list[int]]:
    rng = np.random.default_rng(count)
    return [rng.integers(3, vocab, length).tolist() for _ in range(count)]


def captured(model: PackedModel, folder: Path, count: int = 4) -> list[Path]:
    """Files of what the FFNs get for random tokens."""
    width = model.config.d_model
    parts = [
        Part(tokens, np.zeros((len(tokens) - 1, width), np.float32), False)
        for tokens in sequences(count)
    ]
    with Engine(model, threads=1) as engine:
        return capture_ffn(model, engine, parts, folder, lambda _done, _total: None)


def fitted(folder: Path, **over: object) -> tuple[PackedModel, FfnProfile]:
    """A tiny model, and its profile without settings."""
    model = open_packed(random_packed(folder / "m", tiny_config(**over)))
    return model, fit(model, captured(model, folder / "held"), lambda _done, _total: None)
