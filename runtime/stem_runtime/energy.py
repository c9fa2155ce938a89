"""Energy that the processor and its memory took, where the machine tells: Linux and RAPL.

https://www.kernel.org/doc/html/latest/power/powercap/powercap.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Zone:
    """A counter of microjoules that starts over after `wrap`."""

    counter: Path
    wrap: int


def zones(root: Path) -> tuple[Zone, ...]:
    """The counters that together cover the machine and can be read; none where it has none.

    Processor packages, and the memory beside them. A zone inside of a package is part of it, the
    one of the whole platform holds it, and the mmio driver shows it a second time.
    """
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            zone = Zone(folder / "energy_uj", _number(folder / "max_energy_range_uj"))
            _number(zone.counter)
        except (OSError, ValueError):
            # most systems let only root read the counters
            continue
        inside = folder.name.count(":") > 1
        if zone.wrap > 0 and name.startswith("dram" if inside else "package"):
            found.append(zone)
    return tuple(found)


class EnergyMeter:
    """Adds up the energy of the stretches of time between `start` and `stop`.

    The counters are the whole machine's: what else runs is measured too. A stretch must be shorter
    than a counter takes to start over, which is minutes.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._zones = zones(root or ROOT)
        self._total = 0
        self._began: list[int] = []

    @property
    def joules(self) -> float | None:
        """Joules so far, None where the machine does not tell."""
        return self._total / 1e6 if self._zones else None

    def start(self) -> None:
        self._began = self._read()

    def stop(self) -> None:
        for zone, before, now in zip(self._zones, self._began, self._read(), strict=False):
            self._total += now - before if now >= before else now - before + zone.wrap
        self._began = []

    def _read(self) -> list[int]:
        try:
            return [_number(zone.counter) for zone in self._zones]
        except (OSError, ValueError):
            self._zones = ()  # half of a sum is no figure
            return []


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
