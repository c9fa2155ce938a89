"""Letting a model answer questions about texts, as SQuAD v1.1 does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING

from stem_runtime.errors import ContextFullError

from .datasets import Question
from .follow import Follow, stopped
from .metrics import exact_match, f1
from .results import SquadScore

if TYPE_CHECKING:
    from ..model import Model
    from ..sparsity import Sparsity

MAX_ANSWER = 32
"""Tokens of an answer; those that people gave are rarely longer than ten."""


def score_questions(
    model: Model,
    questions: Sequence[Question],
    sparsities: Sequence[Sparsity],
    follow: Follow,
    *,
    raw: bool = False,
) -> dict[Sparsity, SquadScore]:
    """Ask every question at every sparsity. Raises Cancelled, ContextFullError."""
    points: dict[Sparsity, list[tuple[float, float]]] = {sparsity: [] for sparsity in sparsities}
    for sparsity, question in follow.each("questions", list(product(sparsities, questions))):
        said = answer(model, question, sparsity, follow, raw=raw)
        points[sparsity].append((exact_match(said, question.answers), f1(said, question.answers)))
    return {
        sparsity: SquadScore(
            exact_match=fmean(exact for exact, _ in found),
            f1=fmean(overlap for _, overlap in found),
            questions=len(found),
        )
        for sparsity, found in points.items()
    }


def answer(
    model: Model, question: Question, sparsity: Sparsity, follow: Follow, *, raw: bool = False
) -> str:
    """The first line that the model answers with, each token its likeliest."""
    try:
        completion = model.generate(
            prompt(question, raw=raw),
            raw=raw,
            temperature=0,
            max_tokens=MAX_ANSWER,
            stop="\n",
            cancel=follow.cancel,
            sparsity=sparsity,
        )
    except ContextFullError as error:
        raise ContextFullError(f"Question {question.id[:60]!r}: {error}") from None
    if completion.finish_reason == "cancelled":
        raise stopped()
    return completion.text.strip()


def prompt(question: Question, *, raw: bool = False) -> str:
    """What the model is told: the text, then the question, as a message or to be continued."""
    if raw:
        return f"{question.context}\n\nQuestion: {question.question}\nAnswer:"
    return (
        f"{question.context}\n\nAnswer with a few words copied from the text, without a sentence "
        f"around them.\n{question.question}"
    )
