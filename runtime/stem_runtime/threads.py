"""How many threads to use, and how to give way to others while waiting."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from .limits import Limit

MAX_THREADS = 64
THREADS = Limit(1, MAX_THREADS, whole=True)


def count_threads(wanted: int | None) -> int:
    """`wanted` threads, or as many as are best here. Raises UsageError for too few or too many."""
    if wanted is None:
        return default_threads()
    count: int = THREADS.check("threads", wanted)
    return count


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
        if sys.platform == "win32":
            function = ctypes.WinDLL("kernel32").SwitchToThread
        else:
            function = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: set[int]) -> int | None:
    """Cores behind these CPUs, None where the system does not tell."""
    if sys.platform == "darwin":
        # all threads wait for the slowest, so the cores made for saving power are left out
        return _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu")
    if sys.platform == "win32":
        return _windows_cores()
    siblings = set()
    for cpu in cpus:
        try:
            path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            siblings.add(path.read_text().strip())
        except OSError:
            return None
    return len(siblings)


def _sysctl(name: str) -> int | None:
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    try:
        ask = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return None
    failed = ask(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value


def _windows_cores() -> int | None:
    """Counts the records of cores (kind 0) that GetLogicalProcessorInformation gives."""
    if sys.platform != "win32" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    ask = ctypes.WinDLL("kernel32").GetLogicalProcessorInformation
    size = ctypes.c_uint32(0)
    ask(None, ctypes.byref(size))
    records = ctypes.create_string_buffer(size.value)
    if not ask(records, ctypes.byref(size)):
        return None
    kinds = [records.raw[start + 8 : start + 12] for start in range(0, size.value, 32)]
    return kinds.count(bytes(4)) or None


def _quota() -> int | None:
    """Whole CPUs that a container's quota leaves, None without one."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return None
