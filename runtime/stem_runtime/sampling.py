"""From logits to the next token.

The order of what is done to the logits: repetition penalty, temperature, top_k, top_p, min_p, draw.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import StemError, UsageError
from .kernels import SAMPLE
from .kernels.cpu import sample_args as word
from .sampling_params import MAX_VOCAB, SamplingParams

__all__ = ["MAX_VOCAB", "Sampler", "SamplingParams", "logprobs"]

_WORD = (1 << 64) - 1

Logits = NDArray[np.float32]

_entries: dict[str, Callable[[int, int], None]] = {}
"""The compiled kernel, kept because linking it takes longer than many tokens."""


class Sampler:
    """Chooses tokens of one text. Keeps the state of its random numbers; not for several threads.

    `vocab_size` is the length of the logits. `notify` receives a sentence if the kernel has to be
    compiled first. `seed` is the one in use, also where the parameters have none.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        if not 0 < vocab_size <= MAX_VOCAB:
            raise UsageError(f"vocab_size must be from 1 to {MAX_VOCAB}, not {vocab_size!r}.")
        self.params = params
        self.vocab_size = vocab_size
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self._state = self.seed
        if params.temperature > 0:
            self._prepare(notify)

    def _prepare(self, notify: Callable[[str], None] | None) -> None:
        from .kernels.jit import load_unit

        p, vocab = self.params, self.vocab_size
        if not _entries:
            _entries.update(load_unit(SAMPLE, "", notify))
        self._choose = _entries["choose"]
        blocks = -(-vocab // word.BLOCK)
        self._peaks, self._heap = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
        self._ids, self._weights = np.empty(vocab, np.int32), np.empty(vocab, np.float64)
        self._args = args = np.zeros(word.ARGS_WORDS, np.int64)
        self._floats = floats = args.view(np.float64)
        self._address = args.ctypes.data
        args[word.VOCAB] = vocab
        args[word.TOP_K] = min(p.top_k or vocab, vocab)
        floats[word.TOP_P], floats[word.MIN_P] = p.top_p, p.min_p
        floats[word.TEMPERATURE] = p.temperature
        floats[word.MARGIN] = p.temperature * math.log(p.min_p) if p.min_p > 0 else -math.inf
        args[word.PEAKS], args[word.HEAP] = self._peaks.ctypes.data, self._heap.ctypes.data
        args[word.IDS], args[word.WEIGHTS] = self._ids.ctypes.data, self._weights.ctypes.data

    def sample(self, logits: Logits, recent: Sequence[int] = ()) -> int:
        """Return the next token for `logits` float32 [vocab_size].

        `recent` are the tokens so far, for the repetition penalty. A logit of minus infinity
        is never chosen. Raises StemError where a logit is NaN or plus infinity, or none is left.
        """
        logits = self._penalized(logits, recent)
        if self.params.temperature > 0:
            self._run(logits, self._uniform())
            return int(self._args[word.TOKEN])
        token = int(logits.argmax())
        if not math.isfinite(logits[token]):
            raise _unusable(bool(logits[token] != -math.inf))
        return token

    def distribution(
        self, logits: Logits, recent: Sequence[int] = ()
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return the tokens that `sample` chooses from and their probabilities. Draws nothing."""
        logits = self._penalized(logits, recent)
        if self.params.temperature == 0:
            return np.array([logits.argmax()], np.int32), np.ones(1)
        self._run(logits, 0.0)
        kept = int(self._args[word.KEPT])
        ids, weights = self._ids[:kept], self._weights[:kept]
        return ids[weights > 0], weights[weights > 0] / weights.sum()

    def _run(self, logits: Logits, draw: float) -> None:
        self._args[word.LOGITS] = logits.ctypes.data
        self._floats[word.DRAW] = draw
        self._choose(self._address, 0)
        if status := self._args[word.STATUS]:
            raise _unusable(bool(status == word.NOT_FINITE))

    def _penalized(self, logits: Logits, recent: Sequence[int]) -> Logits:
        if logits.shape != (self.vocab_size,) or logits.dtype != np.float32:
            raise UsageError(
                f"logits must be float32 [{self.vocab_size}], "
                f"not {logits.dtype} {list(logits.shape)}."
            )
        penalty, window = self.params.repetition_penalty, self.params.repeat_last
        if penalty == 1.0 or not window or not len(recent):
            return np.ascontiguousarray(logits)
        ids = np.unique(np.asarray(recent[-window:], np.int64))
        ids = ids[(ids >= 0) & (ids < self.vocab_size)]
        changed = logits.copy()
        values = changed[ids]
        changed[ids] = np.where(values > 0, values / penalty, values * penalty)
        return changed

    def _uniform(self) -> float:
        """The next number of SplitMix64 (Steele, Lea and Flood, 2014), as a float64 in [0, 1)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _WORD
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def logprobs(logits: Logits, token: int, top: int = 0) -> tuple[float, list[tuple[int, float]]]:
    """Return the natural log-probability of `token`, and the `top` best (token, log-probability).

    `logits` are the model's own, before any sampling setting. Raises StemError for unusable ones.
    """
    best = float(logits.max())
    if not math.isfinite(best):
        raise _unusable(best != -math.inf)
    shifted = logits.astype(np.float64) - best
    shifted -= math.log(np.exp(shifted).sum())
    top = min(top, shifted.size)
    ids = np.argpartition(-shifted, top - 1)[:top] if top else np.empty(0, np.int64)
    ids = ids[np.lexsort((ids, -shifted[ids]))]
    return float(shifted[token]), [(int(i), float(shifted[i])) for i in ids]


def _unusable(broken: bool) -> StemError:
    if broken:
        return StemError(
            "The model computed logits that are not finite numbers; its weights or this machine's "
            "kernels are at fault (try STEM_KERNELS=portable, or pull the model again)."
        )
    return StemError("Every token is excluded, so that none can be sampled.")
