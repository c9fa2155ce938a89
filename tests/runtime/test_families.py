"""Families: published settings, GGUF against config.json, tensor names, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_runtime import families
from stem_runtime.config import ModelConfig
from stem_runtime.errors import FormatError, StemError, UnsupportedError
from stem_runtime.formats.packed import expected_tensors

Settings = dict[str, Any]

LLAMA: Settings = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "vocab_size": 320,
}
PROSPARSE_7B: Settings = {
    "architectures": ["SparseLlamaForCausalLM"],
    "hidden_act": "fatrelu",
    "hidden_act_param": 0.01,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "sparsellama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
SPARSELM_2B: Settings = {
    "architectures": ["SparseLlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "is_llama_config": True,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama_sparse_relu",
    "num_attention_heads": 32,
    "num_hidden_layers": 38,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "sparsity_gated_mlp": True,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
TURBOSPARSE: Settings = {
    "architectures": ["BambooForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "relu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "bamboo",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
MINICPM_S: Settings = {
    "architectures": ["MiniCPMForCausalLM"],
    "hidden_act": "fatrelu",
    "hidden_act_param": 0.03,
    "hidden_size": 1536,
    "intermediate_size": 3840,
    "max_position_embeddings": 4096,
    "num_attention_heads": 24,
    "num_hidden_layers": 52,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "vocab_size": 73440,
    "scale_emb": 12,
    "dim_model_base": 256,
    "scale_depth": 1.4,
}
LLAMA_3_2_1B: Settings = {
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN2_5_05B: Settings = {
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_06B: Settings = QWEN2_5_05B | {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}
GEMMA_3_1B: Settings = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
PUBLISHED = {
    "llama": LLAMA,
    "prosparse": PROSPARSE_7B,
    "sparselm": SPARSELM_2B,
    "turbosparse": TURBOSPARSE,
    "minicpm_s": MINICPM_S,
    "llama3.2": LLAMA_3_2_1B,
    "qwen2.5": QWEN2_5_05B,
    "qwen3": QWEN3_06B,
    "gemma3": GEMMA_3_1B,
}


def from_hf(cfg: Settings) -> ModelConfig:
    return families.for_hf(cfg, "config.json").config_from_hf(cfg, "config.json")


def from_gguf(meta: Settings, *, tied: bool = True, factors: Any = None) -> ModelConfig:
    tensors = ["token_embd.weight"] if tied else ["token_embd.weight", "output.weight"]
    family = families.for_gguf(meta, "m.gguf")
    return family.config_from_gguf(meta, "m.gguf", tensors=tensors, rope_freqs=factors)


def gguf_meta(cfg: Settings) -> Settings:
    """The metadata that llama.cpp's converter writes for a config.json."""
    config = from_hf(cfg)
    arch = config.family
    meta: Settings = {
        "block_count": config.n_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.freq_base": float(cfg.get("rope_theta", 10000.0)),
        "rope.dimension_count": config.head_dim,
    }
    if arch == "gemma3":
        meta["attention.sliding_window"] = cfg["sliding_window"]
    if arch == "minicpm":
        meta["embedding_scale"] = config.embed_scale
        meta["residual_scale"] = config.residual_scale
        meta["logit_scale"] = config.d_model / cfg["dim_model_base"]
    tokens = [f"t{i}" for i in range(config.vocab_size)]
    general = {"general.architecture": arch, "tokenizer.ggml.tokens": tokens}
    return general | {f"{arch}.{key}": value for key, value in meta.items()}


