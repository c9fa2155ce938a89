"""What a decoded token costs at each sparsity, from answers that are decoded in turns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import median
from typing import TYPE_CHECKING

from stem_runtime.stats import Stats

from .follow import Follow, stopped
from .results import TokenCost

if TYPE_CHECKING:
    from ..model import Model
    from ..sparsity import Sparsity

PROMPT_CHARS = 600
ANSWER = 64
ROUNDS = 2


def measure(
    model: Model, texts: Sequence[str], sparsities: Sequence[Sparsity], follow: Follow
) -> dict[Sparsity, tuple[str, TokenCost]]:
    """Continue the beginning of each text at every sparsity: what was left out, and the cost.

    Sparsities take turns, so that whatever else the machine does meets all of them.
    """
    room = model.context - ANSWER
    begun = [model.detokenize(model.tokenize(text[:PROMPT_CHARS])[:room]) for text in texts]
    runs: dict[Sparsity, list[Stats]] = {sparsity: [] for sparsity in sparsities}
    # the first round is not counted: it pays for pages that nothing has touched yet
    turns = list(product(range(ROUNDS + 1), begun, sparsities))
    for turn, start, sparsity in follow.each("speed", turns):
        completion = model.generate(
            start,
            raw=True,
            temperature=0,
            max_tokens=ANSWER,
            cancel=follow.cancel,
            sparsity=sparsity,
        )
        if completion.finish_reason == "cancelled":
            raise stopped()
        if turn:
            runs[sparsity].append(completion.stats)
    return {sparsity: (found[0].sparsity, _mean(found)) for sparsity, found in runs.items()}


def _mean(runs: Sequence[Stats]) -> TokenCost:
    """Averages over decoded tokens; speed is the median of the runs."""
    steps = sum(run.decode_steps for run in runs)
    weights = [run.decode_steps / steps if steps else 1 / len(runs) for run in runs]
    pairs = list(zip(weights, runs, strict=True))
    return TokenCost(
        active_parameters=round(sum(share * run.active_parameters for share, run in pairs)),
        total_parameters=runs[0].total_parameters,
        bytes_per_token=round(sum(share * run.bytes_per_token for share, run in pairs)),
        tokens_per_second=median(run.tokens_per_second for run in runs),
        joules_per_token=_joules(pairs),
    )


def _joules(pairs: Sequence[tuple[float, Stats]]) -> float | None:
    """The average of the runs whose energy is known, None where it is of none."""
    known = [(share, run.joules_per_token) for share, run in pairs if run.joules_per_token]
    total = sum(share for share, _ in known)
    return sum(share * joules for share, joules in known) / total if total else None
