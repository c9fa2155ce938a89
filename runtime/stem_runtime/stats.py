"""What one completion cost: token counts, times, and the memory traffic behind them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rules:
    """How often the rules of sparse FFNs acted while an answer was decoded.

    `core_added` and `implied_added` count the neurons that only the always-on core or only what
    fired in the layer before brought in, over all layers and tokens. `floors` and `caps` count the
    layers of tokens in which the least or the most active neurons moved the cut-off.
    `dense_tokens` are first positions of the sequence that were decoded with nothing left out.
    Candidate sets were drawn anew `refreshes` times, `drifts` of them because the text moved on.
    """

    core_added: int = 0
    implied_added: int = 0
    floors: int = 0
    caps: int = 0
    dense_tokens: int = 0
    refreshes: int = 0
    drifts: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What decoding took, on average over a completion.

    `head_rows` is how many rows of the output head were computed in full for a token that was read,
    `active_parameters` how many weights it was multiplied by, of the model's `total_parameters`; an
    embedding that is only looked up counts as one row. `layer_active_fraction` is the same as a
    share for every layer's own weights. `bytes_per_token` is the weights and KV entries, at the
    mean context, that steps read for each token of the answer. `rules` counts what held the
    skipping of neurons together.
    """

    head_rows: float
    active_parameters: int
    total_parameters: int
    layer_active_fraction: tuple[float, ...]
    bytes_per_token: int
    rules: Rules

    @property
    def active_fraction(self) -> float:
        """Share of the parameters that a token was computed with."""
        return self.active_parameters / self.total_parameters

    def fields(self) -> dict[str, Any]:
        """What `Stats` takes over."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True, slots=True)
class Stats(Cost):
    """Figures of one completion. Times are wall-clock seconds spent in this process.

    `prompt_tokens` counts the whole prompt; the first `reused_tokens` of it were already in the KV
    cache and were not evaluated again. `decode_steps` steps of the engine took `decode_seconds`,
    sampling included and the caller's own time between chunks excluded. A step reads one token
    and gives the next; some read `drafted_tokens` in all beside it, and the `accepted_tokens`
    among them, which were then chosen anyway, took no step of their own.
    `time_to_first_token` runs from the call to the first sampled token, 0 when there was none.
    `joules_per_token` is what the processor and its memory took per decoded token, whatever else
    ran on them included; None where the machine does not tell. `sparsity` says in a sentence what
    was left out, or why nothing was.
    """

    model: str
    kernels: str
    threads: int
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    decode_steps: int
    drafted_tokens: int
    accepted_tokens: int
    prefill_seconds: float
    decode_seconds: float
    time_to_first_token: float
    joules_per_token: float | None
    sparsity: str

    @property
    def tokens_per_second(self) -> float:
        """Decode speed, 0 when nothing was decoded."""
        return _rate(self.decode_steps + self.accepted_tokens, self.decode_seconds)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a decode step gave, 1 without drafts and 0 when nothing was decoded."""
        return _rate(self.decode_steps + self.accepted_tokens, self.decode_steps)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed over the prompt tokens really evaluated."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)

    @property
    def gb_per_second(self) -> float:
        """Memory read while decoding, in 1e9 bytes per second."""
        return self.bytes_per_token * self.tokens_per_second / 1e9

    def to_dict(self) -> dict[str, Any]:
        """Every field and derived figure, ready for JSON."""
        return {
            **dataclasses.asdict(self),
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_step": self.tokens_per_step,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "gb_per_second": self.gb_per_second,
            "active_fraction": self.active_fraction,
        }

    def __str__(self) -> str:
        evaluated = self.prompt_tokens - self.reused_tokens
        joules = self.joules_per_token
        energy = "" if joules is None else f", {joules:.2f} J a token"
        drafts = f", {self.tokens_per_step:.1f} a step" if self.drafted_tokens else ""
        return (
            f"{self.model}: prompt {self.prompt_tokens} tokens ({evaluated} evaluated at "
            f"{self.prefill_tokens_per_second:.0f} tok/s), answer {self.completion_tokens} tokens "
            f"at {self.tokens_per_second:.1f} tok/s ({self.gb_per_second:.1f} GB/s{energy}{drafts})"
            f", first token after {self.time_to_first_token:.2f} s, {self.kernels} "
            f"x{self.threads}, {self.active_fraction:.0%} of parameters active ({self.sparsity})"
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0
