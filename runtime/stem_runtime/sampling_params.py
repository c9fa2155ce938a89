"""How the next token is chosen, and within which limits. Apart from the sampler: no numpy here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .limits import Limit

MAX_VOCAB = 1 << 22

LIMITS: Mapping[str, Limit] = {
    "temperature": Limit(0.0, 100.0),
    "top_k": Limit(0, MAX_VOCAB, whole=True),
    "top_p": Limit(0.0, 1.0, above=True),
    "min_p": Limit(0.0, 1.0),
    "repetition_penalty": Limit(0.1, 10.0),
    "repeat_last": Limit(0, MAX_VOCAB, whole=True),
    "seed": Limit(0, (1 << 64) - 1, whole=True),
}
"""What every field of SamplingParams may be; `seed` may be None as well."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen.

    temperature: 0 always takes the best token; 1 samples the model's own distribution. The default
        is below the customary 0.8: small models spread their probability wider than large ones.
    top_k: only so many best tokens; 0 for all.
    top_p: only the best tokens that together hold this share of the probability; 1 for all.
    min_p: only tokens at least this share as probable as the best one; 0 for all. It is what
        keeps a small model's long tail out when it is sure, and lets it choose when it is not.
    repetition_penalty: divides (multiplies, below zero) the logits of the last `repeat_last`
        tokens, 0.1 to 10; 1 is off. Off by default: it hurts code, lists and quotations.
    seed: 0 to 2**64 - 1; the same seed gives the same tokens for the same logits on every machine.
        None takes a new one each time.

    Raises UsageError for a value out of range.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    repeat_last: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if name != "seed" or value is not None:
                object.__setattr__(self, name, limit.check(name, value))
