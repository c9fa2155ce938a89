"""Golden logits: tiny random models of every family, run by transformers in float32.

    python tests/goldens/make_goldens.py --write    # write every case beside this file
    python tests/goldens/make_goldens.py --check    # regenerate and compare with what is there

Needs what requirements.txt lists. A case is a folder with config.json, model.safetensors (float16
values, exact in float32), tokens.json and logits.npy [tokens, vocab]. Where transformers lacks an
activation its FFN is patched, and MiniCPM is written out here from its description
(arXiv 2404.06395): embeddings times scale_emb, sublayers times scale_depth / sqrt(layers), logits
divided by hidden_size / dim_model_base.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = Path(__file__).parent
TOKENS = 24
SMALL = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
ONE_LAYER = {"num_hidden_layers": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "sliding_window": 6,
    "query_pre_attn_scalar": 20,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
MINICPM = {"scale_emb": 3.0, "scale_depth": 1.4, "dim_model_base": 16, "tie_word_embeddings": True}

Ffn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def run_transformers(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens[None]).logits[0]


def run_minicpm(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    config = model.config
    x = model.model.embed_tokens(tokens) * MINICPM["scale_emb"]
    depth = MINICPM["scale_depth"] / config.num_hidden_layers**0.5
    for layer in model.model.layers:
        x = x + depth * plain_attention(layer.self_attn, layer.input_layernorm(x), config)
        x = x + depth * layer.mlp(layer.post_attention_layernorm(x))
    x = model.model.norm(x) / (config.hidden_size / MINICPM["dim_model_base"])
    return x @ model.model.embed_tokens.weight.T


def plain_attention(layer: nn.Module, x: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    n, size = len(x), config.head_dim
    heads = [p(x).view(n, -1, size) for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
    q, k, v = (rotate(heads[0]), rotate(heads[1]), heads[2])
    repeat = config.num_attention_heads // config.num_key_value_heads
    k, v = (t.repeat_interleave(repeat, dim=1) for t in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * size**-0.5
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)
    return layer.o_proj(mixed.reshape(n, -1))


def rotate(x: torch.Tensor, theta: float = 10_000.0) -> torch.Tensor:
    n, _, size = x.shape
    steps = torch.arange(0, size, 2) / size
    turns = torch.polar(torch.ones(n, size // 2), torch.outer(torch.arange(n), theta**-steps))
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * turns[:, None]
    return torch.cat([turned.real, turned.imag], -1)


@dataclass(frozen=True)
class Case:
    """A model: classes, config values, and what stands in for parts that transformers lacks."""

    config: type[PretrainedConfig]
    model: type[nn.Module]
    values: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    ffn: Ffn | None = None
    forward: Forward = run_transformers


def fatrelu(shift: float) -> Ffn:
    return lambda gate, up: nn.functional.threshold(gate, shift, 0.0) * up


def llama(written: dict[str, Any] | None = None, ffn: Ffn | None = None, **values: Any) -> Case:
    return Case(LlamaConfig, LlamaForCausalLM, values, written or {}, ffn)


CASES = {
    "llama": llama(),
    "llama_gqa_tied": llama(
        hidden_size=96, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "llama_head_dim": llama(**ONE_LAYER, head_dim=32),
    "llama_rope_llama3": llama(rope_parameters=LLAMA3),
    "llama_rope_linear": llama(
        **ONE_LAYER,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    ),
    "mistral_window": Case(
        MistralConfig, MistralForCausalLM, {"num_key_value_heads": 1, "sliding_window": 7}
    ),
    "qwen2": Case(Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 1}),
    "qwen2_window": Case(Qwen2Config, Qwen2ForCausalLM, QWEN_WINDOW),
    "qwen3": Case(
        Qwen3Config,
        Qwen3ForCausalLM,
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    ),
    "gemma3": Case(Gemma3TextConfig, Gemma3ForCausalLM, GEMMA),
    "minicpm_fatrelu": Case(
        LlamaConfig,
        LlamaForCausalLM,
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        MINICPM | {"model_type": "minicpm", "hidden_act": "fatrelu", "hidden_act_param": 0.2},
        fatrelu(0.2),
        run_minicpm,
    ),
    "gelu": llama(**ONE_LAYER, hidden_act="gelu"),
    "gelu_tanh": llama(**ONE_LAYER, hidden_act="gelu_pytorch_tanh"),
    "relu": llama(**ONE_LAYER, hidden_act="relu"),
    "relu2": llama(**ONE_LAYER, hidden_act="relu2"),
    "fatrelu": llama(
        {"model_type": "sparsellama", "hidden_act": "fatrelu", "hidden_act_param": 0.3},
        fatrelu(0.3),
        **ONE_LAYER,
    ),
    "sparselm": llama(
        {"model_type": "llama_sparse_relu"},
        lambda gate, up: gate.relu() * up,
        **ONE_LAYER,
        tie_word_embeddings=True,
    ),
    "bamboo_drelu": Case(
        MistralConfig,
        MistralForCausalLM,
        ONE_LAYER | {"hidden_act": "relu", "sliding_window": 9},
        {"model_type": "bamboo"},
        lambda gate, up: gate.relu() * up.relu(),
    ),
}


def fill(model: nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Give every parameter a random float16 value of a size at which each part tells."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, parameter in sorted(model.named_parameters()):
        noise = rng.standard_normal(tuple(parameter.shape))
        if name.endswith("norm.weight"):
            value = 0.3 * noise + (0.0 if isinstance(model, Gemma3ForCausalLM) else 1.0)
        elif name.endswith(".bias"):
            value = 0.5 * noise
        else:
            gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.0
            gain = 2.5 if "embed" in name or "lm_head" in name else gain
            value = gain * noise / parameter.shape[-1] ** 0.5
        weights[name] = value.astype(np.float16)
        parameter.data = torch.from_numpy(weights[name].astype(np.float32))
    model.tie_weights()
    return weights


class Gated(nn.Module):
    """An FFN with any function of gate and up, on the projections of `mlp`."""

    def __init__(self, mlp: nn.Module, ffn: Ffn) -> None:
        super().__init__()
        self.mlp, self.ffn = mlp, ffn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp.down_proj(self.ffn(self.mlp.gate_proj(x), self.mlp.up_proj(x)))


def write(name: str, folder: Path) -> None:
    case = CASES[name]
    seed = zlib.crc32(name.encode())
    config = case.config(**(SMALL | case.values), attn_implementation="eager")
    model = case.model(config).eval()
    weights = fill(model, seed)
    if case.ffn:
        for layer in model.model.layers:
            layer.mlp = Gated(layer.mlp, case.ffn)
    tokens = np.random.default_rng(seed + 1).integers(3, config.vocab_size, TOKENS)
    with torch.inference_mode():
        logits = case.forward(model, torch.from_numpy(tokens))
    folder.mkdir(exist_ok=True)
    settings = {**config.to_diff_dict(), **case.written}
    settings.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    (folder / "tokens.json").write_text(json.dumps(tokens.tolist()) + "\n")
    save_file(weights, folder / "model.safetensors")
    np.save(folder / "logits.npy", logits.numpy().astype(np.float32))


def differences(name: str, fresh: Path) -> list[str]:
    """What of a committed case no longer matches a regenerated one."""
    old = HERE / name
    texts = ("tokens.json", "config.json")
    found = [
        f for f in texts if json.loads((old / f).read_text()) != json.loads((fresh / f).read_text())
    ]
    was, now = (load_file(path / "model.safetensors") for path in (old, fresh))
    if was.keys() != now.keys() or any(not np.array_equal(was[k], now[k]) for k in was):
        found.append("model.safetensors")
    was, now = (np.load(path / "logits.npy") for path in (old, fresh))
    if was.shape != now.shape or not np.allclose(was, now, rtol=1e-4, atol=1e-4):
        found.append("logits.npy")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check the golden logits.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="compare with the committed files")
    mode.add_argument("--write", action="store_true", help="write the files anew")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    failed = 0
    for name in CASES:
        if not check:
            write(name, HERE / name)
            continue
        with tempfile.TemporaryDirectory() as folder:
            write(name, Path(folder))
            wrong = differences(name, Path(folder))
        print(f"{name}: {'differs in ' + ', '.join(wrong) if wrong else 'same'}")
        failed += bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
