"""The activations of gated FFNs; names as in `config.ACTIVATIONS`, meaning as in the oracle."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(gate, param, NAME: tl.constexpr):
    """act(gate), float32; `param` is where fatrelu begins."""
    if NAME == "silu":
        act = gate / (1.0 + tl.exp(-gate))
    elif NAME == "gelu":
        act = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        # (1 + tanh(z)) / 2 is 1 / (1 + exp(-2z))
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        act = gate / (1.0 + tl.exp(-inner))
    elif NAME == "fatrelu":
        act = tl.where(gate > param, gate, 0.0)
    elif NAME == "relu2":
        positive = tl.maximum(gate, 0.0)
        act = positive * positive
    else:
        tl.static_assert(NAME == "relu" or NAME == "drelu", "an activation that is not known")
        act = tl.maximum(gate, 0.0)
    return act


@triton.jit
def hidden_of(act, up, NAME: tl.constexpr):
    """The input of the down projection from act(gate) and up."""
    if NAME == "drelu":
        up = tl.maximum(up, 0.0)
    return act * up
