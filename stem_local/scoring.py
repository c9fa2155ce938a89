"""What a model thinks of given tokens: logits and perplexity, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stem_runtime.errors import ContextFullError, UsageError

if TYPE_CHECKING:
    from .model import Model

_BLOCK_BYTES = 32 << 20


def logits(model: Model, ids: list[int]) -> NDArray[np.float32]:
    """Logits after each token of a sequence: float32 [n, vocab]."""
    if not ids:
        raise UsageError("There are no tokens to evaluate.")
    if len(ids) > model.context:
        raise ContextFullError(
            f"{len(ids)} tokens do not fit in the context of {model.name}, which holds "
            f"{model.context}; load it with a larger context or give fewer tokens."
        )
    return np.concatenate(list(_blocks(model, ids)))


def perplexity(model: Model, text: str, window: int) -> float:
    """See `Model.perplexity`."""
    if not 2 <= window <= model.context:
        raise UsageError(f"window is from 2 to {model.context} tokens, not {window}.")
    begin = model.begin_tokens
    ids = model.tokenizer.encode(text)
    step = window - len(begin)
    loss, scored = 0.0, 0
    for start in range(0, len(ids), step):
        part = begin + ids[start : start + step]
        if len(part) > 1:
            loss += _loss(model, part)
            scored += len(part) - 1
    if scored == 0:
        raise UsageError("The text is too short: no token of it has another before it.")
    return math.exp(loss / scored)


def _blocks(model: Model, ids: list[int]) -> Iterator[NDArray[np.float32]]:
    """Logits of a sequence, a bounded number of rows at a time."""
    rows = max(1, _BLOCK_BYTES // (4 * model.config.vocab_size))
    cache = model.engine.new_cache(len(ids))
    for start in range(0, len(ids), rows):
        with model.engine_lock:
            block = model.engine.logits(cache, ids[start : start + rows])
        yield block


def _loss(model: Model, ids: list[int]) -> float:
    """Summed negative log-likelihood of ids[1:] in nats."""
    loss, targets = 0.0, np.array(ids[1:], np.int64)
    for block in _blocks(model, ids[:-1]):
        here, targets = targets[: len(block)], targets[len(block) :]
        top = block.max(axis=1)
        spread = np.exp(block - top[:, None]).sum(axis=1, dtype=np.float64)
        loss += float(np.sum(np.log(spread) + top - block[np.arange(len(here)), here]))
    return loss
