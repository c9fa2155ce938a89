"""Published naturally sparse models, scaled down: from their files to neurons that are skipped.

Settings are those that each model's config.json and its configuration class name, but for sizes;
weights are random.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stem_runtime import families
from stem_runtime.config import ModelConfig
from stem_runtime.engine import Engine
from stem_runtime.errors import FormatError
from stem_runtime.formats.convert import convert
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.kernels import oracle
from stem_runtime.neuron_tables import COUNTS
from stem_runtime.quant import unpack
from stem_runtime.sparsity.neurons import (
    LayerNeurons,
    Neurons,
    layer_weights,
    mask_of,
)
from stem_runtime.sparsity.plan import FfnPlan

from .files import encode, safetensors_bytes, source_weights
from .tiny import tiny_tokenizer

FFN = 96
TOKENS = [5, 17, 200, 31, 8, 150, 77, 300, 3, 99, 12, 250]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": FFN,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 320,
}
LLAMA_2: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "MiniCPM-S-1B": {
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_minicpm.MiniCPMConfig",
            "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.03,
        "initializer_range": 0.1,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "scale_emb": 12,
        "dim_model_base": 16,
        "scale_depth": 1.4,
    },
    "ProSparse-Llama-2-7B": LLAMA_2
    | {
        "architectures": ["SparseLlamaForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_sparsellama.SparseLlamaConfig",
            "AutoModelForCausalLM": "modeling_sparsellama.SparseLlamaForCausalLM",
        },
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.01,
        "model_type": "sparsellama",
    },
    "ReluLLaMA-7B": LLAMA_2
    | {"architectures": ["LlamaForCausalLM"], "hidden_act": "relu", "model_type": "llama"},
    "SparseLM-2B": {
        "architectures": ["SparseLlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 16,
        "hidden_act": "silu",
        "is_llama_config": True,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama_sparse_relu",
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "sparsity_baseline_run": False,
        "sparsity_gated_mlp": True,
        "sparsity_l1_coeff": 2e-05,
        "sparsity_mlp_execution_logic": "training",
        "sparsity_new_intermediate_size": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "TurboSparse-Mistral": {
        "architectures": ["BambooForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_bamboo.BambooConfig",
            "AutoModelForCausalLM": "modeling_bamboo.BambooForCausalLM",
        },
        "hidden_act": "relu",
        "max_position_embeddings": 32768,
        "model_type": "bamboo",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
}
ACTIVATIONS = {
    "MiniCPM-S-1B": ("fatrelu", 0.03),
    "ProSparse-Llama-2-7B": ("fatrelu", 0.01),
    "ReluLLaMA-7B": ("relu", 0.0),
    "SparseLM-2B": ("relu", 0.0),
    "TurboSparse-Mistral": ("drelu", 0.0),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder as downloaded; `weights` are float32 by packed name, as the files have them."""

    folder: Path
    config: ModelConfig
    weights: dict[str, NDArray[np.float32]]


def checkpoint(name: str, folder: Path, **changed: Any) -> Checkpoint:
    settings = PUBLISHED[name] | SIZES | changed
    family = families.for_hf(settings, name)
    config = family.config_from_hf(settings, name)
    specs = family.tensors_hf(config)
    weights = source_weights(family, specs, seed=1)
    tensors = dict(weights)
    if name == "TurboSparse-Mistral":  # it comes with predictors of its own
        for layer in range(config.n_layers):
            for part, shape in (("fc1", (32, 64)), ("fc2", (FFN, 32))):
                tensors[f"model.layers.{layer}.mlp.predictor.{part}.weight"] = np.ones(
                    shape, np.float32
                )
    dtype = "F16" if settings["torch_dtype"] == "float16" else "BF16"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer(320)))
    (folder / "model.safetensors").write_bytes(
        safetensors_bytes({n: (dtype, w.shape, encode(w, dtype)) for n, w in tensors.items()})
    )
    return Checkpoint(folder, config, {spec.name: weights[spec.source] for spec in specs})


def converted(source: Checkpoint) -> PackedModel:
    out = source.folder.with_name("packed")
    convert(source.folder, out, quant="int8", name="tiny", origin={})
    return open_packed(out)


@pytest.fixture(scope="module", params=PUBLISHED)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Checkpoint, PackedModel]:
    source = checkpoint(request.param, tmp_path_factory.mktemp("sparse") / "source")
    return request.param, source, converted(source)


