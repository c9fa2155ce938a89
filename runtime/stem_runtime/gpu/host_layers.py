"""The layers of a placed model that run on the CPU, before those on the card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..formats.packed import PackedModel
from ..kv_cache import KVCache
from ..sparsity.neurons import Neurons
from ..sparsity.plan import FfnPlan

if TYPE_CHECKING:
    from .cache import GpuCache


class HostLayers:
    """The token embedding and the first `count` layers of a model, run by the CPU's engine.

    `neurons` are those of the whole model; the other arguments are those of `Engine`.
    """

    def __init__(
        self,
        model: PackedModel,
        count: int,
        neurons: Neurons | None,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.count = count
        self._engine = Engine(
            model.first_layers(count),
            threads=threads,
            kernels=kernels,
            notify=notify,
            outliers=False,
            neurons=None if neurons is None else neurons.cut(0, count),
        )

    @property
    def threads(self) -> int:
        return self._engine.threads

    def new_cache(self, capacity: int) -> KVCache:
        """Keys and values of these layers."""
        return self._engine.new_cache(capacity)

    def set_plan(self, plan: FfnPlan | None) -> None:
        """What sparse tokens leave out of these layers; `plan` is of the whole model."""
        self._engine.set_plan(None if plan is None else plan.layers(0, self.count))

    def read(
        self, cache: GpuCache, tokens: Sequence[int], *, sparse: bool = False
    ) -> NDArray[np.float32]:
        """What the first layer on the card gets of `tokens`, float32 [n, d_model].

        The next call may overwrite it. Raises Cancelled after `interrupt`.
        """
        own = cache.host
        assert own is not None
        if own.length > cache.length:
            # the card was cancelled on the way, or the cache cut back since
            own.truncate(cache.length)
        for name in ("candidates", "heat"):
            known = getattr(cache, name)
            setattr(own, name, None if known is None else known[: self.count])
        return self._engine.residual(own, tokens, sparse=sparse)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of the last step, int64 [count, 8]: the columns are `neuron_tables.COUNTS`."""
        return self._engine.last_counts

    @property
    def sharpness(self) -> NDArray[np.float32]:
        """How sharp the last decoded token's attention was, float32 [count]."""
        return self._engine.last_sharpness

    def interrupt(self) -> None:
        """Make a running `read` of several tokens raise Cancelled."""
        self._engine.interrupt()

    def close(self) -> None:
        """Stop the threads. Idempotent."""
        self._engine.close()
