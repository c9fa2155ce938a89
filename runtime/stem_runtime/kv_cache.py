"""The keys and values of the tokens read so far, in float16 or in int8."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache_kinds import GROUP, CacheKind, check_kind, head_pad
from .config import ModelConfig
from .errors import ContextFullError, UsageError
from .kernels.cpu.layout import ATTENTION_BLOCKS

BLOCK = 16
"""Positions whose keys lie together."""

CHUNK = BLOCK * ATTENTION_BLOCKS
"""Positions whose keys and values lie together in an int8 cache."""


class KVCache:
    """Keys and values of all layers and key heads, for `capacity` tokens.

    "fp16": keys float16 [layer * kv_head, capacity/16, head_pad, 16], values [..., capacity,
    head_pad]; head_pad is head_dim rounded up to 16. "int8": both are bytes [layer * kv_head,
    capacity/256, 256 * 17/16 * head_pad], a little more than half as many, a chunk of the keys
    beside that of the values (see `kernels/cpu/cache8.py`); head_pad is head_dim rounded up to 32.
    Capacities are rounded up to whole blocks or chunks.

    Memory is used only as positions are filled. `tokens` are the ids whose keys and values are
    held, in order.

    What the conversation has shown of the FFNs' neurons goes with it, None while nobody asks:
    `candidates` uint32 [n_layers, groups of 32 neurons], whose gates are worth computing, and
    `heat` float32 [n_layers, 32 * groups], to which prompts and sparse steps add contributions.
    `captured` float32 [n_layers] is what the last sparse step added of them, and `rest` for how
    many more tokens a layer runs dense of which nearly all neurons fired.
    """

    kind: CacheKind = "fp16"

    def __init__(self, config: ModelConfig, capacity: int, kind: CacheKind = "fp16") -> None:
        check_kind(kind)
        self.kind = kind
        step = CHUNK if kind == "int8" else BLOCK
        self._begin(config, capacity, -(-capacity // step) * step)
        pad, heads = head_pad(config.head_dim, kind), config.n_layers * config.kv_heads
        self.keys: NDArray[np.uint8 | np.uint16]
        self.values: NDArray[np.uint8 | np.uint16]
        if kind == "int8":
            nbytes = CHUNK * pad // GROUP * (2 + GROUP)
            both = _zeros((heads, self.room // CHUNK, 2, nbytes), np.uint8)
            self.keys, self.values = both[:, :, 0], both[:, :, 1]
        else:
            self.keys = _zeros((heads, self.room // BLOCK, pad, BLOCK), np.uint16)
            self.values = _zeros((heads, self.room, pad), np.uint16)

    def _begin(self, config: ModelConfig, capacity: int, room: int) -> None:
        """Know nothing yet, with memory for `room` positions."""
        self.capacity = capacity
        self.room = room
        self.tokens: list[int] = []
        self.candidates: NDArray[np.uint32] | None = None
        self.heat: NDArray[np.float32] | None = None
        self.captured: NDArray[np.float32] | None = None
        self.rest: NDArray[np.int32] = np.zeros((config.n_layers, 2), np.int32)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions that are filled."""
        full = self.keys.nbytes + self.values.nbytes
        return full * self.length // self.room

    def check(self, tokens: Sequence[int], vocab_size: int) -> None:
        """Raises UsageError for tokens that no model has, ContextFullError if they do not fit."""
        if not len(tokens):
            raise UsageError("There are no tokens to read.")
        if min(tokens) < 0 or max(tokens) >= vocab_size:
            raise UsageError(f"Token ids are from 0 to {vocab_size - 1}.")
        if self.length + len(tokens) > self.capacity:
            raise ContextFullError(
                f"{len(tokens)} more tokens do not fit: the context holds {self.capacity} and "
                f"{self.length} are taken; shorten the prompt or load with a larger context."
            )

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises UsageError if there are fewer."""
        if not 0 <= length <= self.length:
            raise UsageError(f"The cache holds {self.length} tokens, not {length}.")
        del self.tokens[length:]
        self.rest[:] = 0


def _zeros(shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
    """Zeros that take memory page by page as they are written.

    NumPy asks for huge pages instead. The first position of every head would then take 2 MB, which
    is most of a cache, and clearing it all is most of the time to a first token.
    """
    memory = mmap.mmap(-1, np.dtype(kind).itemsize * math.prod(shape))
    if advice := getattr(mmap, "MADV_NOHUGEPAGE", None):
        with contextlib.suppress(OSError):
            memory.madvise(advice)
    return np.frombuffer(memory, kind).reshape(shape)
