"""What a family is: how its settings become a ModelConfig, and where its tensors are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..config import ModelConfig
from ..errors import FormatError, UnsupportedError

Transform = Literal["", "plus_one", "unpermute_q", "unpermute_k"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One packed tensor and the tensor of the source file that it is made from.

    `shape` is row-major, (rows, cols) for a matrix and (n,) for a vector; GGUF lists the same
    dimensions in the opposite order. `optional` tensors may be missing from the source.

    `transform` is what happens to the values on the way:
    - "plus_one": 1 is added (Gemma stores its norm weights as offsets from 1).
    - "unpermute_q", "unpermute_k": rows go from the interleaved rotary order of GGUF to the
      half-split one. With h = n_heads for q and kv_heads for k, row `head * head_dim + p *
      head_dim // 2 + j` of the result (p in 0..1, j < head_dim // 2) is row `head * head_dim +
      2 * j + p` of the source: `w.reshape(h, head_dim // 2, 2, -1).swapaxes(1, 2)`, flattened
      back. Biases move the same way.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    transform: Transform = ""
    optional: bool = False


class GgufReader(Protocol):
    def __call__(
        self,
        meta: Mapping[str, Any],
        where: str,
        *,
        tensors: Collection[str],
        rope_freqs: Sequence[float] | None = None,
    ) -> ModelConfig: ...


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture.

    - `config_from_hf(config, where)`: from the object in config.json.
    - `config_from_gguf(meta, where, tensors=, rope_freqs=)`: from GGUF metadata, the names of the
      file's tensors (a file without `output.weight` has a tied head) and the values of its
      `rope_freqs.weight` tensor where it has one.
    - `tensors_hf(config)`, `tensors_gguf(config)`: every tensor to pack, in layer order.

    `where` names the file in errors: FormatError for a damaged setting, UnsupportedError for one
    that this version cannot honour.
    """

    name: str
    hf_types: tuple[str, ...]
    hf_architectures: tuple[str, ...]
    gguf_archs: tuple[str, ...]
    config_from_hf: Callable[[Mapping[str, Any], str], ModelConfig]
    config_from_gguf: GgufReader
    tensors_hf: Callable[[ModelConfig], list[TensorSpec]]
    tensors_gguf: Callable[[ModelConfig], list[TensorSpec]]


_HF_LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
_GGUF_LAYER = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attn_post_norm": "post_attention_norm",
    "ffn_post_norm": "post_ffw_norm",
}


def hf_tensors(
    config: ModelConfig,
    layer_names: Mapping[str, str] | None = None,
    norm_transform: Transform = "",
) -> list[TensorSpec]:
    """Tensors under the names transformers uses; `layer_names` overrides those of a layer."""
    names = {**_HF_LAYER, **(layer_names or {})}
    outer = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    return _tensors(config, outer, "model.layers.{}.", names, {}, norm_transform)


def gguf_tensors(config: ModelConfig, *, permuted: bool = False) -> list[TensorSpec]:
    """Tensors under the names of GGUF; `permuted` where its writers interleave rotary rows."""
    outer = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
    moves: dict[str, Transform] = {"q": "unpermute_q", "k": "unpermute_k"} if permuted else {}
    return _tensors(config, outer, "blk.{}.", _GGUF_LAYER, moves, "")


def check_tensors(names: Iterable[str], specs: Sequence[TensorSpec], where: str) -> None:
    """Match the tensors of a file against `specs`.

    Raises FormatError where a required one is missing, and UnsupportedError for one that no spec
    uses: leaving out a bias or an adapter would give wrong answers without a word.
    """
    present = set(names)
    for spec in specs:
        if not spec.optional and spec.source not in present:
            raise FormatError(
                f"{where}: tensor {spec.source!r} is missing; get the file again from its source."
            )
    extra = sorted(present - {spec.source for spec in specs})
    if unknown := [name for name in extra if not _harmless(name)]:
        raise UnsupportedError(
            f"{where}: tensor {unknown[0]!r} has no part in the models this version can run "
            f"({len(unknown)} such tensors); use a plain checkpoint of a supported family."
        )


def _harmless(name: str) -> bool:
    """Tensors that other readers skip too: caches of constants, tied heads, activity predictors."""
    return (
        name in ("lm_head.weight", "rope_freqs.weight")
        or name.endswith((".rotary_emb.inv_freq", ".attn_rot_embd.weight"))
        or ".mlp.predictor." in name
    )


def _tensors(
    config: ModelConfig,
    outer: Mapping[str, str],
    layer_prefix: str,
    names: Mapping[str, str],
    moves: Mapping[str, Transform],
    norm_transform: Transform,
) -> list[TensorSpec]:
    d = config.d_model
    specs = [TensorSpec("embed", f"{outer['embed']}.weight", (config.vocab_size, d))]
    for i in range(config.n_layers):
        packed, source = f"layers.{i}.", layer_prefix.format(i)
        for name, shape in _layer_shapes(config).items():
            base, _, suffix = name.partition("_")
            kind = "bias" if suffix == "bias" else "weight"
            transform = moves.get(base, "") if suffix in ("", "bias") else norm_transform
            tensor = f"{source}{names[base if kind == 'bias' else name]}.{kind}"
            specs.append(TensorSpec(packed + name, tensor, shape, transform))
    specs.append(TensorSpec("norm", f"{outer['norm']}.weight", (d,), norm_transform))
    if not config.tied_head:
        specs.append(TensorSpec("head", f"{outer['head']}.weight", (config.vocab_size, d)))
    return specs


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d, ffn, head = config.d_model, config.ffn_dim, config.head_dim
    q_rows, kv_rows = config.n_heads * head, config.kv_heads * head
    shapes: dict[str, tuple[int, ...]] = {"attn_norm": (d,)}
    shapes |= {"q": (q_rows, d), "k": (kv_rows, d), "v": (kv_rows, d), "o": (d, q_rows)}
    shapes |= {"ffn_norm": (d,), "gate": (ffn, d), "up": (ffn, d), "down": (d, ffn)}
    if config.qkv_bias:
        shapes |= {"q_bias": (q_rows,), "k_bias": (kv_rows,), "v_bias": (kv_rows,)}
    if config.qk_norm:
        shapes |= {"q_norm": (head,), "k_norm": (head,)}
    if config.post_norms:
        shapes |= {"attn_post_norm": (d,), "ffn_post_norm": (d,)}
    return shapes
