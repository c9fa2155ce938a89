"""Engines for a test, closed behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stem_runtime.formats.packed import PackedModel
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.kernels import Backend, DeviceChoice

Make = Callable[..., GpuEngine]


@contextmanager
def engines(device: str) -> Iterator[Make]:
    """Makes engines of a model; torch computes on one thread, as sums this small are slower on
    several."""
    opened: list[GpuEngine] = []

    def make(model: PackedModel, backend: Backend = "torch", **how: Any) -> GpuEngine:
        opened.append(GpuEngine(model, DeviceChoice(device, backend, "a test"), **how))
        return opened[-1]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield make
    finally:
        torch.set_num_threads(threads)
        for engine in opened:
            engine.close()
