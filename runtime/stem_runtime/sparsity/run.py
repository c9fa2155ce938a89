"""One calibration while it runs: the model, how its engines are made, and who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from ..engine import Cancelled, Engine
from ..formats.packed import PackedModel
from .capture import Progress
from .head import HeadLook
from .neurons import Neurons

if TYPE_CHECKING:
    from ..kernels import DeviceChoice


@dataclass(frozen=True, slots=True)
class Run:
    """What every part of a calibration is given. `card` is the device where that is not the CPU;
    `progress` and `cancel` are those of `calibrate`.
    """

    model: PackedModel
    threads: int | None = None
    kernels: str | None = None
    card: DeviceChoice | None = None
    notify: Callable[[str], None] | None = None
    progress: Progress | None = None
    cancel: Callable[[], bool] | None = None

    def engine(self, *, look: HeadLook | None = None, neurons: Neurons | None = None) -> Engine:
        if self.card is not None:
            from ..gpu.engine import GpuEngine

            return cast("Engine", GpuEngine(self.model, self.card, neurons=neurons))
        return Engine(
            self.model,
            threads=self.threads,
            kernels=self.kernels,
            notify=self.notify,
            head=look,
            neurons=neurons,
        )

    def check(self) -> None:
        if self.cancel is not None and self.cancel():
            raise Cancelled("Calibration was cancelled; the next one goes on from here.")

    def tell(self, step: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(step, done, total)

    def report(self, step: str, done: int, total: int) -> None:
        self.check()
        self.tell(step, done, total)

    def step(self, name: str) -> Callable[[int, int], None]:
        return partial(self.report, name)
