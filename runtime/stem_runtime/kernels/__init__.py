"""Compute kernels. This module is the single place where a device and a variant are chosen."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import KernelError
from .host import host_cpu

OVERRIDE = "STEM_KERNELS"
"""Environment variable that names a variant instead of the best one."""

STEP, SAMPLE = f"{__name__}.cpu.step", f"{__name__}.cpu.sample"
"""The compiled units of the CPU: `jit.load_unit` takes their names."""

_NEEDS: dict[str, tuple[frozenset[str], ...]] = {
    "avx512vnni": (frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"}),),
    "avx2vnni": (
        frozenset({"avx2", "fma", "f16c", "avxvnni"}),
        frozenset({"avx2", "fma", "f16c", "avx512vl", "avx512vnni"}),
    ),
    "avx2": (frozenset({"avx2", "fma", "f16c"}),),
    "neon": (frozenset({"neon", "dotprod"}),),
    "portable": (frozenset(),),
}
"""Variants from best to worst, with the sets of CPU features that are enough for each."""

TOKEN_BLOCK = {"avx512vnni": 16, "avx2vnni": 4, "avx2": 4, "neon": 4, "portable": 4}
"""Tokens that share each load of a weight in prefill; activations are laid out in such blocks."""


Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES: tuple[Device, ...] = get_args(Device)
"""What `choose_device` can be asked for. "auto" is a CUDA card where one can be used."""

Backend = Literal["cpu", "triton", "torch"]


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The device in use, who computes there, and a sentence that says why.

    `name` is "cpu", "cuda" or "mps". `backend` is "cpu" for the compiled CPU kernels, "triton" for
    their counterparts on a card, "torch" where a card has no Triton. `room` is how many bytes of
    the card's memory a model may take, None for as many as it likes.
    """

    name: str
    backend: Backend
    reason: str
    room: int | None = None


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The variant in use and a sentence that says why."""

    name: str
    reason: str

    @property
    def token_block(self) -> int:
        return TOKEN_BLOCK[self.name]


def available() -> dict[str, str]:
    """For each variant, best first: an empty string, or what this CPU lacks for it."""
    _, features = host_cpu()
    missing = {}
    for name, alternatives in _NEEDS.items():
        lacks = min((sorted(need - features) for need in alternatives), key=len)
        missing[name] = ", ".join(lacks)
    return missing


def choose(override: str | None = None) -> KernelChoice:
    """Pick the kernels: `override`, else $STEM_KERNELS, else the best that this CPU can run.

    Raises KernelError for an unknown name or one that this CPU cannot run.
    """
    missing = available()
    wanted = override or os.environ.get(OVERRIDE)
    if wanted:
        if wanted not in missing:
            raise KernelError(
                f"There are no kernels called {wanted!r}; choose one of {', '.join(missing)}."
            )
        if missing[wanted]:
            raise KernelError(
                f"The {wanted} kernels need {missing[wanted]}, which this CPU does not have; "
                f"unset {OVERRIDE} to let the best ones be chosen."
            )
        source = "asked for" if override else f"asked for by {OVERRIDE}"
        return KernelChoice(wanted, source)
    name = next(name for name, lacks in missing.items() if not lacks)
    arm = "neon" in host_cpu()[1]
    better = list(missing)[: list(missing).index(name)]
    passed = [f"{n} needs {missing[n]}" for n in better if (n == "neon") == arm]
    why = f"the best that this {platform.machine()} CPU runs"
    return KernelChoice(name, why + (f" ({'; '.join(passed)})" if passed else ""))


def compile_ahead() -> None:
    """Begin to compile what this machine lacks of the CPU's kernels, aside; returns at once.

    Raises KernelError as `choose` does.
    """
    from . import jit

    # the step last: who waits for it would find a core busy, and time a model on what is left
    jit.compile_ahead((SAMPLE, ""), (STEP, choose().name))


def choose_device(wanted: str = "auto", limit: int | None = None) -> DeviceChoice:
    """Pick where models run; of a CUDA card they may take the memory that is free, or `limit`
    bytes of it. What of a model goes there is for `gpu.placement.place` to say.

    Raises KernelError for a device that was asked for by name and cannot be used, or is unknown.
    """
    if wanted not in DEVICES:
        raise KernelError(f"There is no device {wanted!r}; choose one of {', '.join(DEVICES)}.")
    if wanted == "cpu":
        return DeviceChoice("cpu", "cpu", "asked for")
    lack = _mps_lack() if wanted == "mps" else _cuda_lack()
    if not lack:
        return _card(wanted, limit)
    if wanted == "auto":
        return on_cpu(lack)
    raise KernelError(f"device={wanted!r} cannot be used: {lack}; device='cpu' always can.")


def on_cpu(lack: str) -> DeviceChoice:
    """The CPU, because of what a card lacks."""
    return DeviceChoice("cpu", "cpu", f"no GPU is used: {lack}")


def _cuda_lack() -> str:
    from ..gpu import probe

    return probe.driver_lack() or probe.torch_lack() or probe.card_lack()


def _mps_lack() -> str:
    from ..gpu import probe

    return probe.torch_lack() or probe.mps_lack()


def _card(wanted: str, limit: int | None) -> DeviceChoice:
    """The card that was found to be usable, and what computes on it."""
    from ..gpu import probe

    if wanted == "mps":
        why = "asked for; Triton has no kernels for Apple's GPUs"
        return DeviceChoice("mps", "torch", why, limit)
    why = "asked for" if wanted == "cuda" else f"{probe.card_name()} is there"
    room = probe.card_room() if limit is None else min(limit, probe.card_room())
    if lack := probe.triton_lack():
        why = f"{why}; {lack}, so torch computes, and more slowly"
        return DeviceChoice("cuda", "torch", why, room)
    return DeviceChoice("cuda", "triton", why, room)
