"""What an engine is built with, so that it can leave out what a choice says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from stem_runtime.errors import UsageError

from .sparsity import Calibrated, Choice

if TYPE_CHECKING:
    from stem_runtime.cache_kinds import CacheKind
    from stem_runtime.engine import Engine
    from stem_runtime.formats.packed import PackedModel
    from stem_runtime.gpu.placement import Placement
    from stem_runtime.kernels import DeviceChoice
    from stem_runtime.sparsity.neurons import Parts


@dataclass(frozen=True, slots=True)
class Equipment:
    """What an engine was built with: a look at the vocabulary, and which parts of every neuron."""

    look: bool = False
    parts: Parts | None = None

    def with_(self, choice: Choice) -> Equipment:
        """The same and what a choice needs."""
        parts = self.parts
        if choice.plan is not None:
            from stem_runtime.sparsity.neurons import PARTS
            from stem_runtime.sparsity.plan import parts_for

            wanted = parts_for([choice.plan])
            parts = wanted if parts is None else max(parts, wanted, key=PARTS.index)
        return Equipment(self.look or choice.look, parts)


BARE = Equipment()


def build_engine(
    packed: PackedModel,
    calibrated: Calibrated,
    equipment: Equipment,
    *,
    context: int,
    threads: int | None,
    kernels: str | None,
    kv_cache: CacheKind,
    device: DeviceChoice,
    notify: Callable[[str], None] | None,
) -> Engine:
    """An engine that can leave out what its equipment says, with room for a context of tokens.

    Raises KernelError, UsageError, as for a kind of cache that the device does not have.
    """
    parts = equipment.parts
    if device.backend != "cpu":
        if kv_cache != "fp16":
            raise UsageError(
                f"An {kv_cache} KV cache is for the CPU, and this model runs on {device.name}; "
                'load it with device="cpu", or without a kv_cache.'
            )
        from stem_runtime.gpu.engine import GpuEngine

        placement = placed(packed, calibrated, equipment, context, device)
        if placement is not None and placement.hot is not None:
            parts = "gate"
        on_card = GpuEngine(
            packed,
            device,
            neurons=None if parts is None else calibrated.neurons(parts),
            placement=placement,
            threads=threads,
            notify=notify,
        )
        return cast("Engine", on_card)
    from stem_runtime.engine import Engine

    return Engine(
        packed,
        threads=threads,
        kernels=kernels,
        notify=notify,
        head=calibrated.look if equipment.look else None,
        neurons=None if parts is None else calibrated.neurons(parts),
        kv_cache=kv_cache,
    )


def placed(
    packed: PackedModel,
    calibrated: Calibrated,
    equipment: Equipment,
    context: int,
    device: DeviceChoice,
) -> Placement | None:
    """Where the parts of a model go, None where its device holds all that there is.

    Raises KernelError where a card has no room for any of it.
    """
    if device.room is None:
        return None
    from stem_runtime.gpu.placement import place

    # FFNs are split by kernels that torch alone does not have
    known = calibrated.ffn if device.backend == "triton" else None
    frequency = None if known is None else known.rules.frequency
    return place(packed, device.room, context, parts=equipment.parts, frequency=frequency)
