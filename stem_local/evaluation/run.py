"""Evaluating a model: every test at every sparsity, and what a token costs there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stem_runtime.errors import UsageError
from stem_runtime.limits import Limit

from ..ablation import workloads
from ..sparsity import Sparsity, check_sparsity
from ..texts import own_text
from .cost import measure
from .datasets import LabelTask, read_squad, read_table, spread
from .follow import Follow
from .likelihood import score_labels, score_texts
from .results import Report, Row
from .squad import score_questions

if TYPE_CHECKING:
    from ..model import Model

LIMIT = 100
TOKENS = 8192
SHARES = (0.3, 0.5)


def evaluate(
    model: Model,
    *,
    texts: Sequence[str | Path] = (),
    squad: str | Path | None = None,
    table: str | Path | None = None,
    task: LabelTask | None = None,
    sparsities: Sequence[Sparsity] | None = None,
    limit: int = LIMIT,
    tokens: int = TOKENS,
    chat: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Report:
    """Measure a loaded model's quality at several sparsities, and what a token costs at each.

    `texts` are files whose perplexity is taken, over at most `tokens` tokens of each; without any
    file, those of the package that nothing is calibrated with. `squad` is a file in SQuAD v1.1's
    JSON format, `table` one of sentences and labels as in GLUE's SST-2, read as `task` says; at
    most `limit` items of either are asked, evenly spread. `chat` asks SQuAD's questions in the
    chat template. `sparsities` default to "off" and what the model has. `progress` receives (step,
    done, total), `cancel` is asked often. Raises FormatError, UsageError, ContextFullError,
    Cancelled.
    """
    # the first of a text's tokens is context for the second
    tokens = Limit(2, whole=True).check("tokens", tokens)
    limit = Limit(1, whole=True).check("limit", limit)
    chosen = _distinct(sparsities) if sparsities is not None else available(model)
    task = task or LabelTask()
    own = list(workloads().values())
    # every file is read before the first is worked on, so that a bad one is told at once
    read = [own_text(Path(path)) for path in texts]
    questions = spread(read_squad(Path(squad)), limit) if squad is not None else []
    sentences = spread(read_table(Path(table), task), limit) if table is not None else []
    if not (read or questions or sentences):
        read = own
    follow = Follow(progress, cancel)
    costs = measure(model, own, chosen, follow)
    perplexities = score_texts(model, read, chosen, follow, limit=tokens) if read else {}
    answers = score_questions(model, questions, chosen, follow, chat=chat) if questions else {}
    labels = score_labels(model, sentences, task, chosen, follow) if sentences else {}
    rows = tuple(
        Row(
            sparsity,
            *costs[sparsity],
            perplexities.get(sparsity),
            answers.get(sparsity),
            labels.get(sparsity),
        )
        for sparsity in chosen
    )
    return Report(model.name, model.engine.kernels.name, model.engine.threads, rows)


def available(model: Model) -> list[Sparsity]:
    """Dense, auto where that is not the same, and two shares of the neurons where they can go."""
    choice = model.choose("auto")
    auto: list[Sparsity] = ["auto"] if choice.look or choice.plan is not None else []
    return ["off", *auto, *(SHARES if model.calibrated.ffn is not None else ())]


def _distinct(sparsities: Sequence[Sparsity]) -> list[Sparsity]:
    chosen = list(dict.fromkeys(check_sparsity(sparsity) for sparsity in sparsities))
    if not chosen:
        raise UsageError("Name at least one sparsity to evaluate.")
    return chosen
