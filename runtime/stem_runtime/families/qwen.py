"""Qwen2 and Qwen2.5 (biases on q, k, v) and Qwen3 (norms on q and k); windows in later layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from ..config import ModelConfig
from . import rope
from .base import Family, gguf_tensors, hf_tensors
from .common import (
    MAX_CONTEXT,
    HfDefaults,
    activation_of,
    build,
    gguf_rope,
    gguf_values,
    hf_layer_types,
    hf_values,
)
from .fields import Fields

_DEFAULTS = {
    "qwen2": HfDefaults(kv_heads=32, context_length=32_768),
    "qwen3": HfDefaults(kv_heads=32, head_dim=128, context_length=32_768),
}
_FEATURES = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}


def _config_from_hf(name: str, cfg: Mapping[str, Any], where: str) -> ModelConfig:
    config = Fields(cfg, where)
    defaults = _DEFAULTS[name]
    values = hf_values(name, config, defaults) | _FEATURES[name]
    values |= activation_of(config, defaults.activation)
    values["rope_inv_freq"] = rope.from_hf(config, values["head_dim"], defaults.rope_theta)
    if config.flag("use_sliding_window", False):
        values["layer_windows"] = _windows(config, values["n_layers"])
    return build(values, where)


def _windows(config: Fields, n_layers: int) -> tuple[int, ...]:
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 4096)
    first = config.integer("max_window_layers", 0, MAX_CONTEXT, 28)
    slides = hf_layer_types(config, n_layers) or [i >= first for i in range(n_layers)]
    return tuple(window if slide else 0 for slide in slides)


def _config_from_gguf(
    name: str,
    meta: Mapping[str, Any],
    where: str,
    *,
    tensors: Collection[str],
    rope_freqs: Sequence[float] | None = None,
) -> ModelConfig:
    fields = Fields(meta, where, f"{name}.")
    values = gguf_values(name, fields, tensors, "silu") | _FEATURES[name]
    head_dim = values["head_dim"]
    values["rope_inv_freq"] = gguf_rope(fields, head_dim, 10_000.0, tensors, rope_freqs)
    return build(values, where)


def _family(name: str, architecture: str) -> Family:
    return Family(
        name=name,
        hf_types=(name,),
        hf_architectures=(architecture,),
        gguf_archs=(name,),
        config_from_hf=partial(_config_from_hf, name),
        config_from_gguf=partial(_config_from_gguf, name),
        tensors_hf=hf_tensors,
        tensors_gguf=gguf_tensors,
    )


QWEN2 = _family("qwen2", "Qwen2ForCausalLM")
QWEN3 = _family("qwen3", "Qwen3ForCausalLM")
