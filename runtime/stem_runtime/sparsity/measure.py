"""What a plan costs and gains, measured with the engine's own sparse steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..kv_cache import KVCache
from ..neuron_tables import COUNTS
from .plan import FfnPlan
from .resampling import Resampler

PROMPT = 32
"""Tokens of a text that are read before the ones that are decoded."""

ROUNDS, DECODED = 10, 40
"""Rounds of a race, and tokens that each side decodes in a round."""

SCORES = 1 << 24
"""Logits of the dense model that are held to compare with."""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens of a text or an answer, of which those from `start` on are decoded."""

    tokens: list[int]
    start: int


class Divergence:
    """How far a plan's predictions are from the dense model's: Kullback-Leibler, nats per token.

    That is how much more loss the plan has on text that the dense model would write, and far less
    noisy than the loss on a few given tokens. Any change at all makes activations round another
    way, which adds a few thousandths without making predictions worse; what `least`, a plan that
    leaves next to nothing out, differs by is subtracted for that.
    """

    def __init__(
        self, engine: Engine, passages: Sequence[Passage], least: FfnPlan, check: Check
    ) -> None:
        self._engine, self._check = engine, check
        left = SCORES // engine.config.vocab_size
        self._tokens: list[list[int]] = []
        for passage in passages:
            part = passage.tokens[: max(0, left)]
            left -= len(part)
            if len(part) > 1:
                self._tokens.append(part)
        self._dense = [self._logs(tokens, sparse=False) for tokens in self._tokens]
        self._rounding = 0.0
        self._rounding = self(least)

    def __call__(self, plan: FfnPlan) -> float:
        self._engine.set_plan(plan)
        found = []
        for tokens, dense in zip(self._tokens, self._dense, strict=True):
            self._check()
            logs = self._logs(tokens, sparse=True)
            found.append(np.sum(np.exp(dense) * (dense - logs), axis=1))
        return float(np.concatenate(found).mean()) - self._rounding

    def _logs(self, tokens: list[int], *, sparse: bool) -> F32:
        cache = self._engine.new_cache(len(tokens))
        return log_softmax(self._engine.logits(cache, tokens, sparse=sparse))


@dataclass(frozen=True, slots=True)
class Decoded:
    """Sequences decoded token by token.

    `losses` float64 [n] are the negative log-likelihoods of the tokens that came; `counts` float64
    [n_layers, 8] the mean of `Engine.last_counts`, where dense layers count as all neurons;
    `captured` float32 [n, n_layers] what the active neurons contributed; `sharpness` float32
    [n, n_layers] how sharp attention was.
    """

    losses: F64
    counts: F64
    captured: F32
    sharpness: F32

    def change(self, dense: F64) -> float:
        """Perplexity relative to dense `losses`: 0.01 is 1% more."""
        return float(np.expm1(self.losses.mean() - dense.mean()))

    def recall(self, full: Decoded) -> float:
        """Share of the contributions that were computed where all neurons were candidates."""
        kept = np.minimum(self.captured, full.captured).sum(axis=0, dtype=np.float64)
        every = full.captured.sum(axis=0, dtype=np.float64)
        return float(np.mean(kept[every > 0] / every[every > 0])) if every.any() else 1.0


def dense_losses(engine: Engine, passages: Sequence[Passage], check: Check) -> F64:
    """Losses of the dense model where `decode_all` has them, at the speed of reading."""
    found = []
    for passage in passages:
        check()
        tokens = passage.tokens
        logs = log_softmax(engine.logits(engine.new_cache(len(tokens)), tokens))
        places = np.arange(passage.start, len(tokens) - 1)
        found.append(-logs[places, np.array(tokens)[places + 1]].astype(np.float64))
    return np.concatenate(found)


def read_losses(engine: Engine, plan: FfnPlan, passages: Sequence[Passage], check: Check) -> F64:
    """Like `decode_all`'s losses, for plans that reading can follow and at its speed."""
    engine.set_plan(plan)
    found = []
    for passage in passages:
        check()
        tokens = passage.tokens
        cache = engine.new_cache(len(tokens))
        engine.prefill(cache, tokens[: passage.start])
        logs = log_softmax(engine.logits(cache, tokens[passage.start :], sparse=True))
        after = np.array(tokens[passage.start + 1 :])
        found.append(-logs[np.arange(len(after)), after].astype(np.float64))
    return np.concatenate(found)


