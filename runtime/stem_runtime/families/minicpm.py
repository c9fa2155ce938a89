"""MiniCPM 1 and 2, and the sparse MiniCPM-S: Llama's layers with scaled embeddings, sublayers and
logits (arXiv 2404.06395).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..config import ModelConfig
from . import rope
from .base import Family, TensorSpec, gguf_tensors, hf_tensors
from .common import SCALE, HfDefaults, activation_of, build, gguf_rope, gguf_values, hf_values
from .fields import Fields

_DEFAULTS = HfDefaults(tied_head=True)
# Values of the published models, for GGUF files older than the keys that carry them.
_EMBED_SCALE, _DEPTH_SCALE, _BASE_WIDTH = 12.0, 1.4, 256.0


def _config_from_hf(cfg: Mapping[str, Any], where: str) -> ModelConfig:
    config = Fields(cfg, where)
    values = hf_values("minicpm", config, _DEFAULTS)
    values |= activation_of(config, _DEFAULTS.activation)
    values["rope_inv_freq"] = rope.from_hf(config, values["head_dim"], _DEFAULTS.rope_theta)
    values["embed_scale"] = config.number("scale_emb", *SCALE, 1.0)
    depth = config.number("scale_depth", *SCALE, 1.0)
    values["residual_scale"] = depth / values["n_layers"] ** 0.5
    values["logit_scale"] = config.number("dim_model_base", *SCALE, 1.0) / values["d_model"]
    return build(values, where)


def _config_from_gguf(
    meta: Mapping[str, Any],
    where: str,
    *,
    tensors: Collection[str],
    rope_freqs: Sequence[float] | None = None,
) -> ModelConfig:
    fields = Fields(meta, where, "minicpm.")
    values = gguf_values("minicpm", fields, tensors, "silu")
    head_dim = values["head_dim"]
    values["rope_inv_freq"] = gguf_rope(fields, head_dim, 10_000.0, tensors, rope_freqs)
    values["embed_scale"] = fields.number("embedding_scale", *SCALE, _EMBED_SCALE)
    residual = _DEPTH_SCALE / values["n_layers"] ** 0.5
    values["residual_scale"] = fields.number("residual_scale", *SCALE, residual)
    # The key holds what logits are divided by.
    values["logit_scale"] = 1 / fields.number(
        "logit_scale", *SCALE, values["d_model"] / _BASE_WIDTH
    )
    return build(values, where)


def _tensors_gguf(config: ModelConfig) -> list[TensorSpec]:
    return gguf_tensors(config, permuted=True)


FAMILY = Family(
    name="minicpm",
    hf_types=("minicpm",),
    hf_architectures=("MiniCPMForCausalLM",),
    gguf_archs=("minicpm",),
    config_from_hf=_config_from_hf,
    config_from_gguf=_config_from_gguf,
    tensors_hf=hf_tensors,
    tensors_gguf=_tensors_gguf,
)
