"""Builders of tiny source files: GGUF and safetensors, valid or as a test wants them bent."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stem_runtime.config import ModelConfig
from stem_runtime.families import FAMILIES, Family, TensorSpec

from .tiny import CHATML, SPECIALS, byte_characters, tiny_tokenizer

TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30,
}  # fmt: skip
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class GgufTensor:
    """`shape` in reading order, (rows, cols); `data` as the file has it."""

    shape: tuple[int, ...]
    kind: str
    data: bytes
    offset: int | None = None


@dataclass(frozen=True)
class Typed:
    """A metadata value whose GGUF type is not the one its Python type suggests."""

    code: int
    payload: bytes


def gguf_bytes(
    meta: Mapping[str, Any] | Sequence[tuple[str, Any]],
    tensors: Mapping[str, GgufTensor] | Sequence[tuple[str, GgufTensor]] = (),
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file. Sequences of pairs allow names to repeat."""
    pairs = list(meta.items() if isinstance(meta, Mapping) else meta)
    named = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    head = b"GGUF" + struct.pack("<IQQ", version, len(named), len(pairs))
    for key, value in pairs:
        code, payload = _typed(value)
        head += _string(key) + struct.pack("<I", code) + payload
    body = b""
    for name, tensor in named:
        dims = tensor.shape[::-1]
        offset = len(body) if tensor.offset is None else tensor.offset
        head += _string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", TYPES.get(tensor.kind, 99), offset)
        body += tensor.data + bytes(-len(tensor.data) % alignment)
    return head + bytes(-len(head) % alignment) + body


def safetensors_bytes(tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> bytes:
    """A safetensors file from name to (dtype, shape, bytes)."""
    table, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(body), len(body) + len(data)]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        body += data
    return with_header(table, body)


def with_header(table: Any, body: bytes) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + body


def encode(values: np.ndarray, kind: str) -> bytes:
    """float32 [..., cols] as a GGML type; K-quants get random quants under small scales."""
    import gguf

    if kind.endswith("_K"):
        return _random_k(values, kind).tobytes()
    data: bytes = gguf.quantize(values, gguf.GGMLQuantizationType[kind]).tobytes()
    return data


def source_weights(family: Family, specs: list[TensorSpec], seed: int) -> dict[str, np.ndarray]:
    """Random float32 values for every spec, under the source's names and in its row order."""
    rng = np.random.default_rng([seed, len(family.name)])
    weights = {}
    for spec in specs:
        scale = 0.1 if len(spec.shape) == 1 else spec.shape[1] ** -0.5
        values = rng.standard_normal(spec.shape) * scale
        norm = "norm" in spec.name and spec.transform != "plus_one"
        weights[spec.source] = (values + norm).astype(np.float32)
    return weights


