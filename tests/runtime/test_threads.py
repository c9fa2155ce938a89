"""How many threads there should be, on systems that tell it in different ways."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stem_runtime import threads


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    siblings: dict[int, str] | None = None,
    allowed: set[int] | None = None,
    quota: str | None = None,
) -> None:
    """Pretend to be a Linux machine with these files and this affinity."""
    files = {"/sys/fs/cgroup/cpu.max": quota} | {
        f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text
        for cpu, text in (siblings or {}).items()
    }

    def read_text(path: Path, *_args: Any, **_kwargs: Any) -> str:
        text = files.get(str(path))
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", read_text)
    cpus = allowed if allowed is not None else set(siblings or {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: cpus, raising=False)


FOUR_CORES = {cpu: f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}


def test_cores_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, siblings=FOUR_CORES)
    assert threads.default_threads() == 4
    machine(monkeypatch, siblings=FOUR_CORES, allowed={0, 4, 1})
    assert threads.default_threads() == 2
    machine(monkeypatch, siblings={}, allowed={0, 1, 2})
    assert threads.default_threads() == 3


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000\n", 4),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("900000 100000\n", 4),
        ("nonsense\n", 4),
        ("", 4),
    ],
)
def test_quotas_of_containers_count(
    quota: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, siblings=FOUR_CORES, quota=quota)
    assert threads.default_threads() == count


def test_there_are_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, siblings={cpu: str(cpu) for cpu in range(200)})
    assert threads.default_threads() == threads.MAX_THREADS
    machine(monkeypatch, allowed=set())
    assert threads.default_threads() == 1


def apple(answers: dict[bytes, int]) -> Callable[..., Any]:
    """A C library whose sysctlbyname knows `answers`."""

    class Library:
        @staticmethod
        def sysctlbyname(name: bytes, value: Any, size: Any, _new: Any, _new_size: Any) -> int:
            assert size._obj.value == ctypes.sizeof(value._obj)
            if name not in answers:
                return -1
            value._obj.value = answers[name]
            return 0

    return lambda _name: Library


def test_macs_leave_their_slow_cores_out(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, allowed=set(range(8)))
    monkeypatch.setattr(sys, "platform", "darwin")
    known = {b"hw.physicalcpu": 8, b"hw.perflevel0.physicalcpu": 4}
    monkeypatch.setattr(ctypes, "CDLL", apple(known))
    assert threads.default_threads() == 4
    monkeypatch.setattr(ctypes, "CDLL", apple({b"hw.physicalcpu": 6}))
    assert threads.default_threads() == 6
    monkeypatch.setattr(ctypes, "CDLL", apple({}))
    assert threads.default_threads() == 8


def windows(kinds: list[int]) -> Callable[..., Any]:
    """A kernel32 that lists records of these kinds, as GetLogicalProcessorInformation does."""
    data = b"".join(bytes(8) + kind.to_bytes(4, "little") + bytes(20) for kind in kinds)

    class Library:
        @staticmethod
        def GetLogicalProcessorInformation(records: Any, size: Any) -> int:  # noqa: N802
            enough = records is not None and size._obj.value >= len(data)
            size._obj.value = len(data)
            if enough:
                ctypes.memmove(records, data, len(data))
            return int(enough)

    return lambda _name: Library


def test_windows_lists_cores_among_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, allowed=set(range(8)))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "WinDLL", windows([0, 2, 0, 1, 0, 3, 2]), raising=False)
    assert threads.default_threads() == 3
    monkeypatch.setattr(ctypes, "WinDLL", windows([]), raising=False)
    assert threads.default_threads() == 8


def test_giving_way_is_a_function_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    address = threads.yield_address()
    assert address
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()

    def missing(_name: Any) -> Any:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(ctypes, "WinDLL", missing, raising=False)
    assert threads.yield_address() == 0
