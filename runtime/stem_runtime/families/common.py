"""The settings that all families share, read from config.json and from GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import ACTIVATIONS, ModelConfig
from ..errors import FormatError
from . import rope
from .fields import Fields

MAX_CONTEXT = 1 << 24
_SIZES = {
    "n_layers": 1024,
    "d_model": 1 << 16,
    "n_heads": 1024,
    "kv_heads": 1024,
    "head_dim": 1024,
    "ffn_dim": 1 << 20,
    "vocab_size": 1 << 22,
    "context_length": MAX_CONTEXT,
}
_EPS = (1e-12, 0.1)
SCALE = (1e-6, 1e6)

_ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "fatrelu": "fatrelu",
    "relu2": "relu2",
    "relu_squared": "relu2",
    "drelu": "drelu",
}
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")

_DENSE = "dense models without experts"
_HF_ACCEPTED: dict[str, tuple[tuple[object, ...], str]] = {
    "attention_bias": ((False,), "attention without biases"),
    "mlp_bias": ((False,), "FFNs without biases"),
    "partial_rotary_factor": ((1,), "rotation of the whole head (1.0)"),
    "rope_interleaved": ((False,), "half-split rotation (false)"),
    "attn_logit_softcapping": ((0,), "attention without soft-capping"),
    "final_logit_softcapping": ((0,), "logits without soft-capping"),
    "num_experts": ((0,), _DENSE),
    "num_local_experts": ((0,), _DENSE),
    "n_routed_experts": ((0,), _DENSE),
    "is_causal": ((True,), "causal models (true)"),
    "use_bidirectional_attention": ((False,), "causal models (false)"),
    "quantization_config": ((), "float16, bfloat16 or float32 weights, or a GGUF file"),
}
_GGUF_ACCEPTED: dict[str, tuple[tuple[object, ...], str]] = {
    "expert_count": ((0,), _DENSE),
    "attn_logit_softcapping": ((0,), "attention without soft-capping"),
    "final_logit_softcapping": ((0,), "logits without soft-capping"),
    "rope.scaling.attn_factor": ((0, 1), "attention without a rope factor (1.0)"),
    "attention.causal": ((True,), "causal models (true)"),
}


@dataclass(frozen=True, slots=True)
class HfDefaults:
    """What transformers assumes where config.json is silent; None means derived from the rest."""

    kv_heads: int | None = None
    head_dim: int | None = None
    context_length: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    activation: str = "silu"
    tied_head: bool = False


def hf_values(family: str, config: Fields, defaults: HfDefaults) -> dict[str, Any]:
    """ModelConfig fields common to all families, with plain causal attention in every layer."""
    for name, (accepted, supported) in _HF_ACCEPTED.items():
        config.accept(name, accepted, supported)
    n_layers = _size(config, "num_hidden_layers", "n_layers")
    d_model = _size(config, "hidden_size", "d_model")
    n_heads = _size(config, "num_attention_heads", "n_heads")
    # A kv head count of null means one per head, where an absent one means the family's default.
    null = "num_key_value_heads" in config.data
    kv_heads = n_heads if null or defaults.kv_heads is None else defaults.kv_heads
    head_dim = defaults.head_dim or max(d_model // n_heads, 1)
    head_dim = _size(config, "head_dim", "head_dim", head_dim)
    context = defaults.context_length
    return {
        "family": family,
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "kv_heads": _size(config, "num_key_value_heads", "kv_heads", kv_heads),
        "head_dim": head_dim,
        "ffn_dim": _size(config, "intermediate_size", "ffn_dim"),
        "vocab_size": _size(config, "vocab_size", "vocab_size"),
        "context_length": _size(config, "max_position_embeddings", "context_length", context),
        "norm_eps": config.number("rms_norm_eps", *_EPS, defaults.norm_eps),
        "layer_windows": (0,) * n_layers,
        "attn_scale": head_dim**-0.5,
        "tied_head": config.flag("tie_word_embeddings", defaults.tied_head),
    }


def gguf_values(
    family: str, meta: Fields, tensors: Collection[str], activation: str
) -> dict[str, Any]:
    """The same fields from GGUF metadata, which does not name the activation."""
    refuse_powerinfer(meta)
    for name, (accepted, supported) in _GGUF_ACCEPTED.items():
        meta.accept(name, accepted, supported)
    n_layers = _size(meta, "block_count", "n_layers")
    d_model = _size(meta, "embedding_length", "d_model")
    n_heads = _size(meta, "attention.head_count", "n_heads")
    head_dim = _size(meta, "attention.key_length", "head_dim", max(d_model // n_heads, 1))
    meta.accept("attention.value_length", (head_dim,), f"{head_dim}, the length of the keys")
    meta.accept("rope.dimension_count", (head_dim,), f"{head_dim}, the whole head")
    return {
        "family": family,
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "kv_heads": _size(meta, "attention.head_count_kv", "kv_heads", n_heads),
        "head_dim": head_dim,
        "ffn_dim": _size(meta, "feed_forward_length", "ffn_dim"),
        "vocab_size": _gguf_vocab_size(meta),
        "context_length": _size(meta, "context_length", "context_length"),
        "norm_eps": meta.number("attention.layer_norm_rms_epsilon", *_EPS),
        "activation": activation,
        "layer_windows": (0,) * n_layers,
        "attn_scale": meta.number("attention.scale", *SCALE, head_dim**-0.5),
        "tied_head": "output.weight" not in tensors,
    }


def gguf_rope(
    meta: Fields,
    head_dim: int,
    default_theta: float,
    tensors: Collection[str],
    rope_freqs: Sequence[float] | None,
) -> tuple[float, ...]:
    if rope_freqs is None and "rope_freqs.weight" in tensors:
        raise ValueError("the file has a rope_freqs.weight tensor: pass its values as rope_freqs")
    return rope.from_gguf(meta, head_dim, default_theta, rope_freqs)


def activation_of(
    config: Fields, default: str, keys: Sequence[str] = ACTIVATION_KEYS
) -> dict[str, Any]:
    """`activation` and `activation_param`: from the first of `keys` that the file has.

    Raises UnsupportedError for a function we do not have.
    """
    key = next((key for key in keys if key in config), keys[0])
    name = _ACTIVATION_NAMES.get(config.text(key, default))
    if name is None:
        config.refuse(key, ", ".join(ACTIVATIONS))
    # The shift decides which neurons fire at all: guessing one would change the model.
    param = config.number("hidden_act_param", 0.0, 1e3) if name == "fatrelu" else 0.0
    return {"activation": name, "activation_param": param}


def hf_layer_types(config: Fields, n_layers: int) -> list[bool] | None:
    """Which layers slide, from `layer_types`; None where config.json has no such list."""
    types = config.raw("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != n_layers:
        config.damaged("layer_types", f"a list of {n_layers} names")
    kinds = ("full_attention", "sliding_attention")
    if any(kind not in kinds for kind in types):
        config.refuse("layer_types", " and ".join(kinds))
    return [kind == "sliding_attention" for kind in types]


def refuse_powerinfer(meta: Fields) -> None:
    """PowerInfer's files share the arch name llama, but not its FFN layout nor its activation."""
    general = Fields(meta.data, meta.where)
    for name in meta.data:
        if name.startswith("powerinfer."):
            general.refuse(name, "GGUF files for llama.cpp; or pull the original checkpoint")


