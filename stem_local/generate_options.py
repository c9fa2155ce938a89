"""The options of a generation, and what they may be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from stem_runtime.errors import UsageError
from stem_runtime.limits import Limit, shown
from stem_runtime.sampling import SamplingParams

from .sparsity import Sparsity, check_quality, check_sparsity

ContextPolicy = Literal["stop", "drop_oldest"]
Cancel = threading.Event | Callable[[], bool]

DEFAULT_MAX_TOKENS = 512
MAX_LOGPROBS = 100

_MAX_TOKENS = Limit(1, whole=True)
_LOGPROBS = Limit(0, MAX_LOGPROBS, whole=True)


class GenerateOptions(TypedDict, total=False):
    """Keyword options that every generating call takes; `Options` says what they mean."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    cancel: Cancel | None
    context_policy: ContextPolicy
    sparsity: Sparsity
    quality: float
    draft: bool


_SAMPLING = {field.name for field in fields(SamplingParams)}


@dataclass(frozen=True, slots=True)
class Options:
    """Checked options of one generation.

    `max_tokens`: most tokens to answer with. `stop`: strings that end the answer and are not part
    of it. `logprobs`: report each token's log-probability and that many of the likeliest.
    `cancelled`: asked between prefill chunks and between tokens. `context_policy`: what to do when
    a conversation outgrows the context; "stop" raises ContextFullError, "drop_oldest" leaves out
    the oldest turns and reports how many. `sparsity`: "auto" leaves out what the model's
    calibration showed not to matter, "off" nothing, a number that share of the FFN neurons.
    `quality`: how much of its perplexity auto may add. None is what the model was loaded with.
    `draft`: guess the next tokens from the text so far and read them along, on the CPU and where
    that saves time; it changes no token.
    """

    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...]
    logprobs: int | None
    cancelled: Callable[[], bool] | None
    context_policy: ContextPolicy
    sparsity: Sparsity | None
    quality: float | None
    draft: bool

    @classmethod
    def parse(cls, given: Mapping[str, Any], caller: str) -> Options:
        """Build from keyword arguments. Raises TypeError for unknown ones, UsageError for bad."""
        if unknown := sorted(set(given) - GenerateOptions.__optional_keys__):
            raise TypeError(f"{caller}() got an unexpected keyword argument {unknown[0]!r}")
        policy = given.get("context_policy", "stop")
        if policy not in ("stop", "drop_oldest"):
            raise UsageError(f"context_policy is 'stop' or 'drop_oldest', not {shown(policy)}.")
        top = given.get("logprobs")
        sparsity, quality = given.get("sparsity"), given.get("quality")
        draft = given.get("draft", True)
        if not isinstance(draft, bool):
            raise UsageError(f"draft is True or False, not {shown(draft)}.")
        return cls(
            sampling=SamplingParams(**{k: v for k, v in given.items() if k in _SAMPLING}),
            max_tokens=_MAX_TOKENS.check("max_tokens", given.get("max_tokens", DEFAULT_MAX_TOKENS)),
            stop=_stops(given.get("stop")),
            logprobs=None if top is None else _LOGPROBS.check("logprobs", top),
            cancelled=_cancelled(given.get("cancel")),
            context_policy=policy,
            sparsity=None if sparsity is None else check_sparsity(sparsity),
            quality=None if quality is None else check_quality(quality),
            draft=draft,
        )

    def with_stops(self, stops: tuple[str, ...]) -> Options:
        """The same with more strings that end the answer."""
        return replace(self, stop=self.stop + stops) if stops else self


def _stops(stop: object) -> tuple[str, ...]:
    if stop is None or isinstance(stop, str):
        return () if stop is None else (stop,)
    if not isinstance(stop, Iterable):
        raise UsageError(f"stop is a text or several of them, not {shown(stop)}.")
    return tuple(stop)


def _cancelled(cancel: Cancel | None) -> Callable[[], bool] | None:
    if cancel is None or callable(cancel):
        return cancel
    if isinstance(cancel, threading.Event):
        return cancel.is_set
    raise UsageError(f"cancel is a threading.Event or a function, not {shown(cancel)}.")
