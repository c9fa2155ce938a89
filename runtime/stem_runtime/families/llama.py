"""Llama, and what shares its layers: Mistral, SmolLM2, and the naturally sparse ReLU variants.

Activations that the config.json of a sparse variant does not tell:
- `llama_sparse_relu` (SparseLM, arXiv 2603.23198) says silu and runs a ReLU gate.
- `bamboo` (Bamboo, TurboSparse-Mistral, arXiv 2406.05955) says relu and applies it to gate and up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..config import ModelConfig
from . import rope
from .base import Family, TensorSpec, gguf_tensors, hf_tensors
from .common import (
    MAX_CONTEXT,
    HfDefaults,
    activation_of,
    build,
    gguf_rope,
    gguf_values,
    hf_values,
)
from .fields import Fields

_ACTIVATION_OVERRIDES = {"llama_sparse_relu": "relu", "bamboo": "drelu"}
_MISTRAL_LIKE = ("mistral", "bamboo")
_LLAMA_DEFAULTS = HfDefaults()
_MISTRAL_DEFAULTS = HfDefaults(kv_heads=8, context_length=131_072)
_MISTRAL_WINDOW = 4096


def _config_from_hf(cfg: Mapping[str, Any], where: str) -> ModelConfig:
    config = Fields(cfg, where)
    model_type = config.text("model_type", "llama")
    mistral = model_type in _MISTRAL_LIKE
    defaults = _MISTRAL_DEFAULTS if mistral else _LLAMA_DEFAULTS
    config.accept("sparsity_gated_mlp", (True,), "gated FFNs (true)")
    values = hf_values("llama", config, defaults)
    if override := _ACTIVATION_OVERRIDES.get(model_type):
        values |= {"activation": override}
    else:
        values |= activation_of(config, defaults.activation)
    values["rope_inv_freq"] = rope.from_hf(config, values["head_dim"], defaults.rope_theta)
    # A window of null means none, an absent one the 4,096 tokens of the first Mistral.
    if mistral and ("sliding_window" not in cfg or cfg["sliding_window"] is not None):
        window = config.integer("sliding_window", 0, MAX_CONTEXT, _MISTRAL_WINDOW)
        values["layer_windows"] = (window,) * values["n_layers"]
    return build(values, where)


def _config_from_gguf(
    meta: Mapping[str, Any],
    where: str,
    *,
    tensors: Collection[str],
    rope_freqs: Sequence[float] | None = None,
) -> ModelConfig:
    fields = Fields(meta, where, "llama.")
    values = gguf_values("llama", fields, tensors, "silu")
    head_dim = values["head_dim"]
    values["rope_inv_freq"] = gguf_rope(fields, head_dim, 10_000.0, tensors, rope_freqs)
    window = fields.integer("attention.sliding_window", 0, MAX_CONTEXT, 0)
    values["layer_windows"] = (window,) * values["n_layers"]
    return build(values, where)


def _tensors_gguf(config: ModelConfig) -> list[TensorSpec]:
    return gguf_tensors(config, permuted=True)


FAMILY = Family(
    name="llama",
    hf_types=("llama", "mistral", "llama_sparse_relu", "sparsellama", "bamboo"),
    hf_architectures=("LlamaForCausalLM",),
    gguf_archs=("llama",),
    config_from_hf=_config_from_hf,
    config_from_gguf=_config_from_gguf,
    tensors_hf=hf_tensors,
    tensors_gguf=_tensors_gguf,
)
