"""What a pull does last: learn which words to look at, so that a model is fast from the start."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from stem_runtime.errors import Cancelled
from stem_runtime.kernels import choose_device

from .progress import LEARN

if TYPE_CHECKING:
    from stem_runtime.sparsity.profile import HeadSetting

    from .progress import Reporter
    from .store import InstalledModel

SHARE = 1 / 8
"""Of a model's bytes: how much its head must have."""

PATIENCE = 30.0
"""Seconds that it may take."""


def learn(
    model: InstalledModel, report: Reporter, cancel: Callable[[], bool] | None = None
) -> None:
    """What a pull does last: calibrate the output head, where that is worth it and short.

    That is where this model would decode on the CPU, has an int8 head that is at least an eighth
    of its bytes, and a few tokens show that it takes at most half a minute here. `report` is told
    of the step "learn", counted in milliseconds. Nothing that fails is raised: the model is
    installed, and runs without.
    """
    later = f"`stem-local calibrate {model.name}` does it later."
    try:
        _learn(model, report, cancel)
    except Cancelled:
        report.note(f"{model.name} is installed, but not calibrated; {later}")
    except Exception as error:  # whatever it is, the model is installed
        report.note(f"Which words to look at could not be learned ({error}); {later}")


def _learn(model: InstalledModel, report: Reporter, cancel: Callable[[], bool] | None) -> None:
    from stem_runtime.formats.packed import open_packed
    from stem_runtime.sparsity.calibrate import calibrate_head, head_share
    from stem_runtime.sparsity.profile import FILE

    from .calibration import material_of, no_look

    packed = open_packed(model.folder)
    there = (model.folder / FILE).exists()
    if there or head_share(packed) < SHARE or no_look(packed, choose_device("auto")):
        return
    _, material = material_of(model.folder, [], None, report.note)
    clock = _Clock(report, model.name)
    profile = calibrate_head(
        packed,
        material,
        notify=report.note,
        progress=clock.tick,
        cancel=cancel,
        worth=clock.start,
    )
    if profile is not None and profile.head is not None:
        clock.end()
        report.note(_gain(model.name, profile.head.setting))


class _Clock:
    """Tells how much of an estimated time has passed."""

    def __init__(self, report: Reporter, name: str) -> None:
        self._report = report
        self._name = name

    def start(self, seconds: float) -> bool:
        """Whether that is short enough to begin."""
        if seconds > PATIENCE:
            self._report.note(
                f"Learning which words to look at would take about {seconds:.0f} s here; "
                f"`stem-local calibrate {self._name} --head-only` does it when you have the time."
            )
            return False
        self._began, self._total = time.monotonic(), round(1000 * seconds)
        self.tick()
        return True

    def tick(self, *_: object) -> None:
        # an estimate that was too short must not look like the end
        passed = min(self._passed(), self._total * 99 // 100)
        self._report.update(LEARN, passed, self._total)

    def end(self) -> None:
        passed = self._passed()
        self._report.update(LEARN, passed, passed)

    def _passed(self) -> int:
        return max(1, round(1000 * (time.monotonic() - self._began)))


def _gain(name: str, setting: HeadSetting) -> str:
    from .sparsity import head_refusal

    if why := head_refusal(setting, setting.kernels):
        return f"{name} was calibrated, but goes on looking at all words: {why}."
    return (
        f"Learned which words to look at: {name} decodes {setting.tokens_per_second:.0f} tokens "
        f"per second with that, {setting.dense_tokens_per_second:.0f} without."
    )
