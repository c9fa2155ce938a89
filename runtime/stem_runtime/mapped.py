"""Giving back memory that holds parts of files, which are read again when they are needed."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GIVE_BACK: int | None = getattr(mmap, "MADV_DONTNEED", None)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file that is mapped read-only: whole pages, from byte `start` of the map on."""

    data: mmap.mmap
    start: int
    nbytes: int

    def give_back(self) -> None:
        """Let go of the pages. They are mapped from the file again when they are touched again."""
        give_back(self.data, self.start, self.nbytes)


def can_give_back() -> bool:
    """Whether the platform takes memory back: Linux does at once, macOS when it needs it, Windows
    not at all.
    """
    return _GIVE_BACK is not None and hasattr(mmap.mmap, "madvise")


def give_back(data: mmap.mmap, start: int, nbytes: int) -> None:
    """Let go of the pages of a map from byte `start` on, where the system allows it.

    Of a part of a file they come back as they were; anonymous memory may be zeros after it.
    """
    if _GIVE_BACK is not None and hasattr(data, "madvise"):
        with contextlib.suppress(OSError):  # pages that are locked into memory stay
            data.madvise(_GIVE_BACK, start, nbytes)


def span_of(arrays: Iterable[NDArray[Any]]) -> Span | None:
    """The pages on which arrays over one map of a file lie, and what is between them.

    None where one is not such a view, so that its memory is all that holds what is in it.
    """
    first, last, data = 1 << 62, 0, None
    for array in arrays:
        found = _map_of(array)
        if found is None or (data is not None and found is not data):
            return None
        data = found
        low, high = np.lib.array_utils.byte_bounds(array)
        first, last = min(first, low), max(last, high)
    if data is None:
        return None
    base = np.frombuffer(data, np.uint8, 1).ctypes.data
    start = (first - base) // mmap.PAGESIZE * mmap.PAGESIZE
    return Span(data, start, min(last - base, len(data)) - start)


def _map_of(array: NDArray[Any]) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, memoryview) or not base.readonly:
        return None
    return base.obj if isinstance(base.obj, mmap.mmap) else None
