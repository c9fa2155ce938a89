"""The parts of a placed model: what runs a token on the card, and what does on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UsageError
from ..formats.packed import PackedModel
from ..host_ffns import HostFfns
from ..kernels import Backend
from ..sparsity.neurons import Neurons
from ..sparsity.plan import FfnPlan
from .cache import GpuCache, new_caches
from .host_layers import HostLayers
from .placement import Placement
from .torch_step import TorchStep

Array = TypeVar("Array", bound=NDArray[Any])


class Parts:
    """`step` runs tokens, with what of the model is on the CPU behind it.

    `host` are the arguments of `Engine` for the part on the CPU. Raises UsageError for FFNs that
    cannot be split, and what torch raises where memory is too small.
    """

    def __init__(
        self,
        model: PackedModel,
        backend: Backend,
        device: torch.device,
        neurons: Neurons | None,
        placement: Placement,
        host: dict[str, Any],
    ) -> None:
        self._config, self._device = model.config, device
        self._layers: HostLayers | None = None
        self._cold: HostFfns | None = None
        try:
            self.step = self._make_step(model, backend, neurons, placement, host)
        except BaseException:
            self._stop_host()
            raise

    @property
    def threads(self) -> int:
        """Threads that compute; one tells the card what to do."""
        on_cpu = self._layers or self._cold
        return 1 if on_cpu is None else on_cpu.threads

    @property
    def whole_layers(self) -> bool:
        """Whether every layer is on the card, if not every neuron of it."""
        return self._layers is None

    def new_caches(self, count: int, capacity: int) -> tuple[GpuCache, ...]:
        """A family of caches for what is on the card, each with what is on the CPU."""
        first = 0 if self._layers is None else self._layers.count
        caches = new_caches(self._config, count, capacity, self._device, first)
        if self._layers is not None:
            for cache in caches:
                cache.host = self._layers.new_cache(capacity)
                # a prompt wakes all layers
                cache.host.rest = cache.rest[:first]
        return caches

    def set_plan(self, plan: FfnPlan | None) -> None:
        """What sparse tokens leave out from now on."""
        if self._layers is not None:
            self._layers.set_plan(plan)
        self.step.set_plan(plan)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last step, int64 [n_layers, 8]: the columns are `neuron_tables.COUNTS`."""
        return self._joined(self.step.counts, lambda layers: layers.counts)

    @property
    def sharpness(self) -> NDArray[np.float32]:
        """How sharp the attention of the last decoded token was, float32 [n_layers]."""
        return self._joined(self.step.sharpness, lambda layers: layers.sharpness)

    def interrupt(self) -> None:
        """Stop what reads a prompt on the CPU."""
        if self._layers is not None:
            self._layers.interrupt()

    def close(self) -> None:
        """Let go of the card's memory and stop the threads."""
        del self.step
        self._stop_host()

    def _make_step(
        self,
        model: PackedModel,
        backend: Backend,
        neurons: Neurons | None,
        placement: Placement,
        host: dict[str, Any],
    ) -> TorchStep:
        first, hot = placement.first, placement.hot
        if hot is not None:
            if backend != "triton" or neurons is None:
                raise UsageError("Splitting FFNs takes Triton and a calibrated model's neurons.")
            from .split_step import SplitStep

            self._cold = HostFfns(model, neurons, ~hot, **host)
            return SplitStep(model, neurons, self._device, hot, self._cold)
        if first:
            self._layers = HostLayers(model, first, neurons, **host)
            if neurons is not None:
                neurons = Neurons((None,) * first + neurons.layers[first:])
        return _step_of(backend)(model, neurons, self._device, self._layers)

    def _stop_host(self) -> None:
        for part in (self._layers, self._cold):
            if part is not None:
                part.close()

    def _joined(self, whole: Array, of: Callable[[HostLayers], Array]) -> Array:
        """What is known of each layer, where those on the CPU know it of theirs."""
        if self._layers is not None:
            whole = whole.copy()
            whole[: self._layers.count] = of(self._layers)
        return whole


def _step_of(backend: Backend) -> type[TorchStep]:
    if backend == "torch":
        return TorchStep
    from .step import TritonStep

    return TritonStep
