"""How many threads to use, and how to give way to others while waiting."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MAX_THREADS = 64


def default_threads() -> int:
    """Physical cores this process may use, as far as the system tells; at least 1.

    Two threads on one core share the units that the kernels keep busy, so counting logical CPUs
    would only make them wait for each other.
    """
    cpus = _allowed_cpus()
    cores = _physical_cores(cpus) or len(cpus)
    return max(1, min(cores, _quota() or cores, MAX_THREADS))


def yield_address() -> int:
    """Address of a C function that gives up the rest of a time slice, 0 if none is found."""
    try:
        library = ctypes.WinDLL("kernel32") if os.name == "nt" else ctypes.CDLL(None)  # type: ignore[attr-defined, unused-ignore]
        function = library.SwitchToThread if os.name == "nt" else library.sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: set[int]) -> int | None:
    """Cores behind these CPUs, by the siblings that Linux lists; None elsewhere."""
    siblings = set()
    for cpu in cpus:
        try:
            path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            siblings.add(path.read_text().strip())
        except OSError:
            return None
    return len(siblings)


def _quota() -> int | None:
    """Whole CPUs that a container's quota leaves, None without one."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return None
