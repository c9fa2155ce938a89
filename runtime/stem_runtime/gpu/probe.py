"""Whether a graphics card can be used here. The driver is asked first: importing torch is slow."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache

LEAST_CAPABILITY = (8, 0)
"""The oldest cards that the kernels are compiled and checked for."""

_RESERVE = 512 << 20
"""Bytes that CUDA's context, torch's allocator and the reading of a prompt take beside a model."""

_DRIVERS = {"win32": "nvcuda.dll", "linux": "libcuda.so.1"}


@cache
def driver_lack() -> str:
    """Why NVIDIA's driver offers no card, or an empty string."""
    name = _DRIVERS.get(sys.platform)
    if name is None:
        return "CUDA does not exist on this system"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return "no NVIDIA driver is installed"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the NVIDIA driver does not start"
    return "" if count.value else "the NVIDIA driver finds no card"


def torch_lack() -> str:
    """Why torch is not there, or an empty string."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed (pip install 'stem-local[gpu]')"
    return ""


def card_lack() -> str:
    """Why torch cannot run models on the first card, or an empty string."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return (
            "torch was installed without CUDA"
            if built is None
            else f"torch's CUDA {built} does not work with this driver"
        )
    capability = torch.cuda.get_device_capability(0)
    if capability < LEAST_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(0)} has compute capability {_dotted(capability)}, and "
            f"{_dotted(LEAST_CAPABILITY)} is the least"
        )
    return ""


def card_room() -> int:
    """Bytes of the first card's memory that are free for a model."""
    import torch

    free, _ = torch.cuda.mem_get_info(0)
    return max(0, int(free) - _RESERVE)


def mps_lack() -> str:
    """Why Apple's GPU cannot be used, or an empty string."""
    if sys.platform != "darwin":
        return "there is none on this system"
    import torch

    return "" if torch.backends.mps.is_available() else "this torch or macOS does not support it"


def card_name() -> str:
    """What the first card calls itself."""
    import torch

    return torch.cuda.get_device_name(0)


def triton_lack() -> str:
    """Why Triton is not there, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return ""


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
