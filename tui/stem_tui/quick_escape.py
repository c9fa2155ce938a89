"""A terminal driver that tells an Escape from the beginning of another key at once.

Textual gives a lone Escape `ESCDELAY` milliseconds to turn out as something longer, but looks
whether they have passed only when its wait for more input ends, which takes a tenth of a second.
"""

from __future__ import annotations

import selectors
from types import SimpleNamespace
from typing import TYPE_CHECKING

from textual import constants

if TYPE_CHECKING:
    from textual.driver import Driver


class BriefSelector(selectors.SelectSelector):
    """After something was read, waits no longer for more than an Escape may take."""

    _read = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._read:
            brief = constants.ESCAPE_DELAY
            timeout = brief if timeout is None else min(timeout, brief)
        found = super().select(timeout)
        self._read = bool(found)
        return found


def driver(usual: type[Driver]) -> type[Driver]:
    """The driver to use: a variant of Textual's for Linux and macOS, others as they are."""
    if usual.__module__ != "textual.drivers.linux_driver":
        return usual
    from textual.drivers import linux_driver

    class QuickEscape(linux_driver.LinuxDriver):
        def run_input_thread(self) -> None:
            linux_driver.selectors = SimpleNamespace(  # type: ignore[attr-defined,assignment]
                SelectSelector=BriefSelector,
                EVENT_READ=selectors.EVENT_READ,
                SelectorKey=selectors.SelectorKey,
            )
            super().run_input_thread()

    return QuickEscape
