"""Energy from counters of a made-up machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from stem_runtime.energy import EnergyMeter, zones


def zone(root: Path, place: str, name: str, energy: int = 0, wrap: int = 1000_000_000) -> Path:
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder


def put(folder: Path, energy: int) -> None:
    (folder / "energy_uj").write_text(f"{energy}\n")


def test_packages_and_memory_are_added_and_nothing_twice(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1")
    memory = zone(tmp_path, "intel-rapl:0:2", "dram", 7)
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core"),
        zone(tmp_path, "intel-rapl:0:1", "uncore"),
        zone(tmp_path, "intel-rapl:2", "psys"),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0"),
    ]
    meter = EnergyMeter(tmp_path)
    assert meter.joules == 0
    meter.start()
    put(first, 6_000_000)
    put(second, 500_000)
    put(memory, 250_007)
    for other in others:
        put(other, 90_000_000)
    meter.stop()
    assert meter.joules == 1.75
    # what passes between the stretches is not counted
    put(first, 60_000_000)
    meter.start()
    put(first, 60_250_000)
    meter.stop()
    assert meter.joules == 2.0


def test_a_counter_that_started_over_is_followed(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, wrap=1_000_000)
    meter = EnergyMeter(tmp_path)
    meter.start()
    put(folder, 100_000)
    meter.stop()
    assert meter.joules == pytest.approx(0.2)


def test_a_stop_without_a_start_adds_nothing(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(tmp_path)
    put(folder, 5)
    meter.stop()
    assert meter.joules == 0


@pytest.mark.parametrize("damage", ["missing", "text", "no wrap", "unreadable", "no folder"])
def test_machines_that_do_not_tell_give_none(tmp_path: Path, damage: str) -> None:
    root = tmp_path / "powercap"
    if damage != "no folder":
        folder = zone(root, "intel-rapl:0", "package-0", wrap=0 if damage == "no wrap" else 9)
        if damage in ("missing", "unreadable"):
            (folder / "energy_uj").unlink()
        if damage == "unreadable":
            (folder / "energy_uj").mkdir()
        if damage == "text":
            put(folder, 1)
            (folder / "energy_uj").write_text("lots")
    assert zones(root) == ()
    meter = EnergyMeter(root)
    meter.start()
    meter.stop()
    assert meter.joules is None


def test_a_counter_that_goes_away_takes_the_figure_with_it(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:1", "package-1")
    meter = EnergyMeter(tmp_path)
    meter.start()
    (folder / "energy_uj").unlink()
    meter.stop()
    assert meter.joules is None
