"""What a generation gives back: chunks while it runs, one completion at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stem_runtime.stats import Stats

FinishReason = Literal["stop", "length", "context", "cancelled"]
"""stop: the model ended its turn or a stop string came; length: `max_tokens`; context: full."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a chosen token, and of the likeliest ones at its place.

    Taken from the model's own distribution: before temperature, filters and penalties.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. Only the last one has a `finish_reason` and `stats`."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stats: Stats | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    dropped_turns: int = 0

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer; prints as its text.

    `tokens` are the sampled ids without the token that ended the turn. `logprobs` has one entry
    per token when they were asked for. `dropped_turns` counts the oldest turns of the conversation
    left out of the prompt under the "drop_oldest" context policy.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] | None = None
    dropped_turns: int = 0

    def __str__(self) -> str:
        return self.text


def collect(chunks: Iterable[Chunk]) -> Completion:
    """Join the chunks of one generation, run to its end, into a completion."""
    text: list[str] = []
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    last: Chunk | None = None
    for last in chunks:
        text.append(last.text)
        tokens.extend(last.tokens)
        logprobs.extend(last.logprobs or ())
    if last is None or last.finish_reason is None or last.stats is None:
        raise ValueError("The chunks of a generation end with one that has a finish reason.")
    return Completion(
        text="".join(text),
        tokens=tuple(tokens),
        finish_reason=last.finish_reason,
        stats=last.stats,
        logprobs=None if last.logprobs is None else tuple(logprobs),
        dropped_turns=last.dropped_turns,
    )