def llama3_factors(cfg: Settings) -> list[float]:
    """What the converter stores in rope_freqs.weight: per frequency, its divisor."""
    scaling, size = cfg["rope_scaling"], cfg["head_dim"]
    old = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * cfg["rope_theta"] ** (i / size)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(scaling["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return factors


def assert_same(a: ModelConfig, b: ModelConfig) -> None:
    for name, value in a.to_dict().items():
        assert getattr(b, name) == (
            pytest.approx(value, rel=1e-12) if isinstance(value, (float, tuple)) else value
        ), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"activation": "silu", "tied_head": False, "head_dim": 16}),
        ("prosparse", {"activation": "fatrelu", "activation_param": 0.01, "context_length": 4096}),
        ("sparselm", {"activation": "relu", "tied_head": True}),
        ("turbosparse", {"activation": "drelu", "layer_windows": (4096,) * 32, "kv_heads": 8}),
        (
            "minicpm_s",
            {
                "family": "minicpm",
                "activation": "fatrelu",
                "activation_param": 0.03,
                "tied_head": True,
                "embed_scale": 12.0,
                "residual_scale": 1.4 / 52**0.5,
                "logit_scale": 1 / 6,
            },
        ),
        ("qwen2.5", {"qkv_bias": True, "head_dim": 64, "layer_windows": (0,) * 24}),
        ("qwen3", {"qk_norm": True, "qkv_bias": False, "head_dim": 128, "attn_scale": 128**-0.5}),
        (
            "gemma3",
            {
                "activation": "gelu_tanh",
                "tied_head": True,
                "embed_scale": 1152**0.5,
                "attn_scale": 1 / 16,
                "layer_windows": ((512,) * 5 + (0,)) * 4 + (512,) * 2,
                "post_norms": True,
            },
        ),
    ],
)
def test_published_settings(name: str, expected: dict[str, Any]) -> None:
    config = from_hf(PUBLISHED[name])
    found = {key: getattr(config, key) for key in expected}
    assert found == {k: pytest.approx(v) if type(v) is float else v for k, v in expected.items()}


def test_frequencies_of_llama_3_2() -> None:
    freq = np.array(from_hf(LLAMA_3_2_1B).rope_inv_freq)
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(freq, plain / llama3_factors(LLAMA_3_2_1B), rtol=1e-12)
    assert freq[0] == 1.0
    assert freq[-1] == pytest.approx(plain[-1] / 32)


def test_local_layers_of_gemma_keep_their_own_base() -> None:
    scaled = GEMMA_3_1B | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    config = from_hf(scaled)
    plain = from_hf(GEMMA_3_1B)
    assert config.rope_local_inv_freq == plain.rope_local_inv_freq
    assert config.rope_inv_freq == pytest.approx([f / 8 for f in plain.rope_inv_freq])
    assert plain.rope_local_inv_freq[1] == pytest.approx(10000 ** (-2 / 256))


def test_old_and_new_spellings_of_rope_agree() -> None:
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}
    new = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2}
    assert from_hf(old) == from_hf(new)


def test_windows_of_mistral() -> None:
    mistral = LLAMA | {"model_type": "mistral"}
    assert from_hf(mistral).layer_windows == (4096, 4096)
    assert from_hf(mistral | {"sliding_window": 100}).layer_windows == (100, 100)
    assert from_hf(mistral | {"sliding_window": None}).layer_windows == (0, 0)


def test_windows_of_later_qwen_layers() -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 99, "max_window_layers": 22}
    assert from_hf(QWEN2_5_05B | windowed).layer_windows == (0,) * 22 + (99,) * 2


@pytest.mark.parametrize("name", ["swish", "gelu_new", "relu_squared", "gelu_pytorch_tanh"])
def test_activations_have_one_name_each(name: str) -> None:
    canonical = {"swish": "silu", "relu_squared": "relu2"}.get(name, "gelu_tanh")
    assert from_hf(LLAMA | {"hidden_act": name}).activation == canonical
    other = {k: v for k, v in LLAMA.items() if k != "hidden_act"}
    assert from_hf(other | {"activation_function": name}).activation == canonical


@pytest.mark.parametrize("name", PUBLISHED)
def test_gguf_metadata_means_the_same(name: str) -> None:
    cfg = {k: v for k, v in PUBLISHED[name].items() if k != "hidden_act_param"}
    cfg["hidden_act"] = "silu"
    if name in ("turbosparse", "sparselm"):
        cfg |= {"model_type": "llama", "sliding_window": None}
    expected = from_hf(cfg)
    factors = llama3_factors(cfg) if name == "llama3.2" else None
    assert_same(from_gguf(gguf_meta(cfg), tied=expected.tied_head, factors=factors), expected)


def test_gguf_settings_beyond_the_common_ones() -> None:
    plain = gguf_meta(LLAMA)
    linear = plain | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    halved = [f / 4 for f in from_gguf(plain).rope_inv_freq]
    assert from_gguf(linear).rope_inv_freq == pytest.approx(halved)
    assert from_gguf(plain | {"llama.attention.sliding_window": 7}).layer_windows == (7, 7)
    old = {k: v for k, v in gguf_meta(MINICPM_S).items() if not k.endswith("_scale")}
    assert from_gguf(old).residual_scale == pytest.approx(1.4 / 52**0.5)
    assert from_gguf(old).logit_scale == pytest.approx(256 / 1536)
    large = gguf_meta(GEMMA_3_1B) | {"gemma3.block_count": 62, "gemma3.embedding_length": 5376}
    assert from_gguf(large).attn_scale == pytest.approx((5376 / 4) ** -0.5)


