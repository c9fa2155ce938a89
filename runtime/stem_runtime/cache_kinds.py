"""What a KV cache may be kept in, and how much memory each kind takes."""

from __future__ import annotations

from typing import Literal, get_args

from .errors import UsageError

CacheKind = Literal["fp16", "int8"]
CACHE_KINDS: tuple[CacheKind, ...] = get_args(CacheKind)

DEFAULT: CacheKind = "fp16"
"""On the CPU, where nobody asks for one. A card knows fp16 only."""

GROUP = 32
"""Dimensions that share a scale in an int8 cache."""


def head_pad(head_dim: int, kind: CacheKind) -> int:
    """The dimensions of a head that a cache holds, those of padding included."""
    step = GROUP if kind == "int8" else 16
    return -(-head_dim // step) * step


def bytes_per_position(head_dim: int, kv_heads: int, kind: CacheKind) -> int:
    """Of the keys and values of one token in one layer."""
    pad = head_pad(head_dim, kind)
    return 2 * kv_heads * (pad + 2 * pad // GROUP if kind == "int8" else 2 * pad)


def memory_share(kind: CacheKind) -> float:
    """Of what a float16 cache takes, for heads of whole groups."""
    return bytes_per_position(GROUP, 1, kind) / bytes_per_position(GROUP, 1, "fp16")


def check_kind(kind: str) -> None:
    """Raises UsageError for a kind of cache that there is not."""
    if kind not in CACHE_KINDS:
        raise UsageError(f"kv_cache is {' or '.join(CACHE_KINDS)}, not {kind!r:.40}.")
