"""Runs a packed model on a graphics card: the same calls as `stem_runtime.engine.Engine`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache_kinds import CacheKind
from ..errors import Cancelled, KernelError, UsageError
from ..formats.packed import PackedModel
from ..kernels import DeviceChoice
from ..kv_cache import KVCache
from ..neuron_tables import NeuronTables
from ..sampling import _unusable
from ..sampling_params import SamplingParams
from ..sparsity.neurons import Neurons
from ..sparsity.plan import FfnPlan
from .cache import GpuCache
from .parts import Parts
from .placement import Placement
from .torch_step import Watch

if TYPE_CHECKING:
    from ..kernels.gpu.sample import DeviceSampler

_CHUNK = 256
"""Tokens of a prompt that one pass reads: cancelling waits for one of them at most."""

_MOST_TEXTS = 8
"""Texts that one step decodes together."""

Logits = NDArray[np.float32]


class GpuEngine:
    """A model ready to run on the device of `choice`. One call at a time.

    What `Engine` says of its arguments and calls holds here, but for this: the whole head is always
    computed, also where a look is asked for, and layers of which nearly all neurons fire do not
    rest from skipping them. `placement` says what of the model runs on the CPU, nothing unless it
    is given; there `threads`, `kernels` and `notify` are those of `Engine`. Afterwards `kernels` is
    the choice. Caches are fp16, those of the CPU's layers, too. Raises KernelError where the card's
    memory is too small.
    """

    kv_cache: CacheKind = "fp16"

    def __init__(
        self,
        model: PackedModel,
        choice: DeviceChoice,
        *,
        neurons: Neurons | None = None,
        placement: Placement | None = None,
        threads: int | None = None,
        kernels: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.kernels = model.config, choice
        self.placement = placement or Placement(model.config.n_layers)
        self._model, self._device = model, torch.device(choice.name)
        self._tables = None if neurons is None else NeuronTables(model, neurons, 1)
        host = {"threads": threads, "kernels": kernels, "notify": notify}
        with _room_for("this model"):
            self._parts = Parts(model, choice.backend, self._device, neurons, self.placement, host)
        self._step = self._parts.step
        self._last: torch.Tensor | None = None
        self._pinned: dict[torch.Size, torch.Tensor] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._closed = False

    @property
    def threads(self) -> int:
        """Threads that compute; one tells the card what to do."""
        return self._parts.threads

    def new_cache(self, capacity: int) -> GpuCache:
        """A cache for `capacity` tokens. Raises UsageError beyond the model's context length,
        KernelError where the card's memory is too small."""
        return self.new_caches(1, capacity)[0]

    def new_caches(self, count: int, capacity: int) -> tuple[GpuCache, ...]:
        """Caches of one family, for `decode_batch`. Raises what `new_cache` raises."""
        if not 1 <= capacity <= self.config.context_length:
            raise UsageError(
                f"capacity is from 1 to {self.config.context_length} tokens, not {capacity}."
            )
        with _room_for(f"a context of {capacity} tokens"):
            return self._parts.new_caches(count, capacity)

    @torch.inference_mode()
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
            own = self._check(cache, tokens)
            own.rest[:] = 0
            for start, part in self._chunks(tokens):
                if cancel is not None and cancel():
                    raise Cancelled("Reading the prompt was cancelled.")
                if len(tokens) == 1:
                    last = self._advance(own, part[0])
                else:
                    states = self._read(own, part)
                    if start + len(part) == len(tokens):
                        last = self._last = self._step.logits(states[-1:])[0]
                if progress is not None:
                    progress(start + len(part))
            return self._fetch(last)

    @torch.inference_mode()
    def decode(
        self,
        cache: KVCache,
        token: int,
        *,
        look: bool = False,  # noqa: ARG002 (the dense head has what a look would find)
        sparse: bool = False,
    ) -> Logits:
        """Read one token; returns float32 [vocab], which the next call may overwrite.

        With `sparse` neurons are left out of the FFNs as the plan says; UsageError without one.
        """
        with self._lock:
            own = self._check(cache, (token,), sparse=sparse)
            return self._fetch(self._advance(own, token, sparse=sparse))

    @torch.inference_mode()
    def decode_batch(
        self, caches: Sequence[KVCache], tokens: Sequence[int], *, sparse: bool = False
    ) -> Logits:
        """Read one token of each of 1 to 8 texts; returns float32 [n, vocab].

        The next call may overwrite what is returned. The caches are different ones of one family
        (see `new_caches`), each of any length. Raises UsageError otherwise, and what `decode`
        raises.
        """
        with self._lock:
            own = self._check_batch(caches, tokens, sparse=sparse)
            logits = self._fetch(self._step.decode_batch(own, tokens, sparse=sparse))
            for cache, token in zip(own, tokens, strict=True):
                cache.tokens.append(token)
            self._last = None
            return logits

    @torch.inference_mode()
    def begin_text(self, cache: KVCache, params: SamplingParams, recent: Sequence[int] = ()) -> int:
        """Prepare to choose tokens of a text on the device, by settings; returns the seed in use.

        `recent` are its tokens so far, for the repetition penalty. The same seed gives the tokens
        of `sampling.Sampler`, as far as logits are the same. Raises UsageError where Triton does
        not run: there `Sampler` takes the logits of `decode`.
        """
        if self.kernels.backend != "triton":
            raise UsageError("Choosing tokens on the device needs Triton.")
        from ..kernels.gpu.sample import DeviceSampler

        with self._lock:
            own = self._check(cache)
            if own.sampler is None:
                own.sampler = DeviceSampler(self.config.vocab_size, own.capacity, self._device)
            return own.sampler.begin(params, [recent])

    @torch.inference_mode()
    def choose(self, cache: KVCache) -> int:
        """The token to follow what was read last, into `cache`; it alone comes from the device.

        Raises StemError where the logits cannot be used, UsageError where nothing was read or
        `begin_text` was not called.
        """
        with self._lock:
            sampler = _sampler_of(self._check(cache))
            if self._last is None:
                raise UsageError("Nothing was read that a token could follow.")
            sampler.sample(self._last[None])
            return _usable(*sampler.read())

    @torch.inference_mode()
    def follow(self, cache: KVCache, token: int, *, sparse: bool = False) -> int:
        """Read one token and choose the one to follow it, in one go on the device.

        Raises what `decode` and `choose` raise.
        """
        with self._lock:
            own = self._check(cache, (token,), sparse=sparse)
            _sampler_of(own)
            self._last = None
            chosen, status = self._step.follow(own, token, sparse=sparse)
            own.tokens.append(token)
            return _usable(chosen, status)

    @torch.inference_mode()
    def logits(self, cache: KVCache, tokens: Sequence[int], *, sparse: bool = False) -> Logits:
        """Read `tokens`; returns float32 [n, vocab], the logits after each of them."""
        with self._lock:
            own = self._check(cache, tokens, sparse=sparse)
            out = np.empty((len(tokens), self.config.vocab_size), np.float32)
            for start, part in self._chunks(tokens):
                states = self._read(own, part, sparse=sparse)
                out[start : start + len(part)] = self._step.logits(states).cpu().numpy()
            return out

    @torch.inference_mode()
    def hidden(self, cache: KVCache, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read `tokens`; returns float32 [n, d_model], what the output head gets after each."""
        with self._lock:
            own = self._check(cache, tokens)
            parts = [self._read(own, part).cpu().numpy() for _, part in self._chunks(tokens)]
            return np.concatenate(parts)

    @torch.inference_mode()
    def ffn_inputs(self, cache: KVCache, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read `tokens`; returns float32 [n_layers, n, d_model], what each FFN gets, normalized.

        Raises UsageError where some layers are on the CPU.
        """
        with self._lock:
            own = self._check(cache, tokens)
            if not self._parts.whole_layers:
                raise UsageError("What FFNs get can be studied on one device; use device='cpu'.")
            out = np.empty((self.config.n_layers, len(tokens), self.config.d_model), np.float32)
            for start, part in self._chunks(tokens):
                target = out[:, start : start + len(part)]

                def keep(index: int, x: torch.Tensor, target: NDArray[np.float32] = target) -> None:
                    target[index] = x.cpu().numpy()

                self._read(own, part, keep)
            return out

    def set_plan(self, plan: FfnPlan | None) -> None:
        """What sparse calls leave out from now on. UsageError for a plan that does not fit."""
        with self._lock:
            self._known().set_plan(plan)
            self._parts.set_plan(plan)

    @property
    def last_counts(self) -> NDArray[np.int64]:
        """Of the last step, int64 [n_layers, 8]: the columns are `neuron_tables.COUNTS`."""
        self._known()
        return self._parts.counts

    @property
    def last_sharpness(self) -> NDArray[np.float32]:
        """Of the last decoded token, float32 [n_layers]: its largest attention weight, on average
        over the heads of a layer."""
        self._known()
        return self._parts.sharpness

    def ffn_bytes(self, counts: NDArray[np.floating] | NDArray[np.int64]) -> float:
        """Bytes of FFN weights that a token reads, given its counts or mean counts."""
        return self._known().nbytes(counts)

    @property
    def last_rows(self) -> int:
        """Rows of the head that the last `decode` computed: all of them."""
        return self.config.vocab_size

    def interrupt(self) -> None:
        """Make a running `prefill` or `logits` raise Cancelled before its next layer.

        Callable from any thread; without effect when nothing runs.
        """
        self._stop.set()
        self._parts.interrupt()

    def weight_bytes_per_token(
        self,
        context: int,
        rows: float | None = None,  # noqa: ARG002 (the head is never looked at in parts)
    ) -> int:
        """Bytes that one decoded token reads with `context` tokens in the cache."""
        config, model = self.config, self._model
        embed = 0 if config.tied_head else model.matrix("embed").nbytes
        seen = sum(min(window or context, context) for window in config.layer_windows)
        return model.nbytes - embed + 4 * config.kv_heads * config.head_dim * seen

    def close(self) -> None:
        """Let go of the model and the card's memory. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._last = None
                del self._step
                self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(
        self, cache: KVCache, tokens: Sequence[int] | None = None, *, sparse: bool = False
    ) -> GpuCache:
        if self._closed:
            raise UsageError("This model is closed; load it again.")
        if not isinstance(cache, GpuCache):
            raise UsageError("This cache belongs to an engine on the CPU; make one with new_cache.")
        if tokens is not None:
            cache.check(tokens, self.config.vocab_size)
        if cache.first != self.placement.first:
            self._take_over(cache)
        if sparse and self._known().plan is None:
            raise UsageError("There is no plan of what to leave out; set one first.")
        return cache

    def _check_batch(
        self, caches: Sequence[KVCache], tokens: Sequence[int], *, sparse: bool
    ) -> list[GpuCache]:
        if not 1 <= len(caches) <= _MOST_TEXTS or len(caches) != len(tokens):
            raise UsageError(
                f"A batch is of 1 to {_MOST_TEXTS} caches and a token for each, not "
                f"{len(caches)} and {len(tokens)}."
            )
        pairs = zip(caches, tokens, strict=True)
        own = [self._check(cache, (token,), sparse=sparse) for cache, token in pairs]
        if len({id(cache.family) for cache in own}) > 1:
            raise UsageError("The caches of a batch must have been made by one new_caches.")
        if len({cache.slot for cache in own}) < len(own):
            raise UsageError("A cache is in the batch twice.")
        return own

    def _take_over(self, cache: GpuCache) -> None:
        """Read anew what a cache holds that was made for another placement of the model."""
        (fresh,) = self.new_caches(1, cache.capacity)
        for _, part in self._chunks(cache.tokens):
            self._read(fresh, part)
        cache.move_to(fresh)

    def _known(self) -> NeuronTables:
        if self._tables is None:
            raise UsageError("This engine was made without neurons to skip; calibrate first.")
        return self._tables

    def _advance(self, cache: GpuCache, token: int, *, sparse: bool = False) -> torch.Tensor:
        self._last = logits = self._step.decode(cache, token, sparse=sparse)
        cache.tokens.append(token)
        return logits

    def _fetch(self, logits: torch.Tensor) -> Logits:
        """Logits in memory of the host, which the next call may overwrite."""
        if self._device.type != "cuda":
            return logits.cpu().numpy()
        if logits.shape not in self._pinned:
            # a card copies to it several times as fast
            self._pinned[logits.shape] = torch.empty_like(logits, device="cpu", pin_memory=True)
        return self._pinned[logits.shape].copy_(logits).numpy()

    def _chunks(self, tokens: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """The parts that one pass each reads, with their places; old interrupts are forgotten."""
        self._stop.clear()
        for start in range(0, len(tokens), _CHUNK):
            yield start, tokens[start : start + _CHUNK]

    def _read(
        self,
        cache: GpuCache,
        tokens: Sequence[int],
        ffn_inputs: Callable[[int, torch.Tensor], None] | None = None,
        *,
        sparse: bool = False,
    ) -> torch.Tensor:
        self._last = None
        watch = Watch(self._stop.is_set, ffn_inputs)
        states = self._step.read(cache, tokens, watch, sparse=sparse)
        if states is None:
            raise Cancelled("Reading the prompt was cancelled.")
        cache.tokens.extend(tokens)
        return states


def _sampler_of(cache: GpuCache) -> DeviceSampler:
    if cache.sampler is None:
        raise UsageError("It is not said how to choose tokens; call begin_text first.")
    return cache.sampler


def _usable(token: int, status: int) -> int:
    from ..kernels.gpu.sample import NOT_FINITE

    if status:
        raise _unusable(status == NOT_FINITE)
    return token


@contextmanager
def _room_for(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise KernelError(
            f"The card's memory has no room for {what}; take a smaller context, or device='cpu'."
        ) from error
