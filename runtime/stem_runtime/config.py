"""What the engine must know about a model, filled once from config.json or GGUF metadata."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

from .errors import FormatError

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "fatrelu", "relu2", "drelu")
"""Gated FFN activations: `h = act(gate) * up`, but for drelu: `relu(gate) * relu(up)`."""

_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer with gated FFNs. Sizes in elements, frequencies in rad/token.

    `layer_windows[i]` is the sliding window of layer i in tokens, 0 where it sees everything.
    `rope_inv_freq` holds head_dim/2 inverse frequencies with any scaling already applied;
    layers with a window use `rope_local_inv_freq` when it is not empty.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    activation: str
    rope_inv_freq: tuple[float, ...]
    layer_windows: tuple[int, ...]
    attn_scale: float
    rope_local_inv_freq: tuple[float, ...] = ()
    activation_param: float = 0.0
    tied_head: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> ModelConfig:
        """Rebuild from `to_dict` output read back from JSON. `where` names the file in errors.

        Raises FormatError for a missing, unknown or mistyped field.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - set(fields)):
            raise FormatError(f"{where}: unknown config field {unknown[0]!r}.")
        values: dict[str, Any] = {}
        for name, field in fields.items():
            if name not in data:
                if field.default is dataclasses.MISSING:
                    raise FormatError(f"{where}: config field {name!r} is missing.")
                continue
            values[name] = _coerce(name, str(field.type), data[name], where)
        return cls(**values)


def _coerce(name: str, kind: str, value: Any, where: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "int" and isinstance(value, int) and number:
        return value
    if kind == "float" and number and abs(value) <= _LARGEST:
        return float(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    if kind.startswith("tuple") and isinstance(value, (list, tuple)):
        item = "int" if "int" in kind else "float"
        return tuple(_coerce(name, item, v, where) for v in value)
    raise FormatError(f"{where}: config field {name!r} should be {kind}, found {value!r:.60}.")
