"""The golden models of tests/goldens, as plain weights and as packed folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from stem_runtime import families
from stem_runtime.config import ModelConfig
from stem_runtime.formats.packed import PackedWriter
from stem_runtime.quant import Kind, pack
from stem_runtime.quant.rounding import quantize

FOLDER = Path(__file__).parent.parent / "goldens"
CASES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


@dataclass(frozen=True, slots=True)
class Golden:
    """`weights` are float32 by packed name; `logits` [tokens, vocab] are what they should give."""

    config: ModelConfig
    weights: dict[str, NDArray[np.float32]]
    tokens: list[int]
    logits: NDArray[np.float32]


def load(case: str) -> Golden:
    folder = FOLDER / case
    settings = json.loads((folder / "config.json").read_text())
    family = families.for_hf(settings, case)
    config = family.config_from_hf(settings, case)
    source = load_file(folder / "model.safetensors")
    specs = family.tensors_hf(config)
    families.check_tensors(source, specs, case)
    offset = {"": 0.0, "plus_one": 1.0}
    weights = {s.name: source[s.source].astype(np.float32) + offset[s.transform] for s in specs}
    assert all(weights[spec.name].shape == spec.shape for spec in specs)
    tokens = json.loads((folder / "tokens.json").read_text())
    return Golden(config, weights, tokens, np.load(folder / "logits.npy"))


def write_packed(golden: Golden, folder: Path, kind: Kind = "int8") -> Path:
    """Round the matrices of `golden` to `kind` and write a packed folder without a tokenizer."""
    kinds = {name: kind for name, values in golden.weights.items() if values.ndim == 2}
    with PackedWriter(folder, golden.config, kinds) as writer:
        for name, values in golden.weights.items():
            if values.ndim == 2:
                writer.matrix(name, pack(quantize(values, kind), name, values.shape[1]))
            else:
                writer.vector(name, values)
        info = {"bos": None, "eos": [2], "add_bos": False}
        writer.finish({"name": "golden", "quant": kind, "tokenizer": info, "source": {}})
    return folder
