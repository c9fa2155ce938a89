"""Textual's driver for terminals on Linux and macOS, where it is slow or takes things for others.

A lone Escape gets `ESCDELAY` milliseconds to turn out as something longer, but whether they have
passed is looked at only when the wait for more input ends, which takes a tenth of a second. What
follows an escape character within a paste is taken for keys. And a process that was stopped and
goes on without having been asked (`kill -STOP`, `fg`) reads its keys twice from then on.
"""

from __future__ import annotations

import selectors
import signal
from collections.abc import Iterable
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from textual import constants
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser

if TYPE_CHECKING:
    from textual.driver import Driver
    from textual.message import Message

ESCAPE = "\x1b"

ALTERNATE_SCREEN = "\x1b[?1049h\x1b[?25l\x1b[?1004h"
"""What is drawn goes there, the cursor is hidden, and it is told when the focus comes and goes."""


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


class PasteParser(XTermParser):
    """Leaves the escape characters out of what is pasted; an empty text ends the input."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._pasting = False
        self._held = ""

    def feed(self, data: str) -> Iterable[Message]:
        plain = self._plain(data)
        return super().feed(plain) if plain or not data else ()

    def _plain(self, data: str) -> str:
        """What is known not to be such an escape; the start of a marker waits for its rest."""
        text, self._held = self._held + data, ""
        parts: list[str] = []
        while text:
            marker = BRACKETED_PASTE_END if self._pasting else BRACKETED_PASTE_START
            part, found, text = text.partition(marker)
            if self._pasting and not found:
                begun = part.rfind(ESCAPE)
                if begun >= 0 and marker.startswith(part[begun:]):
                    part, self._held = part[:begun], part[begun:]
            parts += [part.replace(ESCAPE, "") if self._pasting else part, found]
            if found:
                self._pasting = not self._pasting
        return "".join(parts)


def driver(usual: type[Driver]) -> type[Driver]:
    """The driver to use: a variant of Textual's for Linux and macOS, others as they are."""
    if usual.__module__ != "textual.drivers.linux_driver":
        return usual
    import termios

    from textual.drivers import linux_driver

    class TerminalDriver(linux_driver.LinuxDriver):
        _attributes: list[Any] | None = None

        def run_input_thread(self) -> None:
            linux_driver.selectors = SimpleNamespace(  # type: ignore[attr-defined,assignment]
                SelectSelector=BriefSelector,
                EVENT_READ=selectors.EVENT_READ,
                SelectorKey=selectors.SelectorKey,
            )
            linux_driver.XTermParser = PasteParser  # type: ignore[attr-defined]
            super().run_input_thread()

        def start_application_mode(self) -> None:
            super().start_application_mode()  # type: ignore[no-untyped-call]
            with suppress(termios.error):
                self._attributes = termios.tcgetattr(self.fileno)
            quit_ = self._app.action_quit
            self._loop.add_signal_handler(signal.SIGTERM, self._app.call_later, quit_)

        def _sigcont_application(self, *_: object) -> None:
            if self._must_signal_resume:
                super()._sigcont_application()
            elif self._auto_restart and self._attributes and not self._loop.is_closed():
                # not at once: what was interrupted may hold a lock that writing waits for
                self._loop.call_soon_threadsafe(self._take_back, self._attributes)

        def _take_back(self, attributes: list[Any]) -> None:
            """Set the terminal as it was before a stop that nobody told of, and draw on it."""
            with suppress(termios.error):
                termios.tcsetattr(self.fileno, termios.TCSANOW, attributes)
            self.write(ALTERNATE_SCREEN)
            self._enable_mouse_support()
            self._enable_bracketed_paste()
            self._disable_line_wrap()
            self.flush()
            self._app.refresh(layout=True)

    return TerminalDriver
