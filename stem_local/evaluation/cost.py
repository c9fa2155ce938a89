"""What a decoded token costs at each sparsity: the same tokens of real text, decoded in turns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice, product
from statistics import fmean, median
from typing import TYPE_CHECKING

from ..turns import Run, decode_in_turns
from .follow import Follow
from .results import TokenCost

if TYPE_CHECKING:
    from ..model import Model
    from ..sparsity import Sparsity

CONTEXT, TOKENS = 128, 64
"""Tokens that are read first, and how many are decoded after them."""

ROUNDS = 3


def measure(
    model: Model, texts: Sequence[str], sparsities: Sequence[Sparsity], follow: Follow
) -> dict[Sparsity, tuple[str, TokenCost]]:
    """What is left out at every sparsity, and what a token then costs, over all texts.

    Raises UsageError for a sparsity that the model is not calibrated for, Cancelled.
    """
    choices = [model.choose(sparsity) for sparsity in sparsities]
    room = min(CONTEXT + TOKENS, model.context)
    context = room - min(TOKENS, room // 2)
    cache = model.engine.new_cache(room)
    runs: list[list[Run]] = []
    for text, turn in follow.each("speed", list(product(texts, range(ROUNDS)))):
        ids = list(islice(cycle(model.tokenize(text)), room))
        if turn == 0:
            cache.truncate(0)
        runs.append(decode_in_turns(model, choices, cache, ids, context, 1))
    return {
        sparsity: (choice.reason, _mean(found))
        for sparsity, choice, found in zip(
            sparsities, choices, zip(*runs, strict=True), strict=True
        )
    }


def _mean(runs: Sequence[Run]) -> TokenCost:
    """Work is averaged over texts that are equally long; of speeds the median is taken."""
    joules = [run.joules_per_token for run in runs if run.joules_per_token is not None]
    return TokenCost(
        active_parameters=round(fmean(run.cost.active_parameters for run in runs)),
        total_parameters=runs[0].cost.total_parameters,
        bytes_per_token=round(fmean(run.cost.bytes_per_token for run in runs)),
        tokens_per_second=median(run.tokens_per_second for run in runs),
        joules_per_token=median(joules) if joules else None,
    )
