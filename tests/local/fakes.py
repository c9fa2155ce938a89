"""A model whose engine is a few lines of Python: known answers, and a count of its work."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stem_local.model import Model
from stem_runtime.engine import Cancelled
from stem_runtime.formats.packed import open_packed
from stem_runtime.tokenizer import Tokenizer
from tests.runtime.tiny import random_packed, tiny_config

START, END = 1, 2
HEADER = len("assistant\n")
CHUNK = 8


class FakeCache:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class FakeKernels:
    name = "fake"
    reason = "a test"


class FakeEngine:
    """Says `reply` to every prompt, or without one, something that hangs on the whole context."""

    draft_tokens = 3

    def __init__(self, vocab: int, reply: str | None) -> None:
        self.kernels = FakeKernels()
        self.threads = 1
        self.kv_cache = "fp16"
        self.vocab = vocab
        self.reply = None if reply is None else reply.encode()
        self.evaluated = 0
        self.caches = 0
        self.closed = False
        self.interrupted = False
        self.last_rows = vocab
        self.before_step: Callable[[FakeCache], object] = id

    def new_cache(self, capacity: int) -> FakeCache:
        self.caches += 1
        return FakeCache(capacity)

    def prefill(
        self,
        cache: FakeCache,
        tokens: Sequence[int],
        *,
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        assert tokens
        self.interrupted = False
        for start in range(0, len(tokens), CHUNK):
            if cancel is not None and cancel():
                raise Cancelled("stopped")
            part = tokens[start : start + CHUNK]
            self._take(cache, part)
            if self.interrupted:
                raise Cancelled("interrupted")
            if progress is not None:
                progress(start + len(part))
        return self._after(cache.tokens)

    def interrupt(self) -> None:
        self.interrupted = True

    def decode(
        self, cache: FakeCache, token: int, *, look: bool = False, sparse: bool = False
    ) -> NDArray[np.float32]:
        assert not sparse
        self.last_rows = 10 if look else self.vocab
        self._take(cache, [token])
        return self._after(cache.tokens)

    def decode_draft(
        self, cache: FakeCache, tokens: Sequence[int], *, look: bool = False
    ) -> NDArray[np.float32]:
        assert len(tokens) <= 1 + self.draft_tokens
        self.last_rows = len(tokens) * (10 if look else self.vocab)
        return self.logits(cache, tokens)

    def logits(self, cache: FakeCache, tokens: Sequence[int]) -> NDArray[np.float32]:
        rows = []
        for token in tokens:
            self._take(cache, [token])
            rows.append(self._after(cache.tokens))
        return np.stack(rows)

    def weight_bytes_per_token(self, context: int, rows: float | None = None) -> int:
        return 1000 + context if rows is None else 500 + context + int(rows)

    def close(self) -> None:
        self.closed = True

    def _take(self, cache: FakeCache, tokens: Sequence[int]) -> None:
        assert not self.closed
        self.before_step(cache)
        assert cache.length + len(tokens) <= cache.capacity
        cache.tokens += tokens
        self.evaluated += len(tokens)

    def _after(self, context: list[int]) -> NDArray[np.float32]:
        if self.reply is None:
            return random_logits(context, self.vocab)
        said = len(context) - last(context, START) - 1 - HEADER if START in context else 0
        logits = np.zeros(self.vocab, np.float32)
        logits[3 + self.reply[said] if said < len(self.reply) else END] = 50
        return logits


def random_logits(context: Sequence[int], vocab: int) -> NDArray[np.float32]:
    """Logits that the whole context decides, printable ASCII ahead of all else."""
    rng = np.random.default_rng([len(context), *context])
    logits = rng.normal(size=vocab).astype(np.float32)
    logits[3 + 32 : 3 + 127] += 12
    return logits


def last(items: Sequence[int], item: int) -> int:
    return len(items) - 1 - items[::-1].index(item)


def fake_model(
    folder: Path, reply: str | None = "Hello there.", context: int = 200, **config: Any
) -> tuple[Model, FakeEngine]:
    """A tiny model with a chat template and a byte-level tokenizer, on a fake engine."""
    random_packed(folder / "model", tiny_config(**config))
    return open_fake(folder / "model", reply, context)


def open_fake(folder: Path, reply: str | None, context: int) -> tuple[Model, FakeEngine]:
    packed = open_packed(folder)
    engine = FakeEngine(packed.config.vocab_size, reply)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", packed.info["tokenizer"])
    return Model(packed, cast("Any", engine), tokenizer, context), engine


def reopened(model: Model, engine: FakeEngine) -> Model:
    """The model, or another like it where it was closed."""
    if not model.closed:
        return model
    reply = None if engine.reply is None else engine.reply.decode()
    return open_fake(model.packed.folder, reply, model.context)[0]


def interrupt_after(tokens: int, model: Model, engine: FakeEngine) -> None:
    """Let Ctrl-C be pressed after so many tokens of the answer to "Hi"."""
    prompt = model.generate("Hi", max_tokens=1).stats.prompt_tokens
    engine.draft_tokens = 0  # a token that is read is then one of the answer

    def interrupt(cache: FakeCache) -> None:
        if cache.length == prompt + tokens:
            signal.raise_signal(signal.SIGINT)

    engine.before_step = interrupt