@pytest.fixture
def engine(case: tuple[str, Checkpoint, PackedModel]) -> Iterator[Engine]:
    with Engine(case[2], threads=2, neurons=every_neuron(case[2])) as engine:
        yield engine


def every_neuron(model: PackedModel) -> Neurons:
    """Neurons of a model that nothing was learned about."""
    layers = []
    for layer in range(model.config.n_layers):
        down = model.matrix(f"layers.{layer}.down")
        norms = np.linalg.norm(unpack(down), axis=0).astype(np.float32)
        none, every = (mask_of(np.full(FFN, value)) for value in (False, True))
        layers.append(LayerNeurons(layer_weights(model, layer, "gate"), norms, norms, none, every))
    return Neurons(tuple(layers))


def decoded(engine: Engine, *, sparse: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits [n, vocab] and counts [n, layers, 8] of `TOKENS`, one at a time."""
    cache = engine.new_cache(len(TOKENS))
    steps = [
        (engine.decode(cache, token, sparse=sparse).copy(), engine.last_counts.copy())
        for token in TOKENS
    ]
    return np.stack([logits for logits, _ in steps]), np.stack([counts for _, counts in steps])


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_settings_keep_their_meaning(case: tuple[str, Checkpoint, PackedModel]) -> None:
    name, source, model = case
    config = model.config
    assert config == source.config
    assert (config.activation, config.activation_param) == ACTIVATIONS[name]
    assert config.layer_windows == ((6, 6) if name == "TurboSparse-Mistral" else (0, 0))
    assert config.tied_head == (name in ("SparseLM-2B", "MiniCPM-S-1B"))


def test_engine_computes_the_published_activation(
    case: tuple[str, Checkpoint, PackedModel], engine: Engine
) -> None:
    _, source, model = case
    found = engine.logits(engine.new_cache(len(TOKENS)), TOKENS)

    def forward(**changed: Any) -> NDArray[np.float32]:
        config = dataclasses.replace(model.config, **changed)
        return oracle.forward(config, source.weights.__getitem__, TOKENS)

    rounding = error(found, forward())
    assert rounding < 0.05
    assert error(found, forward(activation="silu", activation_param=0.0)) > 5 * rounding


def test_exact_zeros_are_skipped_and_nothing_changes(
    case: tuple[str, Checkpoint, PackedModel], engine: Engine
) -> None:
    engine.set_plan(FfnPlan.exact(2))
    dense, _ = decoded(engine, sparse=False)
    sparse, counts = decoded(engine, sparse=True)
    np.testing.assert_allclose(sparse, dense, rtol=1e-4, atol=1e-5 * np.abs(dense).max())
    active = counts[:, :, COUNTS.index("active")]
    assert (active > 0).all()
    assert active.mean() < (0.35 if case[2].config.activation == "drelu" else 0.6) * FFN


def test_zeros_are_those_of_the_activation(
    case: tuple[str, Checkpoint, PackedModel], engine: Engine
) -> None:
    """Of the gates that are far enough from the threshold for rounding not to matter."""
    model, config = case[2], case[2].config
    engine.set_plan(FfnPlan.exact(2))
    _, counts = decoded(engine, sparse=True)
    inputs = engine.ffn_inputs(engine.new_cache(len(TOKENS)), TOKENS)
    for layer, x in enumerate(inputs):
        gate, up = (x @ unpack(model.matrix(f"layers.{layer}.{n}")).T for n in ("gate", "up"))
        hidden = oracle.ffn_hidden(config.activation, gate, up, config.activation_param)
        gates = oracle.ffn_hidden(
            config.activation, gate, np.ones_like(up), config.activation_param
        )
        for name, values in (("gated", gates), ("active", hidden)):
            fired = np.count_nonzero(values, axis=1)
            assert np.abs(counts[:, layer, COUNTS.index(name)] - fired).max() <= 0.05 * FFN, name
        assert 0 < np.count_nonzero(hidden == 0.0) < hidden.size


def test_a_shift_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="hidden_act_param"):
        checkpoint("MiniCPM-S-1B", tmp_path / "source", hidden_act_param=None)


def test_foreign_ffn_layouts_are_refused(tmp_path: Path) -> None:
    """SparseLM's training code can keep the down projection transposed, under the same name."""
    source = checkpoint("SparseLM-2B", tmp_path / "source")
    path = source.folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        data.replace(f'"shape": [64, {FFN}]'.encode(), f'"shape": [{FFN}, 64]'.encode())
    )
    with pytest.raises(FormatError, match="down_proj"):
        converted(source)
