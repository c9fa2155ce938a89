"""Whole answers of a chat, as a user gets them, beside llama.cpp reading the same tokens.

    python benchmarks/answers.py --record MODEL

What a model answers hangs on the last bit of its logits, and how many drafts hold hangs on what it
answers. So that figures are of the same texts whatever changes in the arithmetic, answers are
recorded once, in answers.json beside this file, and forced: the loop is the one that decodes for
users, steps, drafts and choices included, only that the token it goes on with is the recorded one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from questions import QUESTIONS, tasks
from sides import LlamaSide

from stem_local import Completion, Model, choosing, load
from stem_local.chat import Message, encode_messages
from stem_runtime.sampling import Sampler

RECORDED = Path(__file__).with_name("answers.json")
TOKENS = 128  # of an answer at most


@dataclass(frozen=True, slots=True)
class Answers:
    """Tokens per second while answers are decoded, medians over some rounds.

    `drafted` with drafts and `plain` without, both with what auto leaves out and choosing included;
    `llama` without choosing. `per_step` is how many tokens a step with or without a draft gave,
    `agreed` the share of the recorded tokens that the model would have chosen.
    """

    drafted: float
    plain: float
    llama: float
    per_step: float
    agreed: float


class Forced(Sampler):
    """Chooses as a `Sampler` does, and goes on with a recorded token."""

    answer: Sequence[int] = ()
    start = 0
    agreed = chosen = 0

    def sample(self, logits: NDArray[np.float32], recent: Sequence[int] = ()) -> int:
        token = self.answer[len(recent) - self.start]
        Forced.agreed += super().sample(logits, recent) == token
        Forced.chosen += 1
        return token


def measure(model: Model, llama: LlamaSide, questions: Sequence[str], rounds: int) -> Answers:
    """Recorded answers to each question, the three ways in turns; `llama` has the model open."""
    recording: dict[str, list[int]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    Forced.agreed = Forced.chosen = 0
    rates: list[tuple[float, float, float]] = []
    per_step = 0.0
    for _ in range(rounds + 1):
        seconds, tokens, steps = [0.0, 0.0, 0.0], 0, 0
        for question in questions:
            answer = recording[_name(question)]
            drafted, plain = (_forced(model, question, answer, draft) for draft in (True, False))
            prompt = encode_messages(model, _asked(question))
            llama.prefill(prompt)
            seconds[0] += drafted.stats.decode_seconds
            seconds[1] += plain.stats.decode_seconds
            seconds[2] += llama.decode(answer[:-1], len(prompt))
            tokens += plain.stats.decode_steps
            steps += drafted.stats.decode_steps
        rates.append((tokens / seconds[0], tokens / seconds[1], tokens / seconds[2]))
        per_step = tokens / steps
    drafted_rate, plain_rate, llama_rate = map(statistics.median, zip(*rates[1:], strict=True))
    agreed = Forced.agreed / Forced.chosen
    return Answers(drafted_rate, plain_rate, llama_rate, per_step, agreed)


def _forced(model: Model, question: str, answer: list[int], draft: bool) -> Completion:
    """What answering takes when it comes out as recorded."""
    Forced.answer, Forced.start = answer, len(encode_messages(model, _asked(question)))
    with mock.patch.object(choosing, "Sampler", Forced):
        found = _answer(model, question, draft, len(answer))
    if list(found.tokens) != answer:
        raise SystemExit(f"{RECORDED} is of another model, or of other questions; record it anew.")
    return found


def _answer(model: Model, question: str, draft: bool, tokens: int) -> Completion:
    return model.generate(_asked(question), temperature=0.0, max_tokens=tokens, draft=draft)


def _asked(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def _name(question: str) -> str:
    return question[:60]


def record(name: str) -> None:
    """Write what a model answers when nothing is left out, one answer a line."""
    with load(name, sparsity="off", device="cpu") as model:
        found = {
            _name(question): list(_answer(model, question, False, TOKENS).tokens)
            for question in (*QUESTIONS, *tasks())
        }
    lines = (f"{json.dumps(question)}: {json.dumps(tokens)}" for question, tokens in found.items())
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", metavar="MODEL", required=True, help="whose answers to keep")
    record(parser.parse_args().record)


if __name__ == "__main__":
    main()
