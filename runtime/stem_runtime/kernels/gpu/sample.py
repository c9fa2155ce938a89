"""From logits to the next token on the device, by the rules of `stem_runtime.sampling.Sampler`.

Random numbers are SplitMix64 (Steele, Lea and Flood, 2014), the draws and the order in which they
are laid over the tokens are the sampler's: the same seed gives the same token for the same logits,
unless a draw falls within rounding of the border between two.

A logit and its token are one int64 key: the float's bits in an order that integers share, above
bits that are larger for lower tokens. The largest key is the best logit and, among equals, the
lowest token.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
import triton

from ...sampling_params import SamplingParams
from . import sample_draw, sample_keys, sample_search
from .dot import EMULATE
from .sample_draw import FINE as FINE
from .sample_draw import NOT_FINITE as NOT_FINITE
from .sample_draw import NOTHING_LEFT as NOTHING_LEFT
from .sample_search import COUNT, DRAW, DRAW_ALL, KEY_DIGITS, NUCLEUS, TOKEN_DIGITS

_SLICE = 4096
"""Logits of one program that looks for the best."""
_FEW = 128
"""So many best tokens are found slice by slice; the last of more is searched for among all."""
_PART = 16384 if EMULATE else 1024
"""Tokens of one program that sums their weights, so many of them at a time."""
_ROWS = _PART if EMULATE else 64

Tensor = torch.Tensor


class DeviceSampler:
    """Chooses the next token of each of `batch` sequences, all with the same settings.

    `found` int32 [2, batch] receives them, and FINE, NOT_FINITE or NOTHING_LEFT; without a token to
    choose it is 0. All buffers are static, and settings and state lie on the device: `sample` can
    be captured in a graph, which is good for every later text with the same `variant`. `capacity`
    is how many tokens a text may have.
    """

    def __init__(
        self, vocab_size: int, capacity: int, device: torch.device | str, batch: int = 1
    ) -> None:
        def new(kind: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros((batch, *shape), dtype=kind, device=device)

        self.vocab_size, self.capacity, self.batch = vocab_size, capacity, batch
        self.found = torch.zeros((2, batch), dtype=torch.int32, device=device)
        self.variant: int | str = 1
        """What `sample` does: find so many best tokens, or the last of "top_k", or of the
        "nucleus", or draw from "all"."""
        self._settings = torch.zeros(6, dtype=torch.float64, device=device)
        self._state = new(torch.int64)
        # how often each token is among the recent ones, these in a ring, and how many ever were
        self._counts = new(torch.int32, vocab_size)
        self._recent, self._pushed = new(torch.int32, capacity), new(torch.int32)
        self._window = torch.zeros(1, dtype=torch.int32, device=device)
        self._keys = new(torch.int64, vocab_size + _SLICE)
        # the other half of rounds that look for the best, or the weights of all
        self._others = new(torch.int64, vocab_size + _SLICE)
        self._peaks = new(torch.int64, triton.cdiv(vocab_size, _SLICE))
        self._parts = triton.cdiv(vocab_size, _PART)
        self._sums = new(torch.int64, self._parts, 2)
        self._table = new(torch.int64, 2, self._parts, 1 << sample_search.DIGIT_BITS)
        searches = (3, batch, KEY_DIGITS, 2)
        self._searches = torch.zeros(searches, dtype=torch.int64, device=device)

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
        elif top_k < vocab:
            self.variant = "top_k"
        else:
            self.variant = "nucleus" if params.top_p < 1 else "all"
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
    def changing(self) -> tuple[Tensor, ...]:
        """What a choice leaves for the next one: to choose anew, these must be as before."""
        return self._state, self._counts, self._recent, self._pushed

    def sample(self, logits: Tensor, given: Tensor | None = None) -> None:
        """Choose by `logits` float32 [batch, at least vocab_size] into `found`.

        `given` int32 [2 or more, batch], contiguous, are the tokens and positions of a step, which
        become those of the next one.
        """
        state = (self.found, given, *self.changing, self._window, self.vocab_size, self.capacity)
        if isinstance(self.variant, str):
            self._search(logits, state)
            return
        keys = self._best(logits, self.variant)
        args = (keys, keys.stride(0), self._settings, *state)
        sample_draw.draw[(self.batch,)](*args, COUNT=self.variant, num_warps=4)

    def read(self) -> tuple[int, int]:
        """The token and the status of the first sequence; waits for the device."""
        tokens, status = self.found.tolist()
        return tokens[0], status[0]

    def _best(self, logits: Tensor, wanted: int) -> Tensor:
        """The best of each slice, then the best of those, until one slice is left."""
        source, count, slices = logits, self.vocab_size, 0
        found, other = self._keys, self._others
        while slices != 1:
            first, slices = slices == 0, triton.cdiv(count, _SLICE)
            sample_keys.best_keys[(slices, self.batch)](
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
        return source

    def _search(self, logits: Tensor, state: tuple[object, ...]) -> None:
        """Choose among more tokens than can be looked at together."""
        slices = self._peaks.shape[1]
        sample_keys.all_keys[(slices, self.batch)](
            self._keys,
            self._keys.stride(0),
            self._peaks,
            logits,
            logits.stride(0),
            self._counts,
            self._settings,
            self.vocab_size,
            SLICE=_SLICE,
            num_warps=8,
        )
        last = self._narrow(0, COUNT) if self.variant == "top_k" else None
        self._weigh(last)
        if self.variant == "all":
            search, digits = self._narrow(0, DRAW_ALL), TOKEN_DIGITS
        else:
            nucleus = self._narrow(1, NUCLEUS)
            search, digits = self._narrow(2, DRAW, nucleus), KEY_DIGITS
        sample_search.take[(self.batch,)](
            search,
            search.stride(0),
            self._table,
            self._parts,
            digits,
            self._peaks,
            *state,
            PEAKS=slices,
            PEAKS_PADDED=triton.next_power_of_2(slices),
            num_warps=4,
        )

    def _weigh(self, last: Tensor | None) -> None:
        slices = self._peaks.shape[1]
        search = self._searches[0] if last is None else last
        sample_search.weigh[(self._parts, self.batch)](
            self._others,
            self._sums,
            self._keys,
            self._keys.stride(0),
            self._peaks,
            search,
            search.stride(0),
            self._table,
            KEY_DIGITS,
            self._settings,
            # so large that the sum of all stays within an int64
            2.0 ** (61 - self.vocab_size.bit_length()),
            self.vocab_size,
            SEARCHED=last is not None,
            PEAKS=slices,
            PEAKS_PADDED=triton.next_power_of_2(slices),
            PART=_PART,
            num_warps=4,
        )

    def _narrow(self, number: int, goal: int, before: Tensor | None = None) -> Tensor:
        """Search, with the keys or, for a draw from all, with the tokens. Returns the bounds."""
        search = self._searches[number]
        digits = TOKEN_DIGITS if goal == DRAW_ALL else KEY_DIGITS
        sample_search.aim[(self.batch,)](
            search,
            search.stride(0),
            before,
            self._table,
            self._parts,
            digits,
            self._sums,
            self._settings,
            self._state,
            GOAL=goal,
            num_warps=4,
        )
        for turn in range(digits):
            sample_search.narrow[(self._parts, self.batch)](
                search,
                search.stride(0),
                self._table,
                self._keys,
                self._keys.stride(0),
                None if goal == COUNT else self._others,
                self.vocab_size,
                turn,
                digits,
                BY_TOKEN=goal == DRAW_ALL,
                PART=_PART,
                ROWS=_ROWS,
                num_warps=4,
            )
        return search
