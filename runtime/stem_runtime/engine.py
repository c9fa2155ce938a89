"""Runs a packed model: logits from tokens, with a cache of what was read before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from .cache_kinds import CacheKind, check_kind
from .errors import Cancelled as Cancelled
from .errors import UsageError
from .forking import new_lock
from .formats.packed import PackedModel
from .kernels import STEP, choose
from .kernels.cpu import layout as L
from .kernels.jit import load_unit
from .kv_cache import KVCache
from .team import Team
from .threads import count_threads
from .workspace import Workspace

if TYPE_CHECKING:
    from .neuron_tables import NeuronTables
    from .sparsity.head import HeadLook
    from .sparsity.neurons import Neurons
    from .sparsity.plan import FfnPlan

Logits = NDArray[np.float32]


class Engine:
    """A model ready to run on the CPU. One call at a time; the interpreter lock is released.

    `threads` defaults to the physical cores, `kernels` names a variant instead of the best one
    (see `kernels.choose`), `notify` receives a sentence when kernels must be compiled. `head` lets
    `decode` look at the vocabulary before it computes rows of the output head, `neurons` lets it
    skip those that a plan leaves out of the FFNs. `kv_cache` is the kind of cache that `new_cache`
    makes; either is read by every engine. Without `outliers` all of every input is rounded to int8,
    as on a GPU: for layers that a GPU computes others of. Raises KernelError, UsageError.
    """

    draft_tokens = L.STEP_TOKENS - 1
    """How many tokens `decode_draft` reads at most beside the first."""

    def __init__(
        self,
        model: PackedModel,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        notify: Callable[[str], None] | None = None,
        head: HeadLook | None = None,
        neurons: Neurons | None = None,
        kv_cache: CacheKind = "fp16",
        outliers: bool = True,
    ) -> None:
        check_kind(kv_cache)
        self.config = model.config
        self.kv_cache = kv_cache
        self.threads = count_threads(threads)
        self.kernels = choose(kernels)
        entries = load_unit(STEP, self.kernels.name, notify)
        self._work = Workspace(model, self.threads, self.kernels.token_block, outliers)
        if head is not None:
            self._work.set_look(head)
        if neurons is not None:
            self._work.set_neurons(neurons)
        self._team = Team(entries, self._work.args, self.threads, self)
        self._lock = new_lock()
        self._closed = False

    def new_cache(self, capacity: int, kind: CacheKind | None = None) -> KVCache:
        """A cache for `capacity` tokens, of the engine's `kv_cache` kind if not of another.

        Raises UsageError beyond the model's context length.
        """
        if not 1 <= capacity <= self.config.context_length:
            raise UsageError(
                f"capacity is from 1 to {self.config.context_length} tokens, not {capacity}."
            )
        return KVCache(self.config, capacity, kind or self.kv_cache)

    def prefill(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        *,
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Logits:
        """Read `tokens` after those in the cache; returns float32 [vocab] after the last.

        `cancel` is asked between chunks, `progress` receives the number of tokens read. Raises
        Cancelled (whole chunks stay in the cache), ContextFullError, UsageError.
        """
        with self._lock:
            self._check(cache, tokens)
            cache.rest[:] = 0
            for start, part in self._chunks(tokens):
                last = start + len(part) == len(tokens)
                if cancel is not None and cancel():
                    raise Cancelled("Reading the prompt was cancelled.")
                if len(tokens) == 1:
                    self._decode(cache, tokens[0])
                else:
                    self._run_chunk(cache, part, len(part) - 1 if last else len(part))
                if progress is not None:
                    progress(start + len(part))
            return self._work.logits[0, : self.config.vocab_size]

    def decode(
        self, cache: KVCache, token: int, *, look: bool = False, sparse: bool = False
    ) -> Logits:
        """Read one token; returns float32 [vocab], a view that the next call overwrites.

        With `look` only rows of the head that can still matter are computed, the logits of the
        others are -inf; raises UsageError for an engine that was made without a `head`. With
        `sparse` neurons are left out of the FFNs as the plan says; UsageError without one.
        """
        with self._lock:
            self._check(cache, (token,))
            return self._decode(cache, token, look, sparse)

    def decode_draft(self, cache: KVCache, tokens: Sequence[int], *, look: bool = False) -> Logits:
        """Read a token and up to `draft_tokens` that may follow it in one step, weights read once.

        Returns float32 [n, vocab], the logits after each, bit for bit those that `decode` returns
        for one after the other; the next call overwrites them. Tokens that turn out wrong are cut
        off with `KVCache.truncate`. `look` as for `decode`. Raises ContextFullError, UsageError.
        """
        most = 1 + self.draft_tokens
        if len(tokens) > most:
            raise UsageError(f"One step reads at most {most} tokens, not {len(tokens)}.")
        with self._lock:
            self._check(cache, tokens)
            self._run_step(cache, tokens, look)
            return self._work.logits[: len(tokens), : self.config.vocab_size]

    def set_plan(self, plan: FfnPlan | None) -> None:
        """What sparse calls leave out from now on. UsageError for a plan that does not fit."""
        with self._lock:
            self._neurons().set_plan(plan)

    @property
    def last_counts(self) -> NDArray[np.int64]:
        """Of the last step, int64 [n_layers, 8]: the columns are `neuron_tables.COUNTS`."""
        return self._neurons().counts

    @property
    def last_sharpness(self) -> NDArray[np.float32]:
        """Of the last decoded token, float32 [n_layers]: its largest attention weight, on average
        over the heads of a layer."""
        return self._neurons().sharpness

    def ffn_bytes(self, counts: NDArray[np.floating] | NDArray[np.int64]) -> float:
        """Bytes of FFN weights that a token reads, given its counts or mean counts."""
        return self._neurons().nbytes(counts)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the copies of candidates' records that sparse steps read, beside the files'."""
        return self._neurons().arena_bytes

    @property
    def last_rows(self) -> int:
        """Rows of the head that the last step computed in full, of all its tokens."""
        return self._work.rows_done

    def hidden(self, cache: KVCache, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read `tokens`; returns float32 [n, d_model], what the output head gets after each.

        That is the final norm's output with the logit scale folded in.
        """
        with self._lock:
            self._check(cache, tokens)
            out = np.empty((len(tokens), self.config.d_model), np.float32)
            for start, part in self._chunks(tokens):
                with self._work.states(len(part)) as states:
                    self._run_chunk(cache, part, len(part))
                    out[start : start + len(part)] = states[:, : self.config.d_model]
            return out

    def residual(
        self, cache: KVCache, tokens: Sequence[int], *, sparse: bool = False
    ) -> NDArray[np.float32]:
        """Read `tokens`; returns float32 [n, d_model], the residual stream after the last layer.

        That is what the next layer would get; the head is not computed. The next call may overwrite
        the array. One token is read as in `decode`, more are as in `logits`, in chunks. Raises
        Cancelled after `interrupt` (whole chunks stay in the cache), ContextFullError, UsageError.
        """
        with self._lock:
            self._check(cache, tokens)
            row = self._work.row
            if len(tokens) == 1:
                with self._work.residual(row):
                    self._decode(cache, tokens[0], sparse=sparse)
                return row[:, : self.config.d_model]
            cache.rest[:] = 0
            out = np.empty((len(tokens), row.shape[1]), np.float32)
            for start, part in self._chunks(tokens):
                with self._work.residual(out[start:]):
                    self._run_chunk(cache, part, len(part), sparse)
            return out[:, : self.config.d_model]

    def ffn_inputs(self, cache: KVCache, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read `tokens`; returns float32 [n_layers, n, d_model], what each FFN gets, normalized."""
        with self._lock:
            self._check(cache, tokens)
            shape = (self.config.n_layers, len(tokens), self.config.d_model)
            out = np.empty(shape, np.float32)
            for start, part in self._chunks(tokens):
                with self._work.ffn_states(len(part)) as states:
                    self._run_chunk(cache, part, len(part))
                    out[:, start : start + len(part)] = states[..., : self.config.d_model]
            return out

    def logits(self, cache: KVCache, tokens: Sequence[int], *, sparse: bool = False) -> Logits:
        """Read `tokens`; returns float32 [n, vocab], the logits after each of them.

        With `sparse` hidden values of neurons that fail the plan's tests are zero. That computes
        no less; it shows at the speed of reading what decoding would do with all neurons as
        candidates and without bounds on their number or regard to attention.
        """
        with self._lock:
            self._check(cache, tokens)
            vocab = self.config.vocab_size
            out = np.empty((len(tokens), vocab), np.float32)
            for start, part in self._chunks(tokens):
                self._run_chunk(cache, part, 0, sparse)
                out[start : start + len(part)] = self._work.logits[: len(part), :vocab]
            return out

    def interrupt(self) -> None:
        """Make a running `prefill`, `logits` or `residual` raise Cancelled after its current layer.

        Callable from any thread; without effect when nothing runs.
        """
        self._team.interrupt()

    def weight_bytes_per_token(self, context: int, rows: float | None = None) -> int:
        """Bytes that one decoded token reads with `context` tokens in a cache of `kv_cache` kind.

        `rows` is how many rows of the head are computed in full after a look, None for all.
        """
        return self._work.bytes_per_token(context, rows, self.kv_cache)

    def close(self) -> None:
        """Stop the threads and let go of the model. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._team.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, cache: KVCache, tokens: Sequence[int]) -> None:
        if self._closed:
            raise UsageError("This model is closed; load it again.")
        self._team.check()
        cache.check(tokens, self.config.vocab_size)

    def _neurons(self) -> NeuronTables:
        if self._work.ffn is None:
            raise UsageError("This engine was made without neurons to skip; calibrate first.")
        return self._work.ffn

    def _decode(
        self, cache: KVCache, token: int, look: bool = False, sparse: bool = False
    ) -> Logits:
        self._run_step(cache, (token,), look, sparse)
        if sparse:
            cache.captured = self._neurons().captured
        return self._work.logits[0, : self.config.vocab_size]

    def _run_step(
        self, cache: KVCache, tokens: Sequence[int], look: bool = False, sparse: bool = False
    ) -> None:
        self._work.aim(cache, tokens, 0, look, sparse)
        self._team.run(L.JOB_DECODE)
        cache.tokens.extend(tokens)

    def _chunks(self, tokens: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """The parts that one step each reads, with their places; old interrupts are forgotten."""
        self._team.interrupt(False)
        for start in range(0, len(tokens), self._work.chunk):
            yield start, tokens[start : start + self._work.chunk]

    def _run_chunk(
        self, cache: KVCache, tokens: Sequence[int], logits_from: int, sparse: bool = False
    ) -> None:
        self._work.reserve_prefill()
        self._work.aim(cache, tokens, logits_from, sparse=sparse)
        self._team.run(L.JOB_PREFILL)
        if self._team.interrupted:
            raise Cancelled("Reading the prompt was cancelled.")
        cache.tokens.extend(tokens)
