"""What a model thinks of given tokens: logits and perplexity, in bounded memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stem_runtime.errors import ContextFullError, UsageError
from stem_runtime.limits import Limit

from .decoding import Decoding

if TYPE_CHECKING:
    from stem_runtime.kv_cache import KVCache

    from .model import Model
    from .sparsity import Choice

WHOLE_HEAD = "likelihoods need the whole head"

_BLOCK_BYTES = 32 << 20
_LARGEST = math.log(sys.float_info.max)


def logits(model: Model, ids: list[int]) -> NDArray[np.float32]:
    """Logits after each token of a sequence: float32 [n, vocab]."""
    return np.concatenate(list(_blocks(model, _fitting(model, ids))))


def losses(model: Model, ids: list[int], choice: Choice | None = None) -> NDArray[np.float64]:
    """Negative log-likelihoods of ids[1:] in nats, float64 [n - 1].

    Without a choice many tokens are read at a time and nothing is left out. With one the tokens
    are decoded one by one, as answers are; it was made with `WHOLE_HEAD`.
    """
    known = _fitting(model, ids[:-1])
    blocks = _blocks(model, known) if choice is None else _steps(model, known, choice)
    found, done = [], 1
    for block in blocks:
        found.append(losses_of(block, ids[done : done + len(block)]))
        done += len(block)
    return np.concatenate(found)


def losses_of(logits: NDArray[np.float32], targets: Sequence[int]) -> NDArray[np.float64]:
    """Negative log-likelihoods of one token after each row of logits [n, vocab]."""
    top = logits.max(axis=1)
    spread = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    found: NDArray[np.float64] = np.log(spread) + top - logits[np.arange(len(targets)), targets]
    return found


def perplexity(model: Model, text: str, window: int, choice: Choice | None) -> float:
    """See `Model.perplexity`; None reads many tokens at a time and leaves nothing out."""
    window = Limit(2, model.context, whole=True).check("window", window)
    begin = model.begin_tokens
    ids = model.tokenizer.encode(text)
    step = window - len(begin)
    parts = [begin + ids[start : start + step] for start in range(0, len(ids), step)]
    found = [losses(model, part, choice) for part in parts if len(part) > 1]
    if not found:
        raise UsageError("The text is too short: no token of it has another before it.")
    loss = float(np.concatenate(found).mean())
    return math.exp(loss) if loss < _LARGEST else math.inf


def _fitting(model: Model, ids: list[int]) -> list[int]:
    if not ids:
        raise UsageError("There are no tokens to evaluate.")
    if len(ids) > model.context:
        raise ContextFullError(
            f"{len(ids)} tokens do not fit in the context of {model.name}, which holds "
            f"{model.context}; load it with a larger context or give fewer tokens."
        )
    return ids


def _blocks(model: Model, ids: list[int]) -> Iterator[NDArray[np.float32]]:
    """Logits of a sequence, a bounded number of rows at a time."""
    rows = max(1, _BLOCK_BYTES // (4 * model.config.vocab_size))
    cache = model.engine.new_cache(len(ids))
    for start in range(0, len(ids), rows):
        with model.engine_lock:
            block = model.engine.logits(cache, ids[start : start + rows])
        yield block


def _steps(model: Model, ids: list[int], choice: Choice) -> Iterator[NDArray[np.float32]]:
    """Logits of a sequence that is decoded, each overwritten by the next."""
    cache: KVCache = model.engine.new_cache(len(ids))
    with model.engine_lock:
        decoding = Decoding(model, choice, cache)
    for token in ids:
        with model.engine_lock:
            row = decoding.step(token)
        yield row[None]