def decode_all(engine: Engine, plan: FfnPlan, passages: Sequence[Passage], check: Check) -> Decoded:
    """Decode every sequence under a plan, each after its prompt was read."""
    engine.set_plan(plan)
    losses, captured, sharpness = [], [], []
    counts = np.zeros((engine.config.n_layers, 8))
    for passage in passages:
        cache = engine.new_cache(len(passage.tokens))
        step = _start(engine, plan, cache, passage)
        for token, following in zip(
            passage.tokens[passage.start : -1], passage.tokens[passage.start + 1 :], strict=True
        ):
            check()
            logits = step(token)
            top = logits.max()
            spread = np.exp(logits - top).sum(dtype=np.float64)
            losses.append(float(np.log(spread) + top - logits[following]))
            counts += _whole(engine.last_counts, engine.config.ffn_dim)
            captured.append(np.zeros(len(counts)) if cache.captured is None else cache.captured)
            sharpness.append(engine.last_sharpness)
    return Decoded(
        np.array(losses),
        counts / len(losses),
        np.array(captured, np.float32),
        np.array(sharpness, np.float32),
    )


def race(
    engine: Engine, plan: FfnPlan, passages: Sequence[Passage], check: Check
) -> tuple[float, float]:
    """Tokens per second of decoding dense and under a plan, from runs that take turns."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    longest = sorted(passages, key=lambda passage: -len(passage.tokens))[:4]
    for turn in range(ROUNDS):
        for sparse in (False, True) if turn % 2 else (True, False):
            check()
            passage = longest[turn % len(longest)]
            speeds[sparse].append(_speed(engine, plan if sparse else None, passage))
    return in_turns(speeds[False], speeds[True])


def in_turns(dense: Sequence[float], sparse: Sequence[float]) -> tuple[float, float]:
    """The speeds of two sides that took turns: the median of one, and how the other relates to it.

    That is the median of the turns' ratios. Whoever else is at work slows both sides of a turn, but
    maybe not as many turns of either.
    """
    usual = median(dense)
    return usual, usual * median(b / a for a, b in zip(dense, sparse, strict=True))


def log_softmax(logits: F32) -> F32:
    """Log-probabilities of logits float32 [n, vocab], in place of them."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def _whole(counts: NDArray[np.int64], ffn: int) -> NDArray[np.int64]:
    """Counts in which layers that ran dense, and so counted nothing, have all neurons."""
    found = counts.copy()
    found[counts[:, COUNTS.index("dense")] == 1, : COUNTS.index("active") + 1] = ffn
    return found


def _speed(engine: Engine, plan: FfnPlan | None, passage: Passage) -> float:
    cache = engine.new_cache(len(passage.tokens))
    step: Callable[[int], F32]
    if plan is None:
        engine.prefill(cache, passage.tokens[: passage.start])
        step = partial(engine.decode, cache)
    else:
        engine.set_plan(plan)
        step = _start(engine, plan, cache, passage)
    tokens = passage.tokens[passage.start : passage.start + DECODED]
    began = time.perf_counter()
    for token in tokens:
        step(token)
    return len(tokens) / (time.perf_counter() - began)


def _start(engine: Engine, plan: FfnPlan, cache: KVCache, passage: Passage) -> Callable[[int], F32]:
    """Read the prompt of a passage. Returns what decodes a token after it."""
    prompt = passage.tokens[: passage.start]
    if plan.candidates != "resampled":
        engine.prefill(cache, prompt)
        return partial(engine.decode, cache, sparse=True)
    resampler = Resampler(plan.modes, engine.config.ffn_dim)
    resampler.start(cache)
    engine.prefill(cache, prompt, progress=lambda _: resampler.part())
    resampler.seed()

    def step(token: int) -> F32:
        resampler.before_token()
        logits = engine.decode(cache, token, sparse=True)
        resampler.after_token()
        return logits

    return step