def build(values: dict[str, Any], where: str) -> ModelConfig:
    config = ModelConfig(**values)
    validate(config, where)
    return config


def validate(config: ModelConfig, where: str) -> None:
    """Check that a config is something the engine can allocate and run. Raises FormatError."""

    def require(ok: bool, what: str) -> None:
        if not ok:
            raise FormatError(f"{where}: {what}; get the model again from its source.")

    for name, high in _SIZES.items():
        value = getattr(config, name)
        require(1 <= value <= high, f"{name} is {value}, outside 1 to {high}")
    require(
        config.n_heads % config.kv_heads == 0,
        f"{config.n_heads} attention heads cannot share {config.kv_heads} key-value heads evenly",
    )
    require(config.head_dim % 2 == 0, f"head_dim is {config.head_dim}, an odd number")
    require(config.activation in ACTIVATIONS, f"activation {config.activation!r:.40} is unknown")
    require(
        len(config.layer_windows) == config.n_layers
        and all(0 <= window <= MAX_CONTEXT for window in config.layer_windows),
        "layer_windows does not give each layer a window of 0 or more tokens",
    )
    for name in ("rope_inv_freq", "rope_local_inv_freq"):
        values = getattr(config, name)
        absent = name == "rope_local_inv_freq" and not values
        require(
            absent or len(values) == config.head_dim // 2,
            f"{name} has {len(values)} values for heads of {config.head_dim}",
        )
        require(all(0 <= v < math.inf for v in values), f"{name} has a value that is no frequency")
    for name in ("attn_scale", "embed_scale", "residual_scale", "logit_scale", "norm_eps"):
        value = getattr(config, name)
        require(0 < value < math.inf, f"{name} is {value}, not a positive number")
    require(0 <= config.activation_param < math.inf, "activation_param is not a number from 0 up")


def _size(fields: Fields, name: str, what: str, default: int | None = None) -> int:
    return fields.integer(name, 1, _SIZES[what], default)


def _gguf_vocab_size(meta: Fields) -> int:
    tokens = meta.data.get("tokenizer.ggml.tokens")
    if tokens is None:
        return _size(meta, "vocab_size", "vocab_size")
    if not isinstance(tokens, Sequence) or isinstance(tokens, (str, bytes)):
        Fields(meta.data, meta.where).damaged("tokenizer.ggml.tokens", "a list of strings")
    return len(tokens)