def expected_values(spec: TensorSpec, source: np.ndarray, config: ModelConfig) -> np.ndarray:
    """What the packed tensor should hold, by the letter of TensorSpec."""
    if spec.transform == "plus_one":
        return source + np.float32(1)
    if spec.transform in ("unpermute_q", "unpermute_k"):
        heads = config.n_heads if spec.transform == "unpermute_q" else config.kv_heads
        split = source.reshape(heads, config.head_dim // 2, 2, -1)
        return split.swapaxes(1, 2).reshape(source.shape)
    return source


def tiny_gguf(
    path: Path,
    config: ModelConfig,
    seed: int = 0,
    *,
    kind: str = "Q4_0",
    kinds: Mapping[str, str] | None = None,
    extra: Mapping[str, GgufTensor] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Write a GGUF model of `config`; returns the float32 weights it was made from, by source name.

    Matrices are of `kind`, but for those whose source name ends as a key of `kinds` says.
    """
    family = family_of(config)
    specs = family.tensors_gguf(config)
    weights = source_weights(family, specs, seed)
    tensors = {}
    for spec in specs:
        chosen = "F32" if len(spec.shape) == 1 else kind
        for ending, other in (kinds or {}).items():
            chosen = other if spec.source.endswith(ending) else chosen
        data = encode(weights[spec.source], chosen)
        tensors[spec.source] = GgufTensor(spec.shape, chosen, data)
    settings = {**gguf_meta(config), **(meta or {})}
    path.write_bytes(gguf_bytes(settings, {**tensors, **(extra or {})}))
    return weights


def tiny_hf(
    folder: Path, config: ModelConfig, seed: int = 0, *, dtype: str = "F32", shards: int = 1
) -> dict[str, np.ndarray]:
    """Write a Hugging Face folder of `config`; returns its float32 weights by source name."""
    family = family_of(config)
    weights = source_weights(family, family.tensors_hf(config), seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer(config.vocab_size)))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0], "bos_token_id": 1}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    entries = {n: (dtype, w.shape, encode(w, dtype)) for n, w in weights.items()}
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(entries))
        return weights
    files: dict[str, str] = {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(entries.items())[index::shards])
        (folder / name).write_bytes(safetensors_bytes(part))
        files |= dict.fromkeys(part, name)
    table = json.dumps({"metadata": {}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(table)
    return weights


def family_of(config: ModelConfig) -> Family:
    return next(family for family in FAMILIES if family.name == config.family)


def gguf_meta(config: ModelConfig) -> dict[str, Any]:
    arch = config.family
    meta: dict[str, Any] = {"general.architecture": arch, "general.license": "apache-2.0"}
    values = {
        "block_count": config.n_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": rope_base(config.rope_inv_freq, config.head_dim),
    }
    if arch == "gemma3":
        values["attention.sliding_window"] = max(config.layer_windows)
        values["attention.sliding_window_pattern"] = 2
        values["rope.freq_base_swa"] = rope_base(config.rope_local_inv_freq, config.head_dim)
    if arch == "minicpm":
        values["embedding_scale"] = config.embed_scale
        values["residual_scale"] = config.residual_scale
        values["logit_scale"] = 1 / config.logit_scale
    meta |= {f"{arch}.{key}": value for key, value in values.items()}
    tokens = [*SPECIALS, *byte_characters(), "th"]
    tokens += [f"filler{i}" for i in range(config.vocab_size - len(tokens))]
    return meta | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)),
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }


def hf_config(config: ModelConfig) -> dict[str, Any]:
    activation = ACTIVATIONS.get(config.activation, config.activation)
    values = {
        "model_type": {"gemma3": "gemma3_text"}.get(config.family, config.family),
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": activation,
        "tie_word_embeddings": config.tied_head,
        "rope_theta": rope_base(config.rope_inv_freq, config.head_dim),
    }
    if config.family == "gemma3":
        values["hidden_activation"] = activation
        values["query_pre_attn_scalar"] = config.attn_scale**-2
        values["sliding_window"] = max(config.layer_windows)
        values["sliding_window_pattern"] = 2
        values["rope_local_base_freq"] = rope_base(config.rope_local_inv_freq, config.head_dim)
    if config.family == "minicpm":
        values["scale_emb"] = config.embed_scale
        values["scale_depth"] = config.residual_scale * config.n_layers**0.5
        values["dim_model_base"] = config.logit_scale * config.d_model
    return values


def rope_base(inv_freq: Sequence[float], head_dim: int) -> float:
    return round(float(inv_freq[1]) ** (-head_dim / 2), 6)


def _typed(value: Any) -> tuple[int, bytes]:
    if isinstance(value, Typed):
        return value.code, value.payload
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return (
            (4, struct.pack("<I", value)) if 0 <= value < 2**32 else (11, struct.pack("<q", value))
        )
    if isinstance(value, float):
        return 12, struct.pack("<d", value)
    if isinstance(value, str):
        return 8, _string(value)
    code = _typed(value[0])[0]
    items = b"".join(_typed(item)[1] for item in value)
    return 9, struct.pack("<IQ", code, len(value)) + items


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _random_k(values: np.ndarray, kind: str) -> np.ndarray:
    """Random blocks of a K-quant; the library cannot quantize to these."""
    size = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}[kind]
    rng = np.random.default_rng(values.size)
    blocks = rng.integers(0, 256, (values.size // 256, size), dtype=np.uint8)
    scale = slice(208, 210) if kind == "Q6_K" else slice(0, 4)
    count = (scale.stop - scale.start) // 2
    small = rng.uniform(1e-4, 2e-4, (len(blocks), count)).astype(np.float16)
    blocks[:, scale] = small.view(np.uint8)
    return blocks
