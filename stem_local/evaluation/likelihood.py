"""How likely a model finds given texts: windows of a file, and the labels of a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stem_runtime.errors import ContextFullError, UsageError

from .. import scoring
from .datasets import Labelled, LabelTask, spread
from .follow import Follow
from .results import LabelScore, TextScore

if TYPE_CHECKING:
    from ..model import Model
    from ..sparsity import Sparsity

WINDOW = 512
"""Tokens that are read with a common past; windows share nothing."""


def score_texts(
    model: Model,
    texts: Sequence[str],
    sparsities: Sequence[Sparsity],
    follow: Follow,
    *,
    limit: int,
) -> dict[Sparsity, TextScore]:
    """Perplexity over at most `limit` tokens of each text, windows evenly spread over it."""
    windows = [window for text in texts for window in _windows(model, text, limit)]
    scored = sum(len(window) - 1 for window in windows)
    if not scored:
        raise UsageError("The texts are too short: no token of them has another before it.")
    losses = dict.fromkeys(sparsities, 0.0)
    for sparsity, window in follow.each("perplexity", list(product(sparsities, windows))):
        losses[sparsity] += float(_losses(model, window, sparsity).sum())
    return {
        sparsity: TextScore(math.exp(loss / scored), scored) for sparsity, loss in losses.items()
    }


def score_labels(
    model: Model,
    rows: Sequence[Labelled],
    task: LabelTask,
    sparsities: Sequence[Sparsity],
    follow: Follow,
) -> dict[Sparsity, LabelScore]:
    """Share of rows whose own label is the likeliest. Raises Cancelled, ContextFullError."""
    right = dict.fromkeys(sparsities, 0)
    for sparsity, row in follow.each("labels", list(product(sparsities, rows))):
        right[sparsity] += best_label(model, row, task, sparsity) == row.label
    return {sparsity: LabelScore(count / len(rows), len(rows)) for sparsity, count in right.items()}


def best_label(model: Model, row: Labelled, task: LabelTask, sparsity: Sparsity) -> int:
    """The label whose word is the likeliest after the sentence and the question.

    The prompt and the rule, the summed log-likelihood of the word's tokens, are those of the
    Language Model Evaluation Harness for SST-2.
    """
    prompt = f"{row.sentence}\nQuestion: {task.question}\nAnswer:"
    begin = model.begin_tokens
    options = [begin + model.tokenize(f"{prompt} {word}") for word in task.words]
    longest = max(map(len, options))
    if longest > model.context:
        raise ContextFullError(
            f"The sentence in line {row.line} is {longest} tokens long with its question; the "
            f"context of {model.name} holds {model.context}."
        )
    known = min(len(begin + model.tokenize(prompt)), *map(len, options))
    losses = [_losses(model, option, sparsity)[known - 1 :].sum() for option in options]
    return int(np.argmin(losses))


def _windows(model: Model, text: str, limit: int) -> list[list[int]]:
    """Windows of a text that are whole, unless the text or the limit is shorter than one."""
    begin, ids = model.begin_tokens, model.tokenize(text)
    size = min(min(WINDOW, model.context) - len(begin), limit)
    whole = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    return [begin + window for window in spread(whole or [ids], limit // size)]


def _losses(model: Model, ids: list[int], sparsity: Sparsity) -> NDArray[np.float64]:
    """Negative log-likelihood of each of ids[1:] in nats, with the neurons left out that are."""
    choice = model.choose(sparsity, whole_head=scoring.WHOLE_HEAD)
    # where nothing is left out, many tokens are read at a time
    return scoring.losses(model, ids, None if choice.plan is None else choice)
