"""Every family against logits that transformers computed (see tests/goldens/make_goldens.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stem_runtime import families
from stem_runtime.formats.packed import open_packed
from stem_runtime.kernels import oracle

from . import golden
from .tiny import rope_inv_freq

NOTICED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attn_scale": 1.0}),
    ("llama", {"norm_eps": 1e-2}),
    ("llama_rope_llama3", {"rope_inv_freq": rope_inv_freq(16)}),
    ("llama_rope_linear", {"rope_inv_freq": rope_inv_freq(16, 500.0)}),
    ("mistral_window", {"layer_windows": (0, 0)}),
    ("mistral_window", {"layer_windows": (8, 8)}),
    ("qwen2", {"qkv_bias": False}),
    ("qwen2_window", {"layer_windows": (5, 5)}),
    ("qwen3", {"qk_norm": False}),
    ("gemma3", {"layer_windows": (6, 6, 6)}),
    ("gemma3", {"rope_local_inv_freq": ()}),
    ("gemma3", {"post_norms": False}),
    ("gemma3", {"embed_scale": 1.0}),
    ("gemma3", {"activation": "gelu"}),
    ("minicpm_fatrelu", {"embed_scale": 1.0}),
    ("minicpm_fatrelu", {"residual_scale": 1.0}),
    ("minicpm_fatrelu", {"logit_scale": 1.0}),
    ("minicpm_fatrelu", {"activation_param": 0.0}),
    ("gelu", {"activation": "gelu_tanh"}),
    ("relu2", {"activation": "relu"}),
    ("fatrelu", {"activation": "relu"}),
    ("sparselm", {"activation": "silu"}),
    ("bamboo_drelu", {"activation": "relu"}),
]


def test_cases_cover_every_family() -> None:
    names = {golden.load(case).config.family for case in golden.CASES}
    assert names == {family.name for family in families.FAMILIES}


@pytest.mark.parametrize("case", golden.CASES)
def test_forward_equals_transformers(case: str) -> None:
    model = golden.load(case)
    logits = oracle.forward(model.config, model.weights.__getitem__, model.tokens)
    assert model.logits.std() > 0.5, "logits without spread would hide mistakes"
    np.testing.assert_allclose(logits, model.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("case", "changed"), NOTICED, ids=str)
def test_goldens_notice_every_setting(case: str, changed: dict[str, Any]) -> None:
    model = golden.load(case)
    config = dataclasses.replace(model.config, **changed)
    logits = oracle.forward(config, model.weights.__getitem__, model.tokens)
    assert not np.allclose(logits, model.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", golden.CASES)
def test_int8_arithmetic_stays_near_transformers(case: str, tmp_path: Path) -> None:
    model = golden.load(case)
    packed = open_packed(golden.write_packed(model, tmp_path / "packed"))
    logits = oracle.forward_packed(packed, model.tokens)
    spread = model.logits.std()
    assert np.sqrt(np.mean((logits - model.logits) ** 2)) < 0.06 * spread
    chosen = np.take_along_axis(model.logits, logits.argmax(-1)[:, None], -1)[:, 0]
    assert np.all(chosen > model.logits.max(-1) - 0.5 * spread)
