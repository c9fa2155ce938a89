"""Builders of tiny models with random weights, for every test that needs one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stem_runtime.config import ModelConfig
from stem_runtime.formats.packed import PackedWriter, expected_tensors
from stem_runtime.quant import Kind, PackedMatrix, PlainMatrix, groups_of, pack

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

MIXED: dict[str, Kind] = {
    "embed": "int8",
    "head": "int4",
    "q": "int4m",
    "k": "int8",
    "v": "int4",
    "o": "int4m",
    "gate": "int8",
    "up": "int4",
    "down": "int4m",
}
"""A model in which every kind of matrix stands beside every other."""


def rope_inv_freq(head_dim: int, base: float = 10000.0) -> tuple[float, ...]:
    return tuple(float(base ** (-2 * i / head_dim)) for i in range(head_dim // 2))


def tiny_config(family: str = "llama", **over: Any) -> ModelConfig:
    """A two-layer config with the structure of `family`; any field may be replaced."""
    values: dict[str, Any] = {
        "family": family,
        "n_layers": 2,
        "d_model": 64,
        "n_heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "ffn_dim": 96,
        "vocab_size": 320,
        "context_length": 256,
        "norm_eps": 1e-5,
        "activation": "silu",
        "tied_head": True,
    }
    values |= {
        "qwen2": {"qkv_bias": True},
        "qwen3": {"qk_norm": True, "head_dim": 32, "norm_eps": 1e-6},
        "gemma3": {
            "qk_norm": True,
            "post_norms": True,
            "head_dim": 32,
            "activation": "gelu_tanh",
            "embed_scale": 8.0,
            "layer_windows": (8, 0),
        },
        "minicpm": {"embed_scale": 12.0, "residual_scale": 0.7, "logit_scale": 0.25},
    }.get(family, {})
    values |= over
    head_dim = values["head_dim"]
    values.setdefault("layer_windows", (0,) * values["n_layers"])
    values.setdefault("attn_scale", head_dim**-0.5)
    values.setdefault("rope_inv_freq", rope_inv_freq(head_dim))
    if family == "gemma3":
        values.setdefault("rope_local_inv_freq", rope_inv_freq(head_dim, 1000.0))
    return ModelConfig(**values)


def random_matrix(
    rng: np.random.Generator, rows: int, cols: int, kind: Kind, name: str = "", std: float = 1.0
) -> PackedMatrix:
    """A packed matrix whose values have about `std`; scales take both signs."""
    groups = groups_of(cols)
    top = 256 if kind == "int8" else 16
    quants = rng.integers(0, top, (rows, groups * 32), dtype=np.uint8)
    quants[:, cols:] = {"int8": 128, "int4": 8, "int4m": 0}[kind]
    scales = rng.uniform(0.5, 1.5, (rows, groups)) * rng.choice([-1, 1], (rows, groups))
    scales *= std / (top / np.sqrt(12))
    minima = -scales * 7.5 * rng.uniform(0.9, 1.1, scales.shape) if kind == "int4m" else None
    plain = PlainMatrix(
        kind,
        quants,
        scales.astype(np.float16),
        None if minima is None else minima.astype(np.float16),
    )
    return pack(plain, name, cols)


def random_packed(
    folder: Path,
    config: ModelConfig,
    seed: int = 0,
    kinds: Kind | Mapping[str, Kind] | None = None,
) -> Path:
    """Write a packed folder with random weights and a byte-level tokenizer; returns `folder`.

    `kinds` is one kind for every matrix, or kinds by a matrix's last name (`embed`, `q`, ...).
    Without it embed and head are int8 and the body int4. Values keep the hidden state near 1.
    A vocabulary under 260 is too small for the tokenizer, which is then left out.
    """
    rng = np.random.default_rng(seed)
    shapes = dict(expected_tensors(config))
    chosen = {n: _kind(n, kinds) for n, shape in shapes.items() if len(shape) == 2}
    with PackedWriter(folder, config, chosen) as writer:
        for name, shape in shapes.items():
            if len(shape) == 2:
                std = 1.0 if name == "embed" else shape[1] ** -0.5
                writer.matrix(name, random_matrix(rng, *shape, chosen[name], name, std))
            else:
                values = 0.1 * rng.standard_normal(shape[0]) + ("norm" in name)
                writer.vector(name, values.astype(np.float32))
        writer.finish(
            {
                "name": "tiny",
                "quant": "random",
                "tokenizer": {"bos": None, "eos": [0, 2], "add_bos": False},
                "source": {"file": "random"},
                "license": None,
            }
        )
    if config.vocab_size >= 260:
        tokenizer = json.dumps(tiny_tokenizer(config.vocab_size), ensure_ascii=False)
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return folder


def tiny_tokenizer(vocab_size: int) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE without merges: 3 specials, 256 bytes, then fillers."""
    tokens = [*SPECIALS, *byte_characters()]
    tokens += [f"filler{i}" for i in range(vocab_size - len(tokens))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": True}
            for i, token in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }


def byte_characters() -> list[str]:
    """The printable stand-ins that byte-level BPE uses for the bytes 0..255, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def _kind(name: str, kinds: Kind | Mapping[str, Kind] | None) -> Kind:
    if isinstance(kinds, str):
        return kinds
    last = name.rpartition(".")[2]
    default: Kind = "int8" if last in ("embed", "head") else "int4"
    return (kinds or {}).get(last, default)
