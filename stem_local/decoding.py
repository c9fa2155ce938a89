"""Decode steps of one conversation: what each leaves out, and what they cost together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stem_runtime.neuron_tables import COUNTS
from stem_runtime.stats import Cost, Rules

from .cost import (
    active_parameters,
    dense_ffn_bytes,
    layer_parameters,
    predictor_ranks,
    sparse_layers,
)

if TYPE_CHECKING:
    from stem_runtime.kv_cache import KVCache
    from stem_runtime.sparsity.resampling import Resampler

    from .model import Model
    from .sparsity import Choice

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sums:
    """Rows of the head and counts of neurons (int64 [n_layers, 8]) of some steps together."""

    steps: int
    rows: int
    counts: NDArray[np.int64]

    def since(self, earlier: Sums) -> Sums:
        return Sums(
            self.steps - earlier.steps, self.rows - earlier.rows, self.counts - earlier.counts
        )


class Decoding:
    """The steps that follow one prompt under one choice. Calls hold the model's `engine_lock`."""

    def __init__(self, model: Model, choice: Choice, cache: KVCache, held: int = 0) -> None:
        """`held` is how many tokens the cache had before it was cut back to those that still hold.

        Candidate sets of a conversation go on with it; a cache that lost more than half of its
        tokens goes on with another one.
        """
        self._model, self._cache, self._choice = model, cache, choice
        self.steps = 0
        self._rows = 0
        self._dense_tokens = 0
        self._counts = np.zeros((model.config.n_layers, len(COUNTS)), np.int64)
        self._asked = Sums(0, 0, self._counts.copy())
        self._recent: tuple[int, tuple[float, ...]] | None = None
        model.equip(choice)
        self._resampler = self._resampling(goes_on=2 * cache.length >= held)
        self._before = self._looks()

    def prefill(
        self,
        tokens: Sequence[int],
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Logits:
        """Read the prompt in full; the neurons that it fires are the first candidates."""
        resampler = self._resampler

        def note(count: int) -> None:
            if resampler is not None:
                resampler.part()
            if progress is not None:
                progress(count)

        logits = self._model.engine.prefill(self._cache, tokens, cancel=cancel, progress=note)
        if resampler is not None:
            resampler.seed()
        return logits

    def step(self, token: int) -> Logits:
        """Read one token; see `Engine.decode` for what it returns."""
        engine, cache, look = self._model.engine, self._cache, self._choice.look
        with self._counted() as sparse:
            return engine.decode(cache, token, look=look, sparse=sparse)

    def follow(self, token: int) -> int:
        """Read one token and let the card choose the next one; see `GpuEngine.follow`."""
        card = self._model.card
        assert card is not None
        with self._counted() as sparse:
            return card.follow(self._cache, token, sparse=sparse)

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        """Prepare a step, which leaves neurons out where the value says so, and count it."""
        engine, plan, resampler = self._model.engine, self._choice.plan, self._resampler
        if plan is not None:
            self._model.aim(plan)
            self._dense_tokens += self._cache.length < plan.sinks
            if resampler is not None:
                resampler.before_token()
        yield plan is not None
        if plan is not None:
            self._counts += engine.last_counts
            if resampler is not None:
                resampler.after_token()
        self.steps += 1
        self._rows += engine.last_rows

    @property
    def account(self) -> str:
        """What was left out and why, and what became of resampling where it switched itself off."""
        if self._resampler is None or self._resampler.active:
            return self._choice.reason
        return f"{self._choice.reason}; resampling switched itself off: {self._resampler.reason}"

    def recent(self) -> tuple[int, tuple[float, ...]]:
        """Active parameters of a step, and each layer's share, on average since the last call.

        What there was before stands where no step was made since. Callable from any thread.
        """
        steps = self.steps - self._asked.steps
        if steps > 0 or self._recent is None:
            now = Sums(self.steps, self._rows, self._counts.copy())
            self._recent = self._active(now.since(self._asked))
            self._asked = now
        return self._recent

    def cost(self, context: int) -> Cost:
        """The mean over the steps so far, of dense ones where there were none.

        `context` is how many tokens the cache held on average.
        """
        model, packed, steps = self._model, self._model.packed, self.steps
        rows = self._rows / steps if steps else float(model.config.vocab_size)
        nbytes = model.engine.weight_bytes_per_token(context, rows if self._looks_up else None)
        if self._choice.plan is not None and steps:
            # someone else may have decoded under another plan since
            model.aim(self._choice.plan)
            nbytes += round(model.engine.ffn_bytes(self._counts / steps)) - dense_ffn_bytes(packed)
        active, layers = self._active(Sums(steps, self._rows, self._counts))
        return Cost(
            head_rows=rows,
            active_parameters=active,
            total_parameters=packed.parameters,
            layer_active_fraction=layers,
            bytes_per_token=nbytes,
            rules=self._rules(),
        )

    @property
    def _looks_up(self) -> bool:
        return self._choice.look and self._model.calibrated.look is not None

    def _active(self, sums: Sums) -> tuple[int, tuple[float, ...]]:
        """Mean active parameters of some steps, and the share of every layer's own."""
        model, packed, plan = self._model, self._model.packed, self._choice.plan
        whole = layer_parameters(model.config)
        layers = list(map(float, whole))
        if plan is not None and sums.steps:
            ffn = model.calibrated.ffn
            ranks = predictor_ranks(plan, None if ffn is None else ffn.predictors)
            layers = sparse_layers(model.config, sums.counts / sums.steps, ranks)
        rows = sums.rows / sums.steps if sums.steps else float(model.config.vocab_size)
        look = model.calibrated.look if self._choice.look else None
        active = active_parameters(packed, rows, 0 if look is None else look.dims, layers)
        return active, tuple(part / all_ for part, all_ in zip(layers, whole, strict=True))

    def _rules(self) -> Rules:
        sums = dict(zip(COUNTS, self._counts.sum(axis=0).tolist(), strict=True))
        refreshes, drifts = self._looks()
        return Rules(
            core_added=sums["core_added"],
            implied_added=sums["implied_added"],
            floors=sums["floor"],
            caps=sums["cap"],
            dense_tokens=self._dense_tokens,
            refreshes=refreshes - self._before[0],
            drifts=drifts - self._before[1],
        )

    def _resampling(self, *, goes_on: bool) -> Resampler | None:
        """What draws the candidate sets of this conversation, None for plans without them."""
        cache, plan = self._cache, self._choice.plan
        if plan is None or plan.candidates != "resampled":
            cache.heat = cache.candidates = None
            return None
        from stem_runtime.sparsity.resampling import Resampler

        modes, resampler = self._model.resamplers.get(cache, ((), None))
        if resampler is None or not goes_on or modes != plan.modes:
            resampler = Resampler(plan.modes, self._model.config.ffn_dim)
            self._model.resamplers[cache] = plan.modes, resampler
        resampler.start(cache)
        return resampler

    def _looks(self) -> tuple[int, int]:
        resampler = self._resampler
        return (0, 0) if resampler is None else (resampler.refreshes, resampler.drifts)


def total_cost(decodings: Sequence[Decoding], context: int) -> Cost:
    """The mean over all steps of an answer that was decoded in several ways, one after another."""
    costs = [decoding.cost(context) for decoding in decodings]
    if len(costs) == 1:
        return costs[0]
    steps = [decoding.steps for decoding in decodings]
    shares = np.array(steps) / sum(steps) if any(steps) else np.eye(len(steps))[-1]

    def mean(values: Sequence[float]) -> float:
        return float(shares @ np.array(values))

    layers = shares @ np.array([cost.layer_active_fraction for cost in costs])
    return Cost(
        head_rows=mean([cost.head_rows for cost in costs]),
        active_parameters=round(mean([cost.active_parameters for cost in costs])),
        total_parameters=costs[-1].total_parameters,
        layer_active_fraction=tuple(layers.tolist()),
        bytes_per_token=round(mean([cost.bytes_per_token for cost in costs])),
        rules=Rules(
            *(sum(counts) for counts in zip(*(astuple(c.rules) for c in costs), strict=True))
        ),
    )
