"""How much memory this machine has, and how much of it a model needs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stem_runtime.cache_kinds import DEFAULT, CacheKind, bytes_per_position
from stem_runtime.limits import Limit

Fit = Literal["fits", "tight", "too big"]

PROGRAM = 200_000_000
"""Bytes that the program itself takes: interpreter, tokenizer, screen and work buffers."""

FITS, TIGHT = 0.6, 0.9
"""Shares of all memory up to which a model fits at ease, or at all: other programs need some."""

GPU_MEMORY = Limit(0.1, 10_000)
"""GB of a card's memory that models may be allowed."""

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int | None:
    """Memory that programs can have here, a container's limit included; None if not known."""
    physical = _windows() if sys.platform == "win32" else _posix()
    limits = [limit for file in _CGROUP if (limit := _limit(Path(file)))]
    return min([physical, *limits]) if physical else None


def needed_bytes(weights: int, kv_bytes: int, context: int) -> int:
    """Memory that a model takes when it is run: weights + keys and values + the program.

    `weights` are the packed ones in bytes, `kv_bytes` the keys and values of one token, of which
    `context` are held when the context is full.
    """
    return weights + kv_bytes * context + PROGRAM


def kv_bytes(config: Mapping[str, Any], kind: CacheKind = DEFAULT) -> int:
    """Bytes of one token's keys and values, of a model with this `ModelConfig.to_dict()`."""
    each = bytes_per_position(config["head_dim"], config["kv_heads"], kind)
    return int(config["n_layers"] * each)


def fit(needed: int, memory: int) -> Fit:
    """How a model that needs so many bytes fits into a machine that has so many."""
    if needed > TIGHT * memory:
        return "too big"
    return "tight" if needed > FITS * memory else "fits"


def _posix() -> int | None:
    with contextlib.suppress(ValueError, OSError):
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size if pages > 0 and size > 0 else None
    return None


def _limit(file: Path) -> int | None:
    """A container's limit; None where there is none or it is not a number."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text(encoding="ascii"))
    return None


def _windows() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "c", "d", "e", "f", "g")),
        )

    status = Status()
    status.length = ctypes.sizeof(status)
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 (exists on Windows only)
    return int(status.total) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None