def test_rope_factors_must_be_passed_on() -> None:
    family = families.for_gguf(gguf_meta(LLAMA), "m.gguf")
    with pytest.raises(ValueError, match="rope_freqs"):
        family.config_from_gguf(gguf_meta(LLAMA), "m.gguf", tensors=["rope_freqs.weight"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_specs_name_every_packed_tensor(name: str) -> None:
    config = from_hf(PUBLISHED[name])
    family = families.for_hf(PUBLISHED[name], name)
    for specs in (family.tensors_hf(config), family.tensors_gguf(config)):
        assert [(s.name, s.shape) for s in specs] == list(expected_tensors(config))
        assert len({s.source for s in specs}) == len(specs)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_gguf_names_are_those_of_the_format(family: families.Family) -> None:
    cfg = next(c for c in PUBLISHED.values() if families.for_hf(c, "") is family)
    arch = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == family.gguf_archs[0])
    known = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[arch]}
    for spec in family.tensors_gguf(from_hf(cfg)):
        stem = spec.source.removesuffix(".weight").removesuffix(".bias")
        assert stem.replace("blk.0.", "blk.{bid}.") in known or ".0." not in spec.source
    moved = {s.name.split(".")[-1]: s.transform for s in family.tensors_gguf(from_hf(cfg))}
    rows = "unpermute_q" if family.name in ("llama", "minicpm") else ""
    assert moved["q"] == rows
    assert moved["embed"] == moved["norm"] == moved["v"] == ""


def test_only_gemma_shifts_norms() -> None:
    for cfg in PUBLISHED.values():
        family = families.for_hf(cfg, "")
        shifted = {s.name for s in family.tensors_hf(from_hf(cfg)) if s.transform == "plus_one"}
        norms = {s.name for s in family.tensors_hf(from_hf(cfg)) if s.name.endswith("norm")}
        assert shifted == (norms if family.name == "gemma3" else set())


def test_tensors_of_a_file_are_matched() -> None:
    family = families.for_hf(LLAMA, "")
    specs = family.tensors_hf(from_hf(LLAMA))
    names = [spec.source for spec in specs]
    harmless = ["model.layers.0.self_attn.rotary_emb.inv_freq", "rope_freqs.weight"]
    harmless += ["model.layers.1.mlp.predictor.fc1.weight"]
    families.check_tensors(names + harmless, specs, "m")
    with pytest.raises(FormatError, match=r"m: tensor 'model.norm.weight' is missing"):
        families.check_tensors([n for n in names if n != "model.norm.weight"], specs, "m")
    with pytest.raises(UnsupportedError, match=r"o_proj\.bias"):
        families.check_tensors([*names, "model.layers.0.self_attn.o_proj.bias"], specs, "m")


