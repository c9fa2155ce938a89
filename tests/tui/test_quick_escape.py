"""Escape is told from other keys without waiting a tenth of a second for more."""

from __future__ import annotations

import os
import selectors

import pytest
from textual import constants
from textual.driver import Driver
from textual.drivers.headless_driver import HeadlessDriver

from stem_tui.quick_escape import BriefSelector, driver


def test_only_what_follows_input_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []
    select = selectors.SelectSelector.select

    def record(selector: selectors.SelectSelector, timeout: float | None = None) -> object:
        waited.append(timeout)
        return select(selector, 0)

    monkeypatch.setattr(selectors.SelectSelector, "select", record)
    reading, writing = os.pipe()
    with BriefSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        assert selector.select(0.1) == []
        os.write(writing, b"\x1b")
        assert selector.select(0.1)
        os.read(reading, 1)
        assert selector.select(0.1) == []
        assert selector.select(None) == []
    os.close(reading)
    os.close(writing)
    assert waited == [0.1, 0.1, constants.ESCAPE_DELAY, None]


def test_drivers_of_other_systems_stay_as_they_are() -> None:
    assert driver(HeadlessDriver) is HeadlessDriver


@pytest.mark.skipif(os.name == "nt", reason="Windows has another driver")
def test_the_driver_of_terminals_is_told_to_be_brief() -> None:
    from textual.drivers.linux_driver import LinuxDriver

    quick: type[Driver] = driver(LinuxDriver)
    assert issubclass(quick, LinuxDriver)
    assert quick.run_input_thread is not LinuxDriver.run_input_thread
