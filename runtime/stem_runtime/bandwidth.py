"""How fast this machine reads memory: the ceiling that a decode step is measured against."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

MIN_BUFFER = 256 << 20
MAX_BUFFER = 1 << 30


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Best streaming read seen: 1e9 bytes per second, over `buffer_bytes`, with `threads`."""

    gb_per_second: float
    buffer_bytes: int
    threads: int


def measure(threads: int, buffer_bytes: int = MIN_BUFFER, repeats: int = 8) -> Bandwidth:
    """Read a buffer `repeats` times with `threads` threads and keep the best.

    A decode step reads a model's weights over and over, so the fair ceiling is a read of as many
    bytes as the model has: `buffer_bytes`, kept between 256 MB and 1 GB. The best of several is
    the machine's; the rest is other programs. Raises MemoryError where the buffer does not fit.
    """
    size = min(max(buffer_bytes, MIN_BUFFER), MAX_BUFFER)
    # ones, not zeros: untouched zero pages are all the same physical page
    buffer = np.ones(size // 8, np.int64)
    parts = np.array_split(buffer, threads)
    best = float("inf")
    # integer sums are vectorised, keep up with memory, and release the GIL
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(np.add.reduce, parts))
            best = min(best, time.perf_counter() - start)
    return Bandwidth(buffer.nbytes / best / 1e9, buffer.nbytes, threads)
