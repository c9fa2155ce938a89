"""Where an answer under way stands, for a screen that is drawn while it comes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Live:
    """Figures of an answer under way, cheap enough to be asked for ten times a second.

    `prompt_done` of `prompt_total` tokens of the prompt have been read, those that the KV cache
    still held included. `tokens` were answered so far, lately at `tokens_per_second`.
    `active_parameters` of the model's `total_parameters`, and `layer_active_fraction` of each
    layer's own, were multiplied by for a token since the figures were last asked for.
    `context_used` of `context` tokens are taken. `sparsity` says what is left out, or why nothing.
    """

    prompt_done: int
    prompt_total: int
    tokens: int
    tokens_per_second: float
    active_parameters: int
    total_parameters: int
    layer_active_fraction: tuple[float, ...]
    context_used: int
    context: int
    sparsity: str
