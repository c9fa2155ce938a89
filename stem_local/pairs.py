"""Two plans on the same texts, in turns every few tokens: quality, cost and speed of each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from stem_runtime.engine import Cancelled
from stem_runtime.errors import UsageError

from .decoding import Decoding
from .scoring import losses_of
from .sparsity import Choice

if TYPE_CHECKING:
    from stem_runtime.kv_cache import KVCache
    from stem_runtime.sparsity.plan import FfnPlan

    from .model import Model

WINDOW, PROMPT = 512, 64
"""Tokens that are read with a common past, and how many of them are the prompt of the rest."""

TURN = 16
"""Tokens that are decoded under one plan before the other has its turn."""

_OUTSIDE = 0.1  # of the turns, the fastest and the slowest that tell of something else


@dataclass(frozen=True, slots=True)
class Figures:
    """One text under one plan; perplexity and speed are of decode steps, the head whole."""

    active_parameters: float
    active_fraction: float
    perplexity: float
    tokens_per_second: float


class Pairs:
    """Compares plans on some texts, each cut into windows that share nothing."""

    def __init__(
        self,
        model: Model,
        texts: Mapping[str, str],
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        """Raises UsageError for a text that is too short to say anything."""
        self._model, self._cancel = model, cancel
        self._windows = {name: _windows(model, text) for name, text in texts.items()}
        if not all(self._windows.values()):
            raise UsageError("A text is too short to measure on.")
        longest = max(len(window) for windows in self._windows.values() for window in windows)
        self._caches = [model.engine.new_cache(longest) for _ in range(2)]

    def compare(
        self,
        old: FfnPlan | None,
        new: FfnPlan | None,
        report: Callable[[int, int], None],
    ) -> tuple[dict[str, Figures], dict[str, Figures]]:
        """The figures of two plans on each text. `report` receives (done, total). Cancelled."""
        windows = [(name, window) for name, found in self._windows.items() for window in found]
        sides: dict[str, tuple[_Side, _Side]] = {
            name: (_Side(self._model, old), _Side(self._model, new)) for name in self._windows
        }
        for done, (name, window) in enumerate(windows):
            report(done, len(windows))
            self._read(window, sides[name])
        report(len(windows), len(windows))
        return (
            {name: pair[0].figures() for name, pair in sides.items()},
            {name: pair[1].figures() for name, pair in sides.items()},
        )

    def _read(self, window: list[int], sides: tuple[_Side, _Side]) -> None:
        prompt = min(PROMPT, len(window) // 4)
        with self._model.engine_lock:
            for side, cache in zip(sides, self._caches, strict=True):
                side.begin(cache, window[:prompt])
            for turn, start in enumerate(range(prompt, len(window) - 1, TURN)):
                if self._cancel is not None and self._cancel():
                    raise Cancelled("Measuring was cancelled.")
                part = window[start : start + TURN + 1]
                for side in sides if turn % 2 else reversed(sides):
                    side.read(part)
            for side in sides:
                side.end(len(window) // 2)


class _Side:
    """One plan's steps over the windows of one text."""

    def __init__(self, model: Model, plan: FfnPlan | None) -> None:
        self._model, self._choice = model, Choice(False, plan, "")
        self._decoding: Decoding | None = None
        self._losses: list[float] = []
        self._turns: list[float] = []
        self._active = 0.0
        self._steps = 0

    def begin(self, cache: KVCache, prompt: list[int]) -> None:
        cache.truncate(0)
        # a cache that held tokens and lost them all is another conversation
        self._decoding = Decoding(self._model, self._choice, cache, 1)
        self._decoding.prefill(prompt)

    def read(self, tokens: list[int]) -> None:
        """Decode all tokens but the last, each scored by the one after it."""
        decoding = self._decoding
        assert decoding is not None
        if self._choice.plan is not None:
            self._model.aim(self._choice.plan)
        seconds = 0.0
        for token, following in pairwise(tokens):
            start = time.perf_counter()
            logits = decoding.step(token)
            seconds += time.perf_counter() - start
            self._losses.append(float(losses_of(logits[None], [following])[0]))
        self._turns.append(seconds / (len(tokens) - 1))

    def end(self, context: int) -> None:
        decoding = self._decoding
        assert decoding is not None
        self._steps += decoding.steps
        self._active += decoding.steps * decoding.cost(context).active_parameters

    def figures(self) -> Figures:
        active = self._active / self._steps
        return Figures(
            active_parameters=active,
            active_fraction=active / self._model.packed.parameters,
            perplexity=math.exp(sum(self._losses) / len(self._losses)),
            tokens_per_second=1 / _middle(self._turns),
        )


def _middle(seconds: Iterable[float]) -> float:
    """The mean of what is left without the fastest and the slowest tenth."""
    ordered = np.sort(np.fromiter(seconds, np.float64))
    cut = int(_OUTSIDE * len(ordered))
    return float(ordered[cut : len(ordered) - cut].mean())


def _windows(model: Model, text: str) -> list[list[int]]:
    begin, ids = model.begin_tokens, model.tokenize(text)
    size = min(WINDOW, model.context)
    step = size - len(begin)
    cut = (begin + ids[start : start + step] for start in range(0, len(ids), step))
    # a window that ends soon after its prompt shows little
    return [window for window in cut if len(window) > 2 * min(PROMPT, size // 4)]
