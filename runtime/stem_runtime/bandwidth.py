"""How fast this machine reads memory: the ceiling that a decode step is measured against."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_BUFFER = 64 << 20
USUAL_BUFFER = 256 << 20
MAX_BUFFER = 1 << 30
READ_BYTES = 8 << 30  # long enough for the system to give each thread a core of its own


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Best streaming read seen: 1e9 bytes per second, over `buffer_bytes`, with `threads`."""

    gb_per_second: float
    buffer_bytes: int
    threads: int


def measure(
    threads: int, buffer_bytes: int = USUAL_BUFFER, read_bytes: int = READ_BYTES
) -> Bandwidth:
    """Read a buffer with `threads` threads until `read_bytes` are read, and keep the best time.

    A decode step reads a model's weights over and over, so the fair ceiling is a read of as many
    bytes as the model has, asked for ahead as its kernels do: `buffer_bytes`, kept between 64 MB
    and 1 GB. The best of several is the machine's; the rest is other programs. Raises MemoryError
    where the buffer does not fit.
    """
    size = min(max(buffer_bytes, MIN_BUFFER), MAX_BUFFER)
    # ones, not zeros: untouched zero pages are all the same physical page
    buffer = np.ones(size // 8, np.int64)
    parts = np.array_split(buffer, threads)
    best = float("inf")
    read_sum(parts[0][:0])  # compiled before it is timed
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(max(2, read_bytes // size)):
            start = time.perf_counter()
            list(pool.map(read_sum, parts))
            best = min(best, time.perf_counter() - start)
    return Bandwidth(buffer.nbytes / best / 1e9, buffer.nbytes, threads)


def read_sum(part: NDArray[np.int64]) -> int:
    """The sum of contiguous int64 [n], wrapping around; other threads run meanwhile."""
    from .kernels.cpu.stream import BLOCK_BYTES, sum_blocks

    sums = np.empty(BLOCK_BYTES // 8, np.int64)
    whole = part.size // sums.size
    sum_blocks(part.ctypes.data, whole, sums.ctypes.data)
    return int(np.add.reduce(np.append(sums, part[whole * sums.size :])))
