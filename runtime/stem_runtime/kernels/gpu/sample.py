"""From logits to the next token on the device, by the rules of `stem_runtime.sampling.Sampler`.

Random numbers are SplitMix64 (Steele, Lea and Flood, 2014), the draws and the order in which they
are laid over the tokens are the sampler's, and probabilities are float64: the same seed gives the
same token for the same logits, unless a draw falls within rounding of the border between two.

A logit and its token are one int64 key: the float's bits in an order that integers share, above 31
bits that are larger for lower tokens. The largest key is the best logit and, among equals, the
lowest token.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ...sampling_params import SamplingParams

FINE, NOT_FINITE, NOTHING_LEFT = range(3)
"""What became of a draw: a token; a logit that is NaN or plus infinity; all logits minus infinity.
"""

_SLICE = 4096
"""Logits of one program that looks for the best."""
_FEW = 128
"""So many best tokens are found slice by slice; for more everything is sorted."""
_PART = 1024
"""Tokens of one program that sums their weights."""
_NO_KEY = tl.constexpr(-0x7F800001 << 32)
"""Minus infinity, behind every token."""
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_NOTHING_LEFT = tl.constexpr(NOTHING_LEFT)


class DeviceSampler:
    """Chooses the next token of each of `batch` sequences, all with the same settings.

    `found` int32 [2, batch] receives them, and FINE, NOT_FINITE or NOTHING_LEFT; without a token to
    choose it is 0. All buffers are static, and settings and state
    lie on the device: `sample` can be captured in a graph, which is good for every later text with
    the same `variant`. `capacity` is how many tokens a text may have.
    """

    def __init__(
        self, vocab_size: int, capacity: int, device: torch.device | str, batch: int = 1
    ) -> None:
        def new(kind: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros((batch, *shape), dtype=kind, device=device)

        self.vocab_size, self.capacity, self.batch = vocab_size, capacity, batch
        self.found = torch.zeros((2, batch), dtype=torch.int32, device=device)
        self.variant: int | str = 1
        """What `sample` does: find so many best tokens, or "sort" or take "all" of them."""
        self._settings = torch.zeros(6, dtype=torch.float64, device=device)
        self._state = new(torch.int64)
        # how often each token is among the recent ones, these in a ring, and how many ever were
        self._counts = new(torch.int32, vocab_size)
        self._recent, self._pushed = new(torch.int32, capacity), new(torch.int32)
        self._window = torch.zeros(1, dtype=torch.int32, device=device)
        self._keys = new(torch.int64, vocab_size + _SLICE)
        self._sorted = new(torch.int64, vocab_size + _SLICE)
        self._order = new(torch.int64, vocab_size)
        self._peaks = new(torch.int64, triton.cdiv(vocab_size, _SLICE))
        self._parts = new(torch.float64, triton.cdiv(vocab_size, _PART), 2)

    def begin(self, params: SamplingParams, recent: Sequence[Sequence[int]] = ()) -> int:
        """Set out on new texts, whose tokens so far are `recent`, one sequence per text.

        Returns the seed in use. The n-th text has it plus n, the first one the sampler's own.
        """
        seed = secrets.randbits(64) if params.seed is None else params.seed
        vocab = self.vocab_size
        top_k = min(params.top_k or vocab, vocab)
        temperature = params.temperature
        if temperature == 0:
            # the only one that is left has all the weight
            temperature, top_k = 1.0, 1
        if top_k <= _FEW and (top_k < vocab or params.temperature == 0):
            self.variant = 1 if top_k == 1 else max(64, triton.next_power_of_2(top_k))
        elif top_k < vocab or params.top_p < 1:
            self.variant = "sort"
        else:
            self.variant = "all"
        # in float64, a product with the inverse of a float32 rounds as the quotient does
        penalty = torch.tensor(params.repetition_penalty, dtype=torch.float32).to(torch.float64)
        # any less divides no more: then only tokens as good as the best have weight
        inverse = 1 / max(temperature, 1e-300)
        settings = [inverse, params.top_p, params.min_p, penalty, 1 / penalty, top_k]
        self._settings.copy_(torch.tensor(settings, dtype=torch.float64))
        states = [(seed + n) % (1 << 64) for n in range(self.batch)]
        signed = [state - (state >> 63 << 64) for state in states]
        self._state.copy_(torch.tensor(signed, dtype=torch.int64))
        self._begin_recent(params, recent)
        return seed

    def _begin_recent(self, params: SamplingParams, recent: Sequence[Sequence[int]]) -> None:
        window = min(params.repeat_last, self.capacity) if params.repetition_penalty != 1 else 0
        self._window.fill_(window)
        self._counts.zero_()
        self._pushed.zero_()
        if not window:
            return
        for row, tokens in enumerate(recent):
            last = torch.tensor(tokens[-window:], dtype=torch.int64)
            counts = torch.bincount(last, minlength=self.vocab_size)
            self._counts[row].copy_(counts.to(torch.int32))
            self._recent[row, : len(last)].copy_(last.to(torch.int32))
            self._pushed[row] = len(last)

    @property
    def changing(self) -> tuple[torch.Tensor, ...]:
        """What a choice leaves for the next one: to choose anew, these must be as before."""
        return self._state, self._counts, self._recent, self._pushed

    def sample(self, logits: torch.Tensor, given: torch.Tensor | None = None) -> None:
        """Choose by `logits` float32 [batch, at least vocab_size] into `found`.

        `given` int32 [2 or more, batch], contiguous, are the tokens and positions of a step, which
        become those of the next one.
        """
        keys, peaks = self._candidates(logits)
        count = self.vocab_size if isinstance(self.variant, str) else self.variant
        part = min(_PART, max(16, triton.next_power_of_2(count)))
        parts = triton.cdiv(count, part)
        args = (keys, keys.stride(0), peaks, peaks.stride(0), self._settings, self._parts)
        sizes = {"PEAKS": peaks.shape[1], "PART": part, "PARTS": parts}
        sizes["PEAKS_PADDED"] = triton.next_power_of_2(peaks.shape[1])
        if parts > 1:
            _weigh[(parts, self.batch)](*args, **sizes, num_warps=4)
        _pick[(self.batch,)](
            *args,
            self.found,
            given,
            self._state,
            self._counts,
            self._recent,
            self._pushed,
            self._window,
            self.vocab_size,
            self.capacity,
            **sizes,
            PARTS_PADDED=triton.next_power_of_2(parts),
            num_warps=4,
        )

    def read(self) -> tuple[int, int]:
        """The token and the status of the first sequence; waits for the device."""
        tokens, status = self.found.tolist()
        return tokens[0], status[0]

    def _candidates(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [batch, ...], best first but for the variant "all", and some with the best one."""
        vocab = self.vocab_size
        slices = triton.cdiv(vocab, _SLICE)
        if not isinstance(self.variant, str):
            return self._best(logits, self.variant)
        _all_keys[(slices, self.batch)](
            self._keys,
            self._keys.stride(0),
            self._peaks,
            logits,
            logits.stride(0),
            self._counts,
            self._settings,
            vocab,
            SLICE=_SLICE,
            num_warps=8,
        )
        if self.variant == "all":
            return self._keys, self._peaks
        best_first = self._sorted[:, :vocab]
        torch.sort(self._keys[:, :vocab], 1, True, out=(best_first, self._order))
        return best_first, best_first[:, :1]

    def _best(self, logits: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of each slice, then the best of those, until one slice is left."""
        source, count, slices = logits, self.vocab_size, 0
        found, other = self._keys, self._sorted
        while slices != 1:
            first, slices = slices == 0, triton.cdiv(count, _SLICE)
            _best[(slices, self.batch)](
                found,
                found.stride(0),
                source,
                source.stride(0),
                self._counts,
                self._settings,
                count,
                FIRST=first,
                LAST=slices == 1,
                SLICE=_SLICE,
                WANTED=wanted,
                num_warps=8,
            )
            source, count = found, slices * wanted
            found, other = other, found
        return source, source[:, :1]


@triton.jit
def _order(bits):
    """Between the bits of a float, int32, and an integer that is larger where the float is."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _keys_of(logits, counts, settings, token, vocab):
    """Keys of the penalized logits of `token`; NaN goes as plus infinity.

    Tokens behind the vocabulary are as minus infinity, all different like the others.
    """
    valid = token < vocab
    logit = tl.load(logits + token, mask=valid, other=float("-inf"))
    penalty = tl.where(logit > 0, tl.load(settings + 4), tl.load(settings + 3))
    penalized = (logit.to(tl.float64) * penalty).to(tl.float32)
    logit = tl.where(tl.load(counts + token, mask=valid, other=0) > 0, penalized, logit)
    logit = tl.where(logit != logit, float("inf"), logit)
    # zeros of both signs are equal
    logit = tl.where(logit == 0, 0.0, logit)
    rank = _order(logit.to(tl.int32, bitcast=True)).to(tl.int64)
    return (rank << 32) | (0x7FFFFFFF - token)


@triton.jit
def _logit_of(key):
    return _order((key >> 32).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def _all_keys(
    keys, keys_stride, peaks, logits, logits_stride, counts, settings, vocab, SLICE: tl.constexpr
):
    row = tl.program_id(1)
    token = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    key = _keys_of(logits + row * logits_stride, counts + row * vocab, settings, token, vocab)
    tl.store(keys + row * keys_stride + token, key, mask=token < vocab)
    tl.store(peaks + row * tl.num_programs(0) + tl.program_id(0), tl.max(key, axis=0))


@triton.jit
def _bound(key, WANTED: tl.constexpr):
    """A number that exactly WANTED of the keys reach, the best all different; found by halving."""
    low, high = tl.min(key, axis=0), tl.max(key, axis=0)
    # as many reach `low`, and less than WANTED exceed `high`
    reach = key.shape[0]
    while reach != WANTED:
        # rounded up, without overflow
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        count = tl.sum((key >= middle).to(tl.int32), axis=0)
        enough = count >= WANTED
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
        reach = tl.where(enough, count, reach)
    return low


@triton.jit
def _best(
    found,
    found_stride,
    source,
    source_stride,
    counts,
    settings,
    count,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SLICE: tl.constexpr,
    WANTED: tl.constexpr,
):
    row = tl.program_id(1)
    place = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    here = source + row * source_stride
    if FIRST:
        key = _keys_of(here, counts + row * count, settings, place, count)
    else:
        # SLICE and `count` are multiples of WANTED: what fills up a slice is never among its best
        key = tl.load(here + place, mask=place < count, other=_NO_KEY)
    to = found + row * found_stride + tl.program_id(0) * WANTED
    if WANTED == 1:
        tl.store(to, tl.max(key, axis=0))
    else:
        chosen = key >= _bound(key, WANTED)
        tl.store(to + tl.cumsum(chosen.to(tl.int32), axis=0) - 1, key, mask=chosen)
        if LAST:
            tl.debug_barrier()
            key = tl.load(to + tl.arange(0, WANTED))
            better = (key[None, :] > key[:, None]).to(tl.int32)
            tl.debug_barrier()
            tl.store(to + tl.sum(better, axis=1), key)


@triton.jit
def _best_logit(peaks, PEAKS: tl.constexpr, PEAKS_PADDED: tl.constexpr):
    i = tl.arange(0, PEAKS_PADDED)
    key = tl.load(peaks + i, mask=i < PEAKS, other=_NO_KEY)
    return _logit_of(tl.max(key, axis=0)).to(tl.float64)


@triton.jit
def _weights(keys, part, best, settings, PART: tl.constexpr):
    """Weights of a part of the keys relative to the best one's, and those that min_p allows."""
    i = part * PART + tl.arange(0, PART)
    key = tl.load(keys + i, mask=i < tl.load(settings + 5), other=_NO_KEY)
    x = (_logit_of(key).to(tl.float64) - best) * tl.load(settings)
    weight = tl.where(x > -700.0, tl.exp(x), 0.0)
    return weight, tl.where(weight >= tl.load(settings + 2), weight, 0.0)


@triton.jit
def _weigh(
    keys,
    keys_stride,
    peaks,
    peaks_stride,
    settings,
    sums,
    PEAKS: tl.constexpr,
    PEAKS_PADDED: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    part, row = tl.program_id(0), tl.program_id(1)
    best = _best_logit(peaks + row * peaks_stride, PEAKS, PEAKS_PADDED)
    weight, allowed = _weights(keys + row * keys_stride, part, best, settings, PART)
    to = sums + 2 * (row * PARTS + part)
    tl.store(to, tl.sum(weight, axis=0))
    tl.store(to + 1, tl.sum(allowed, axis=0))


@triton.jit
def _uniform(state):
    """The number of SplitMix64 for `state` uint64, as a float64 in [0, 1)."""
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return ((z ^ (z >> 31)) >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def _push(token, counts, recent, pushed, window, capacity):
    """Let `token` in among the last `window` ones, and the oldest out."""
    if window > 0:
        count = tl.load(pushed)
        if count >= window:
            oldest = counts + tl.load(recent + (count - window) % capacity)
            tl.store(oldest, tl.load(oldest) - 1)
        tl.store(counts + token, tl.load(counts + token) + 1)
        tl.store(recent + count % capacity, token)
        tl.store(pushed, count + 1)


@triton.jit
def _pick(
    keys,
    keys_stride,
    peaks,
    peaks_stride,
    settings,
    sums,
    found,
    given,
    state,
    counts,
    recent,
    pushed,
    window,
    vocab,
    capacity,
    PEAKS: tl.constexpr,
    PEAKS_PADDED: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
):
    row = tl.program_id(0)
    keys += row * keys_stride
    best = _best_logit(peaks + row * peaks_stride, PEAKS, PEAKS_PADDED)
    part = tl.arange(0, PARTS_PADDED)
    if PARTS == 1:
        weight, allowed = _weights(keys, 0, best, settings, PART)
        total = tl.sum(weight, axis=0)
        of_part = tl.sum(allowed, axis=0) + tl.zeros((1,), tl.float64)
    else:
        from_sums = sums + 2 * (row * PARTS + part)
        total = tl.sum(tl.load(from_sums, mask=part < PARTS, other=0.0), axis=0)
        of_part = tl.load(from_sums + 1, mask=part < PARTS, other=0.0)
    top_p = tl.load(settings + 1)
    limit = tl.where(top_p < 1.0, top_p * total, float("inf"))

    # the nucleus ends in this part
    reached = tl.cumsum(of_part, axis=0)
    before = reached - of_part
    held = (of_part > 0.0) & (before < limit)
    last = tl.max(tl.where(held, part, 0), axis=0)
    base = tl.sum(tl.where(part == last, before, 0.0), axis=0)
    _, allowed = _weights(keys, last, best, settings, PART)
    kept = base + tl.cumsum(allowed, axis=0) - allowed < limit
    turn = tl.load(state + row).to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15
    target = _uniform(turn) * (base + tl.sum(tl.where(kept, allowed, 0.0), axis=0))

    # and the draw falls into this one
    drawn = tl.min(tl.where(held & (reached > target), part, last), axis=0)
    base = tl.sum(tl.where(part == drawn, before, 0.0), axis=0)
    _, allowed = _weights(keys, drawn, best, settings, PART)
    reach = base + tl.cumsum(allowed, axis=0)
    kept = (allowed > 0.0) & (reach - allowed < limit)
    i = tl.arange(0, PART)
    # rounding may leave the last one short of the target
    chosen = tl.minimum(
        tl.min(tl.where(kept & (reach > target), i, PART), axis=0),
        tl.max(tl.where(kept, i, 0), axis=0),
    )
    key = tl.load(keys + drawn * PART + chosen)
    usable = (best < float("inf")) & (best > float("-inf"))
    token = tl.where(usable, 0x7FFFFFFF - (key & 0x7FFFFFFF), 0).to(tl.int32)
    # one thread stores, and the others must have read the state by then
    tl.debug_barrier()
    tl.store(state + row, turn.to(tl.int64, bitcast=True))
    tl.store(found + row, token)
    failed = tl.where(best > 0.0, _NOT_FINITE, _NOTHING_LEFT)
    tl.store(found + tl.num_programs(0) + row, tl.where(usable, 0, failed))
    if given is not None:
        tl.store(given + row, token)
        position = given + tl.num_programs(0) + row
        tl.store(position, tl.load(position) + 1)
    if usable:
        here = counts + row * vocab
        _push(token, here, recent + row * capacity, pushed + row, tl.load(window), capacity)
