"""Every family against logits that transformers computed (see tests/goldens/make_goldens.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from stem_runtime import families
from stem_runtime.config import ModelConfig
from stem_runtime.kernels import oracle

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = sorted(path.parent.name for path in GOLDENS.glob("*/config.json"))


def load(case: str) -> tuple[ModelConfig, Callable[[str], NDArray[np.float32]], list[int]]:
    """A golden model: its config, its float32 weights by packed name, and the tokens to run."""
    folder = GOLDENS / case
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    family = families.for_hf(settings, case)
    config = family.config_from_hf(settings, case)
    source = load_file(folder / "model.safetensors")
    specs = family.tensors_hf(config)
    families.check_tensors(source, specs, case)
    offset = {"": 0.0, "plus_one": 1.0}
    weights = {s.name: source[s.source].astype(np.float32) + offset[s.transform] for s in specs}
    assert all(weights[spec.name].shape == spec.shape for spec in specs)
    return config, weights.__getitem__, json.loads((folder / "tokens.json").read_text())


def test_cases_cover_every_family() -> None:
    assert {load(case)[0].family for case in CASES} == {f.name for f in families.FAMILIES}


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_transformers(case: str) -> None:
    config, get, tokens = load(case)
    logits = oracle.forward(config, get, tokens)
    golden = np.load(GOLDENS / case / "logits.npy")
    assert golden.std() > 0.5, "logits without spread would hide mistakes"
    np.testing.assert_allclose(logits, golden, rtol=1e-4, atol=1e-4)
