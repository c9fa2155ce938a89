"""One generation: prompt tokens in, chunks of text out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from stem_runtime.energy import EnergyMeter
from stem_runtime.engine import Cancelled
from stem_runtime.stats import Stats
from stem_runtime.text import StopMatcher

from .choosing import Choosing, choosing
from .completion import Chunk, FinishReason
from .decoding import Decoding, total_cost
from .generate_options import Options
from .live import Live
from .sparsity import Sparsity, needs_whole_head

if TYPE_CHECKING:
    from stem_runtime.kv_cache import KVCache

    from .model import Model
    from .sparsity import Choice

_RATE_SECONDS = 1.0
"""How far back the speed of an answer under way looks."""


class Generation:
    """Runs one prompt on a model. Not shared between threads; the model may be.

    The engine works for one generation at a time: each prefill and each token takes the model's
    lock, and several generations take turns, every one on a KV cache of its own. `live`, `steer`
    and `stop` may be called from any thread.
    """

    def __init__(
        self,
        model: Model,
        prompt: list[int],
        options: Options,
        started: float,
        dropped: int,
        *,
        continues: bool = False,
    ) -> None:
        """`prompt` fits in the model's context; `started` is the perf_counter of the call.

        `continues`: the answer goes on where the prompt's text ends, a leading space included.
        """
        self._model = model
        self._prompt = prompt
        self._options = options
        self._started = started
        self._dropped = dropped
        self._stream = model.tokenizer.stream(continues=continues)
        self._matcher = StopMatcher(options.stop)
        self._history = list(prompt)
        self._choice = self._choose(options.sparsity, options.quality)
        self._wanted: Choice | None = None
        self._decodings: list[Decoding] = []
        self._stopped = threading.Event()
        self._marks: deque[tuple[float, int]] = deque()
        self._energy = EnergyMeter()
        self._reused = 0
        self._read = 0
        self._prefill_seconds = 0.0
        self._decode_seconds = 0.0
        self._first_token_seconds = 0.0
        self._unsent: list[int] = []

    def chunks(self) -> Iterator[Chunk]:
        """Yield the answer as it comes; the last chunk carries the reason and the figures."""
        cache = self._model.borrow_cache()
        try:
            self._begin(cache)
            chooser = choosing(self._model, cache, self._options, self._limit(cache))
            with closing(chooser):
                first = self._prefill(chooser)
                if first is None:
                    yield self._chunk(chooser, "", "cancelled")
                else:
                    yield from self._decode(cache, chooser, first)
        finally:
            self._model.give_back_cache(cache)

    def stop(self) -> None:
        """End the answer with what there is of it; a prompt being read stops within a layer."""
        self._stopped.set()
        if not self._model.closed:
            self._model.engine.interrupt()

    def steer(self, sparsity: Sparsity, quality: float | None = None) -> None:
        """Leave out something else from the next token on.

        Raises UsageError for what `Model.choose` refuses; the answer then goes on as it was.
        """
        self._wanted = self._choose(sparsity, quality)

    def live(self) -> Live:
        """Where the answer stands."""
        model, prompt = self._model, len(self._prompt)
        tokens = len(self._history) - prompt
        decoding = self._decodings[-1] if self._decodings else None
        active, layers = (0, ()) if decoding is None else decoding.recent()
        return Live(
            prompt_done=self._read,
            prompt_total=prompt,
            tokens=tokens,
            tokens_per_second=self._recent_rate(tokens),
            active_parameters=active,
            total_parameters=model.packed.parameters,
            layer_active_fraction=layers,
            context_used=self._read + tokens,
            context=model.context,
            sparsity=self._choice.reason,
        )

    def _recent_rate(self, tokens: int) -> float:
        """Tokens per second since about a second ago, or since the first one if that is later."""
        now, marks = time.perf_counter(), self._marks
        if tokens:
            marks.append((now, tokens))
        while len(marks) > 2 and now - marks[1][0] >= _RATE_SECONDS:
            marks.popleft()
        if not marks or now <= marks[0][0]:
            return 0.0
        return (tokens - marks[0][1]) / (now - marks[0][0])

    def _choose(self, sparsity: Sparsity | None, quality: float | None) -> Choice:
        options = self._options
        whole_head = needs_whole_head(options.sampling, options.logprobs)
        return self._model.choose(sparsity, quality, whole_head)

    def _cancelled(self) -> bool:
        asked = self._options.cancelled
        return self._stopped.is_set() or (asked is not None and asked())

    def _limit(self, cache: KVCache) -> int:
        """How many tokens the prompt and the answer may have together."""
        return min(len(self._prompt) + self._options.max_tokens, cache.capacity)

    def _begin(self, cache: KVCache) -> None:
        """Cut the cache back to what it shares with the prompt."""
        held = cache.length
        self._reused = self._read = common_prefix(cache.tokens, self._prompt)
        cache.truncate(self._reused)
        with self._model.engine_lock:
            self._decodings.append(Decoding(self._model, self._choice, cache, held))

    def _turn(self, choice: Choice, cache: KVCache) -> Decoding:
        """Decode otherwise from here on."""
        self._choice = choice
        decoding = Decoding(self._model, choice, cache, cache.length)
        self._decodings.append(decoding)
        return decoding

    def _prefill(self, chooser: Choosing) -> int | None:
        """Evaluate what the cache does not hold yet. Returns the first token, None if cancelled."""
        model, reused = self._model, self._reused

        def progress(done: int) -> None:
            self._read = reused + done

        start = time.perf_counter()
        if self._cancelled():
            return None
        try:
            with model.engine_lock:
                logits = self._decodings[-1].prefill(
                    self._prompt[reused:], self._cancelled, progress
                )
                self._read = len(self._prompt)
                self._prefill_seconds = time.perf_counter() - start
                token = chooser.first(logits, self._history)
        except Cancelled:
            self._prefill_seconds = time.perf_counter() - start
            return None
        self._first_token_seconds = time.perf_counter() - self._started
        return token

    def _decode(self, cache: KVCache, chooser: Choosing, token: int) -> Iterator[Chunk]:
        model, limit = self._model, self._limit(cache)
        lock, cancelled, clock = model.engine_lock, self._cancelled, time.perf_counter
        decoding = self._decodings[-1]
        ends, stream, matcher = model.tokenizer.eos, self._stream, self._matcher
        energy = self._energy
        history, unsent = self._history, self._unsent
        reason: FinishReason = "stop"
        text, stopped = "", False
        energy.start()
        resumed = clock()
        while token not in ends:
            history.append(token)
            unsent.append(token)
            text, stopped = matcher.push(stream.push(token))
            if stopped:
                break
            if len(history) == limit:
                answer = len(history) - len(self._prompt)
                reason = "length" if answer == self._options.max_tokens else "context"
                break
            if cancelled():
                reason = "cancelled"
                break
            if text:
                self._decode_seconds += clock() - resumed
                energy.stop()
                yield self._chunk(chooser, text)
                energy.start()
                text, resumed = "", clock()
            with lock:
                wanted, self._wanted = self._wanted, None
                if wanted is not None:
                    decoding = self._turn(wanted, cache)
                token = chooser.next(decoding, token, history)
        self._decode_seconds += clock() - resumed
        energy.stop()
        if not stopped:
            more, stopped = matcher.push(stream.flush())
            text += more if stopped else more + matcher.flush()
        yield self._chunk(chooser, text, reason)

    def _chunk(self, chooser: Choosing, text: str, reason: FinishReason | None = None) -> Chunk:
        tokens = tuple(self._unsent)
        self._unsent.clear()
        stats = None if reason is None else self._stats()
        return Chunk(text, tokens, reason, stats, chooser.told(len(tokens)), self._dropped)

    def _stats(self) -> Stats:
        prompt = len(self._prompt)
        answer = len(self._history) - prompt
        with self._model.engine_lock:
            engine = self._model.engine
            cost = total_cost(self._decodings, prompt + answer // 2)
        joules, parts = self._energy.joules, self._decodings
        decoded = sum(part.tokens for part in parts)
        return Stats(
            model=self._model.name,
            kernels=engine.kernels.name,
            threads=engine.threads,
            prompt_tokens=prompt,
            reused_tokens=self._reused,
            completion_tokens=answer,
            decode_steps=sum(part.steps for part in parts),
            drafted_tokens=sum(part.drafted for part in parts),
            accepted_tokens=sum(part.accepted for part in parts),
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            time_to_first_token=self._first_token_seconds,
            sparsity=" -> ".join(part.account for part in parts),
            joules_per_token=joules / decoded if joules is not None and decoded else None,
            **cost.fields(),
        )


def common_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Count the leading tokens of `prompt` found in `held`, leaving at least one to evaluate."""
    most = min(len(held), len(prompt) - 1)
    return next((i for i in range(most) if held[i] != prompt[i]), most)


class Stream(Iterator[Chunk]):
    """An answer as it comes: iterate over its chunks; closing it ends it where it is.

    `live`, `steer` and `stop` may be called from any thread while another one iterates.
    """

    def __init__(self, generation: Generation, chunks: Iterator[Chunk]) -> None:
        self._generation = generation
        self._chunks = chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """Stop and give the model back; no last chunk comes. Not while another thread iterates."""
        self._chunks.close()  # type: ignore[attr-defined]

    def live(self) -> Live:
        """Where the answer stands."""
        return self._generation.live()

    def steer(self, sparsity: Sparsity, quality: float | None = None) -> None:
        """Leave out something else from the next token on.

        Raises UsageError for what the model cannot leave out; the answer then goes on as it was.
        """
        self._generation.steer(sparsity, quality)

    def stop(self) -> None:
        """End the answer with what there is of it; its last chunk says "cancelled"."""
        self._generation.stop()
