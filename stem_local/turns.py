"""Decoding the same tokens under several choices that take turns: speeds that can be compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from statistics import median
from typing import TYPE_CHECKING, Any

from stem_runtime.energy import EnergyMeter
from stem_runtime.errors import UsageError
from stem_runtime.stats import Cost

from .calibration import built_in_texts
from .decoding import Decoding

if TYPE_CHECKING:
    from stem_runtime.kv_cache import KVCache

    from .model import Model
    from .sparsity import Choice


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of decoding without sampling. `joules_per_token` is None where unknown."""

    cost: Cost
    tokens_per_second: float
    joules_per_token: float | None

    @property
    def gb_per_second(self) -> float:
        """Memory read, in 1e9 bytes per second."""
        return self.cost.bytes_per_token * self.tokens_per_second / 1e9

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        return {
            **asdict(self.cost),
            "active_fraction": self.cost.active_fraction,
            "tokens_per_second": self.tokens_per_second,
            "gb_per_second": self.gb_per_second,
            "joules_per_token": self.joules_per_token,
        }


def decode_in_turns(
    model: Model,
    choices: Sequence[Choice],
    cache: KVCache,
    ids: Sequence[int],
    context: int,
    repeats: int,
) -> list[Run]:
    """Decode `ids` after the first `context` of them, under each choice: medians of the runs.

    Choices take turns, so that whatever else the machine does meets all of them. The prompt is
    read anew where it makes the first candidates.
    """
    runs: list[list[Run]] = [[] for _ in choices]
    with model.engine_lock:
        for _ in range(repeats):
            for choice, tries in zip(choices, runs, strict=True):
                fresh = choice.plan is not None and choice.plan.candidates == "resampled"
                cache.truncate(0 if fresh else min(context, cache.length))
                decoding = Decoding(model, choice, cache)
                if cache.length < context:
                    decoding.prefill(ids[cache.length : context])
                tries.append(_timed(decoding, ids[context:], context))
    return [_median(tries) for tries in runs]


def _timed(decoding: Decoding, tokens: Sequence[int], context: int) -> Run:
    meter = EnergyMeter()
    meter.start()
    start = time.perf_counter()
    for token in tokens:
        decoding.step(token)
    seconds = time.perf_counter() - start
    meter.stop()
    count = len(tokens)
    joules = None if meter.joules is None else meter.joules / count
    return Run(decoding.cost(context + count // 2), count / seconds, joules)


def _median(runs: Sequence[Run]) -> Run:
    """Of runs over the same tokens: the same work, at the median of the speeds."""
    joules = [run.joules_per_token for run in runs if run.joules_per_token is not None]
    return Run(
        runs[0].cost,
        median(run.tokens_per_second for run in runs),
        median(joules) if joules else None,
    )


def real_tokens(model: Model, count: int) -> list[int]:
    """Tokens of the built-in texts, over again where they are too short.

    What is left out hangs on the text, so that made-up tokens would tell nothing.
    """
    return list(islice(cycle(model.tokenize("".join(built_in_texts()))), count))


def check_room(model: Model, count: int) -> None:
    """Raises UsageError where a model's context does not hold that many tokens."""
    longest = model.config.context_length
    if count > longest:
        raise UsageError(f"{model.name} has a context of {longest} tokens; {count} were asked for.")
