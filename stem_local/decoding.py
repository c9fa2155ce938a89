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
    """Rows of the head and counts of neurons (int64 [n_layers, 8]) of some tokens that were read.

    Those of drafts that did not hold are among the tokens.
    """

    read: int
    rows: int
    counts: NDArray[np.int64]

    def since(self, earlier: Sums) -> Sums:
        return Sums(
            self.read - earlier.read, self.rows - earlier.rows, self.counts - earlier.counts
        )


class Decoding:
    """The steps that follow one prompt under one choice. Calls hold the model's `engine_lock`.

    `drafted` tokens were read beside the last one of the text by so many `steps`; whoever chooses
    tokens counts the `accepted` ones, each of which spared a step.
    """

    def __init__(self, model: Model, choice: Choice, cache: KVCache, held: int = 0) -> None:
        """`held` is how many tokens the cache had before it was cut back to those that still hold.

        Candidate sets of a conversation go on with it; a cache that lost more than half of its
        tokens goes on with another one.
        """
        self._model, self._cache, self._choice = model, cache, choice
        self.steps = self.drafted = self.accepted = 0
        self._rows = 0
        self._dense_tokens = 0
        self._counts = np.zeros((model.config.n_layers, len(COUNTS)), np.int64)
        self._asked = Sums(0, 0, self._counts.copy())
        self._recent: tuple[int, tuple[float, ...]] | None = None
        model.equip(choice)
        self._resampler = self._resampling(goes_on=2 * cache.length >= held)
        self._before = self._looks()

    @property
    def can_draft(self) -> bool:
        """Whether `step_ahead` leaves out what `step` does: neurons are skipped by that alone."""
        return self._choice.plan is None

    @property
    def read(self) -> int:
        """Tokens that were read, in drafts that did not hold too."""
        return self.steps + self.drafted

    @property
    def tokens(self) -> int:
        """Tokens that were decoded: those after which logits were asked for."""
        return self.steps + self.accepted

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

    def step_ahead(self, tokens: Sequence[int]) -> Logits:
        """Read a token and a draft in one step; see `Engine.decode_draft` for what it returns."""
        engine, cache, look = self._model.engine, self._cache, self._choice.look
        logits = engine.decode_draft(cache, tokens, look=look)
        self._count(len(tokens) - 1)
        return logits

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
        self._count()

    def _count(self, drafted: int = 0) -> None:
        self.steps += 1
        self.drafted += drafted
        self._rows += self._model.engine.last_rows

    def _sums(self) -> Sums:
        return Sums(self.read, self._rows, self._counts.copy())

    @property
    def account(self) -> str:
        """What was left out and why, and what became of resampling where it switched itself off."""
        if self._resampler is None or self._resampler.active:
            return self._choice.reason
        return f"{self._choice.reason}; resampling switched itself off: {self._resampler.reason}"

    def recent(self) -> tuple[int, tuple[float, ...]]:
        """Active parameters of a token, and each layer's share, on average since the last call.

        What there was before stands where no step was made since. Callable from any thread.
        """
        now = self._sums()
        if now.read > self._asked.read or self._recent is None:
            self._recent = self._active(now.since(self._asked))
            self._asked = now
        return self._recent

    def cost(self, context: int) -> Cost:
        """The mean over the steps so far, of dense ones where there were none.

        `context` is how many tokens the cache held on average.
        """
        sums = self._sums()
        active, layers = self._active(sums)
        return Cost(
            head_rows=self._mean_rows(sums),
            active_parameters=active,
            total_parameters=self._model.packed.parameters,
            layer_active_fraction=layers,
            bytes_per_token=self._bytes(context),
            rules=self._rules(),
        )

    def _bytes(self, context: int) -> int:
        """What is read for a token of the answer: a step's weights serve all that it gives."""
        model, steps = self._model, self.steps
        looks_up = self._choice.look and model.calibrated.look is not None
        rows = self._rows / steps if steps and looks_up else None
        nbytes = model.engine.weight_bytes_per_token(context, rows)
        if self._choice.plan is not None and steps:
            # someone else may have decoded under another plan since
            model.aim(self._choice.plan)
            spared = dense_ffn_bytes(model.packed) - model.engine.ffn_bytes(self._counts / steps)
            nbytes -= round(spared)
        return round(nbytes * steps / self.tokens) if steps else nbytes

    def _active(self, sums: Sums) -> tuple[int, tuple[float, ...]]:
        """Mean active parameters of some steps, and the share of every layer's own."""
        model, packed, plan = self._model, self._model.packed, self._choice.plan
        whole = layer_parameters(model.config)
        layers = list(map(float, whole))
        if plan is not None and sums.read:
            ffn = model.calibrated.ffn
            ranks = predictor_ranks(plan, None if ffn is None else ffn.predictors)
            layers = sparse_layers(model.config, sums.counts / sums.read, ranks)
        rows = self._mean_rows(sums)
        look = model.calibrated.look if self._choice.look else None
        active = active_parameters(packed, rows, 0 if look is None else look.dims, layers)
        return active, tuple(part / all_ for part, all_ in zip(layers, whole, strict=True))

    def _mean_rows(self, sums: Sums) -> float:
        return sums.rows / sums.read if sums.read else float(self._model.config.vocab_size)

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
    read = _shares([decoding.read for decoding in decodings])
    decoded = _shares([decoding.tokens for decoding in decodings])
    layers = read @ np.array([cost.layer_active_fraction for cost in costs])
    return Cost(
        head_rows=float(read @ [cost.head_rows for cost in costs]),
        active_parameters=round(float(read @ [cost.active_parameters for cost in costs])),
        total_parameters=costs[-1].total_parameters,
        layer_active_fraction=tuple(layers.tolist()),
        bytes_per_token=round(float(decoded @ [cost.bytes_per_token for cost in costs])),
        rules=Rules(
            *(sum(counts) for counts in zip(*(astuple(c.rules) for c in costs), strict=True))
        ),
    )


def _shares(counts: Sequence[int]) -> NDArray[np.float64]:
    """Of each in all of them; all in the last where there are none."""
    return np.array(counts) / sum(counts) if any(counts) else np.eye(len(counts))[-1]
