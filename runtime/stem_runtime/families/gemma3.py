"""Gemma 3, text only: norms before and after each sublayer, scaled embeddings, tanh-GELU gates,
and sliding layers that rotate with their own base between global ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..config import ModelConfig
from . import rope
from .base import Family, TensorSpec, gguf_tensors, hf_tensors
from .common import (
    MAX_CONTEXT,
    SCALE,
    HfDefaults,
    activation_of,
    build,
    gguf_rope,
    gguf_values,
    hf_layer_types,
    hf_values,
)
from .fields import Fields

_DEFAULTS = HfDefaults(
    kv_heads=4,
    head_dim=256,
    context_length=131_072,
    rope_theta=1_000_000.0,
    activation="gelu_pytorch_tanh",
    tied_head=True,
)
_LOCAL_THETA = 10_000.0
_WINDOW = 4096
_GLOBAL_EVERY = 6
_LAYERS_OF_27B = 62
_HF_NORMS = {
    "attn_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}


def _config_from_hf(cfg: Mapping[str, Any], where: str) -> ModelConfig:
    config = Fields(cfg, where)
    if config.text("model_type", "gemma3_text") != "gemma3_text":
        config.refuse("model_type", "gemma3_text; for models with vision, their GGUF file")
    values = _with_features(hf_values("gemma3", config, _DEFAULTS))
    # The family's code reads hidden_activation alone, whatever an older hidden_act may say.
    values |= activation_of(config, _DEFAULTS.activation, ("hidden_activation", "hidden_act"))
    scalar = config.number("query_pre_attn_scalar", *SCALE, 256.0)
    values["attn_scale"] = scalar**-0.5
    values |= _hf_rope(config, values["head_dim"])
    every = "sliding_window_pattern"
    every = every if every in config else f"_{every}"
    slides = hf_layer_types(config, values["n_layers"]) or _pattern(
        values["n_layers"], config.integer(every, 1, MAX_CONTEXT, _GLOBAL_EVERY)
    )
    window = config.integer("sliding_window", 0, MAX_CONTEXT, _WINDOW)
    values["layer_windows"] = tuple(window if slide else 0 for slide in slides)
    return build(values, where)


def _hf_rope(config: Fields, head_dim: int) -> dict[str, tuple[float, ...]]:
    """One set of frequencies per kind of layer, from the nested or the older flat settings."""
    local_theta = config.number("rope_local_base_freq", 1.0, 1e12, _LOCAL_THETA)
    nested = config.table("rope_parameters")
    full = nested.table("full_attention") if nested else None
    local = nested.table("sliding_attention") if nested else None
    if nested and full is None and local is None:
        nested.refuse("full_attention", "one object each for full_attention and sliding_attention")
    theta = config.number("rope_theta", 1.0, 1e12, _DEFAULTS.rope_theta)
    full = full or config.table("rope_scaling")
    return {
        "rope_inv_freq": rope.from_table(full, head_dim, theta),
        "rope_local_inv_freq": rope.from_table(local, head_dim, local_theta),
    }


def _config_from_gguf(
    meta: Mapping[str, Any],
    where: str,
    *,
    tensors: Collection[str],
    rope_freqs: Sequence[float] | None = None,
) -> ModelConfig:
    fields = Fields(meta, where, "gemma3.")
    values = _with_features(gguf_values("gemma3", fields, tensors, "gelu_tanh"))
    head_dim, n_layers = values["head_dim"], values["n_layers"]
    theta = _DEFAULTS.rope_theta
    values["rope_inv_freq"] = gguf_rope(fields, head_dim, theta, tensors, rope_freqs)
    local_theta = fields.number("rope.freq_base_swa", 1.0, 1e12, _LOCAL_THETA)
    values["rope_local_inv_freq"] = tuple(rope.frequencies(local_theta, head_dim).tolist())
    # Only the 27B model scales by the model's width per head; its GGUF file does not say so.
    if n_layers == _LAYERS_OF_27B and "attention.scale" not in fields:
        values["attn_scale"] = (values["d_model"] / values["n_heads"]) ** -0.5
    every = fields.integer("attention.sliding_window_pattern", 1, MAX_CONTEXT, _GLOBAL_EVERY)
    window = fields.integer("attention.sliding_window", 0, MAX_CONTEXT, 0)
    slides = _pattern(n_layers, every)
    values["layer_windows"] = tuple(window if slide else 0 for slide in slides)
    return build(values, where)


def _with_features(values: dict[str, Any]) -> dict[str, Any]:
    scale = values["d_model"] ** 0.5
    return values | {"embed_scale": scale, "qk_norm": True, "post_norms": True}


def _pattern(n_layers: int, every: int) -> list[bool]:
    return [(i + 1) % every != 0 for i in range(n_layers)]


def _tensors_hf(config: ModelConfig) -> list[TensorSpec]:
    return hf_tensors(config, _HF_NORMS, "plus_one")


FAMILY = Family(
    name="gemma3",
    hf_types=("gemma3_text", "gemma3"),
    hf_architectures=("Gemma3ForCausalLM",),
    gguf_archs=("gemma3",),
    config_from_hf=_config_from_hf,
    config_from_gguf=_config_from_gguf,
    tensors_hf=_tensors_hf,
    tensors_gguf=gguf_tensors,
)