@pytest.mark.parametrize(
    ("base", "changed", "field"),
    [
        ("llama", {"model_type": "mixtral"}, "model_type is 'mixtral'"),
        ("llama", {"model_type": None, "architectures": ["T5"]}, "architectures"),
        ("llama", {"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"num_local_experts": 8}, "num_local_experts"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling.type is 'yarn'"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic"}}, "rope_scaling.rope_type"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type"),
        ("qwen2.5", {"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "mrope"),
        ("sparselm", {"sparsity_gated_mlp": False}, "sparsity_gated_mlp"),
        ("minicpm_s", {"num_experts": 8}, "num_experts"),
        ("minicpm_s", {"is_causal": False}, "is_causal"),
        ("gemma3", {"model_type": "gemma3"}, "model_type is 'gemma3'"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 26}, "layer_types"),
        ("gemma3", {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters"),
    ],
)
def test_what_we_lack_is_refused_by_name(base: str, changed: Settings, field: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        from_hf(PUBLISHED[base] | changed)
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert field in message
    assert "supported: " in message


@pytest.mark.parametrize(
    ("base", "changed", "field"),
    [
        ("llama", {"hidden_size": None}, "hidden_size should be an integer from 1 to 65536, but"),
        ("llama", {"hidden_size": "64"}, "found '64'"),
        ("llama", {"hidden_size": 64.0}, "hidden_size"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": -1}, "num_hidden_layers"),
        ("llama", {"vocab_size": 10**30}, "vocab_size"),
        ("llama", {"num_key_value_heads": 3}, "cannot share 3 key-value heads"),
        ("llama", {"head_dim": 15}, "head_dim is 15"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps"),
        ("llama", {"rope_theta": float("nan")}, "rope_theta"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ("llama", {"hidden_act": 7}, "hidden_act"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling should be an object"),
        ("llama", {"model_type": None}, "neither model_type nor architectures"),
        ("prosparse", {"hidden_act_param": None}, "hidden_act_param"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types should be a list of 26"),
        ("gemma3", {"rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention"),
    ],
)
def test_damaged_settings_are_named(base: str, changed: Settings, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        from_hf(PUBLISHED[base] | changed)
    assert str(caught.value).startswith("config.json: ")
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "error", "field"),
    [
        ({"general.architecture": "mamba"}, UnsupportedError, "general.architecture is 'mamba'"),
        ({"general.architecture": None}, FormatError, "general.architecture"),
        ({"powerinfer.sparse_threshold": 0.0}, UnsupportedError, "powerinfer.sparse_threshold"),
        ({"llama.expert_count": 8}, UnsupportedError, "llama.expert_count"),
        ({"llama.rope.scaling.type": "yarn"}, UnsupportedError, "llama.rope.scaling.type"),
        ({"llama.rope.dimension_count": 8}, UnsupportedError, "llama.rope.dimension_count"),
        ({"llama.attention.value_length": 8}, UnsupportedError, "llama.attention.value_length"),
        ({"llama.attention.head_count_kv": [2, 1]}, UnsupportedError, "head_count_kv"),
        ({"llama.block_count": None}, FormatError, "llama.block_count"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, FormatError, "rms_epsilon"),
        ({"tokenizer.ggml.tokens": "abc"}, FormatError, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": None}, FormatError, "llama.vocab_size"),
    ],
)
def test_gguf_refusals(changed: Settings, error: type[StemError], field: str) -> None:
    with pytest.raises(error) as caught:
        from_gguf(gguf_meta(LLAMA) | changed)
    assert str(caught.value).startswith("m.gguf: ")
    assert field in str(caught.value)


@pytest.mark.parametrize("factors", [[1.0], [0.0] * 8, [float("nan")] * 8, [float("inf")] * 8])
def test_damaged_rope_factors(factors: list[float]) -> None:
    with pytest.raises(FormatError, match=r"rope_freqs\.weight"):
        from_gguf(gguf_meta(LLAMA), factors=factors)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.integers(-4, 130)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["linear", "llama3", "default", "full_attention", "sliding_attention"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "rope_type", "factor", "rope_theta", "full_attention"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
KEYS = sorted({key for cfg in PUBLISHED.values() for key in cfg} | {"layer_types"})


def check(config: ModelConfig) -> None:
    """What was accepted is whole: it survives its own JSON and has frequencies for every pair."""
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())), "") == config
    assert len(config.layer_windows) == config.n_layers
    assert len(config.rope_inv_freq) * 2 == config.head_dim
    assert all(map(math.isfinite, config.rope_inv_freq + config.rope_local_inv_freq))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PUBLISHED)),
    st.dictionaries(st.sampled_from(KEYS), json_values, max_size=3),
)
def test_any_config_json_is_taken_or_refused(base: str, changed: Settings) -> None:
    try:
        check(from_hf(PUBLISHED[base] | changed))
    except StemError as error:
        assert str(error).startswith("config.json: ")


GGUF_BASES = {name: gguf_meta(cfg | {"vocab_size": 9}) for name, cfg in PUBLISHED.items()}
GGUF_KEYS = ["attention.scale", "rope.scaling.type", "rope.scaling.factor", "logit_scale"]
GGUF_KEYS += [key.partition(".")[2] for key in GGUF_BASES["gemma3"] if "gemma3." in key]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(GGUF_BASES)),
    st.dictionaries(st.sampled_from(GGUF_KEYS), json_values, max_size=3),
)
def test_any_gguf_metadata_is_taken_or_refused(base: str, changed: Settings) -> None:
    meta = GGUF_BASES[base]
    arch = meta["general.architecture"]
    try:
        check(from_gguf(meta | {f"{arch}.{key}": value for key, value in changed.items()}))
    except StemError as error:
        assert str(error).startswith("m.gguf: ")
