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
    from ..chat import Message, Prompt
    from ..model import Model
    from ..sparsity import Sparsity

MAX_ANSWER = 32
"""Tokens of an answer; those that people gave are rarely longer than ten."""

_EXAMPLE_TEXT = "The mill at Aster was built in 1790 and ground wheat until it burned down in 1888."
_EXAMPLES = (("When did the mill burn down?", "1888"), ("What did the mill grind?", "wheat"))


def score_questions(
    model: Model,
    questions: Sequence[Question],
    sparsities: Sequence[Sparsity],
    follow: Follow,
    *,
    chat: bool = False,
) -> dict[Sparsity, SquadScore]:
    """Ask every question at every sparsity. Raises Cancelled, ContextFullError."""
    points: dict[Sparsity, list[tuple[float, float]]] = {sparsity: [] for sparsity in sparsities}
    for sparsity, question in follow.each("questions", list(product(sparsities, questions))):
        said = answer(model, question, sparsity, follow, chat=chat)
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
    model: Model, question: Question, sparsity: Sparsity, follow: Follow, *, chat: bool = False
) -> str:
    """The first line that the model answers with, each token its likeliest."""
    try:
        completion = model.generate(
            prompt(question, chat=chat),
            raw=not chat,
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


def prompt(question: Question, *, chat: bool = False) -> Prompt:
    """What the model is given: an example of short answers, then the text and the question.

    As one text to go on with, or with `chat` as messages of which the examples are earlier turns.
    """
    if not chat:
        shown = [f"Question: {asked}\nAnswer: {said}" for asked, said in _EXAMPLES]
        asked = f"Question: {question.question}\nAnswer:"
        return "\n\n".join([_EXAMPLE_TEXT, *shown, question.context, asked])
    turns: list[Message] = []
    for asked, said in _EXAMPLES:
        turns.append({"role": "user", "content": _message(_EXAMPLE_TEXT, asked)})
        turns.append({"role": "assistant", "content": said})
    return [*turns, {"role": "user", "content": _message(question.context, question.question)}]


def _message(context: str, question: str) -> str:
    return f"{context}\n\nAnswer with words copied from the text, and no others: {question}"
