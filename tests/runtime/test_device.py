"""The choice of a device, on machines that this one is not; none of it needs torch."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stem_runtime import kernels
from stem_runtime.errors import KernelError
from stem_runtime.gpu import probe
from stem_runtime.kernels import DeviceChoice, choose_device

GIB = 1 << 30

Pretend = Callable[..., None]


@pytest.fixture(autouse=True)
def ask_again() -> Iterator[None]:
    probe.driver_lack.cache_clear()
    yield
    probe.driver_lack.cache_clear()


def driver(*, starts: int = 0, cards: int = 1) -> Any:
    """What `ctypes.CDLL` finds."""

    def count(reference: Any) -> int:
        reference._obj.value = cards
        return 0

    return SimpleNamespace(cuInit=lambda _flags: starts, cuDeviceGetCount=count)


def torch_of(*, works: bool = True, built: str | None = "12.8", **card: Any) -> Any:
    """What `import torch` finds."""
    cuda = SimpleNamespace(
        is_available=lambda: works,
        get_device_capability=lambda _card: card.get("capability", (9, 0)),
        get_device_name=lambda _card: "Some Card",
        mem_get_info=lambda _card: (card.get("free", 24) * GIB, 80 * GIB),
    )
    mps = SimpleNamespace(is_available=lambda: works)
    return SimpleNamespace(
        cuda=cuda, version=SimpleNamespace(cuda=built), backends=SimpleNamespace(mps=mps)
    )


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    def machine(
        *, system: str = "linux", found: Any = None, torch: Any = None, triton: bool = True
    ) -> None:
        def load(_name: str) -> Any:
            if found is None:
                raise OSError("no such library")
            return found

        def spec(name: str) -> object | None:
            there = torch is not None if name == "torch" else triton
            return object() if there else None

        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(importlib.util, "find_spec", spec)
        monkeypatch.setitem(sys.modules, "torch", torch)

    return machine


LACKS: dict[str, tuple[dict[str, Any], str]] = {
    "mac": ({"system": "darwin", "torch": torch_of()}, "CUDA does not exist on this system"),
    "no driver": ({"torch": torch_of()}, "no NVIDIA driver is installed"),
    "broken": ({"found": driver(starts=999)}, "the NVIDIA driver does not start"),
    "no card": ({"found": driver(cards=0)}, "the NVIDIA driver finds no card"),
    "no torch": ({"found": driver()}, r"torch is not installed \(pip install 'stem-local\[gpu\]'"),
    "cpu torch": (
        {"found": driver(), "torch": torch_of(works=False, built=None)},
        "torch was installed without CUDA",
    ),
    "old driver": (
        {"found": driver(), "torch": torch_of(works=False)},
        "torch's CUDA 12.8 does not work with this driver",
    ),
    "old card": (
        {"found": driver(), "torch": torch_of(capability=(7, 5))},
        "Some Card has compute capability 7.5, and 8.0 is the least",
    ),
}


@pytest.mark.parametrize("name", LACKS)
def test_why_no_card_is_used(name: str, pretend: Pretend) -> None:
    machine, reason = LACKS[name]
    pretend(**machine)
    choice = choose_device("auto")
    assert (choice.name, choice.backend) == ("cpu", "cpu")
    with pytest.raises(KernelError, match=f"device='cuda' cannot be used: {reason}") as refused:
        choose_device("cuda")
    assert choice.reason.removeprefix("no GPU is used: ") in str(refused.value)
    assert choose_device("cpu") == DeviceChoice("cpu", "cpu", "asked for")


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_a_card_that_can_be_used_is(system: str, pretend: Pretend) -> None:
    pretend(system=system, found=driver(), torch=torch_of())
    half = 23 * GIB + GIB // 2
    assert choose_device() == DeviceChoice("cuda", "triton", "Some Card is there", half)
    assert choose_device("cuda") == DeviceChoice("cuda", "triton", "asked for", half)
    for limit, room in ((4 * GIB, 4 * GIB), (90 * GIB, half)):
        assert choose_device("cuda", limit).room == room
    pretend(found=driver(), torch=torch_of(free=0))
    assert choose_device("cuda").room == 0
    pretend(system=system, found=driver(), torch=torch_of(), triton=False)
    choice = choose_device()
    assert (choice.name, choice.backend, choice.room) == ("cuda", "torch", half)
    assert choice.reason == (
        "Some Card is there; Triton is not installed, so torch computes, and more slowly"
    )


def test_apple_s_gpus_are_used_when_asked_for(pretend: Pretend) -> None:
    pretend(system="darwin", torch=torch_of(), triton=False)
    assert choose_device("auto").name == "cpu"
    choice = choose_device("mps")
    assert (choice.name, choice.backend, choice.room) == ("mps", "torch", None)
    for machine, reason in (
        ({"system": "linux", "torch": torch_of()}, "there is none on this system"),
        ({"system": "darwin"}, "torch is not installed"),
        ({"system": "darwin", "torch": torch_of(works=False)}, "does not support it"),
    ):
        pretend(**machine)
        with pytest.raises(KernelError, match=f"device='mps' cannot be used: .*{reason}"):
            choose_device("mps")


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(KernelError, match="no device 'tpu'; choose one of auto, cpu, cuda, mps"):
        choose_device("tpu")
    assert set(kernels.DEVICES) == {"auto", "cpu", "cuda", "mps"}


def test_without_a_driver_torch_is_not_even_imported(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(torch=torch_of())
    monkeypatch.setattr(probe, "torch_lack", lambda: pytest.fail("torch was looked for"))
    assert "no NVIDIA driver" in choose_device("auto").reason
