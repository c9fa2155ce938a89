"""Whole answers of a chat, as a user gets them, beside llama.cpp reading the same tokens."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sides import LlamaSide

from stem_local import Completion, Model
from stem_local.chat import Message, encode_messages

TOKENS = 128  # of an answer at most


@dataclass(frozen=True, slots=True)
class Answers:
    """Tokens per second while answers are decoded, medians over some rounds.

    `drafted` with drafts and `plain` without, both with what auto leaves out and sampling included;
    `llama` without sampling. `per_step` is how many tokens a step with or without a draft gave.
    """

    drafted: float
    plain: float
    llama: float
    per_step: float
    same: bool


def measure(model: Model, llama: LlamaSide, questions: Sequence[str], rounds: int) -> Answers:
    """Greedy answers to each question, the three ways in turns; `llama` has the model open."""
    rates: list[tuple[float, float, float]] = []
    per_step, same = 0.0, True
    for _ in range(rounds + 1):
        seconds, tokens, steps = [0.0, 0.0, 0.0], 0, 0
        for question in questions:
            messages: list[Message] = [{"role": "user", "content": question}]
            _answer(model, messages, True, 1)  # so that both go on from the same cache
            drafted, plain = (_answer(model, messages, draft) for draft in (True, False))
            same = same and drafted.tokens == plain.tokens
            prompt = encode_messages(model, messages)
            answer = list(plain.tokens[: plain.stats.decode_steps])
            llama.prefill(prompt)
            seconds[0] += drafted.stats.decode_seconds
            seconds[1] += plain.stats.decode_seconds
            seconds[2] += llama.decode(answer, len(prompt))
            tokens += plain.stats.decode_steps
            steps += drafted.stats.decode_steps
        rates.append((tokens / seconds[0], tokens / seconds[1], tokens / seconds[2]))
        per_step = tokens / steps
    drafted_rate, plain_rate, llama_rate = map(statistics.median, zip(*rates[1:], strict=True))
    return Answers(drafted_rate, plain_rate, llama_rate, per_step, same)


def _answer(model: Model, messages: list[Message], draft: bool, tokens: int = TOKENS) -> Completion:
    return model.generate(messages, temperature=0.0, max_tokens=tokens, draft=draft)
