"""A terminal for programs that draw on one: what they write is read, and timed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from typing import Self


class Terminal:
    """A command on a terminal of its own. A context manager. Times in seconds."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], size: tuple[int, int] = (80, 24)
    ) -> None:
        self.started = time.perf_counter()
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.execvpe(command[0], command, {**os.environ, "TERM": "xterm-256color", **environment})
        width, height = size
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)

    def type(self, text: str) -> float:
        """Send keys. Returns when."""
        self._seen = ""
        now = time.perf_counter()
        os.write(self._terminal, text.encode())
        return now

    def wait_for(self, text: str, seconds: float = 60) -> float:
        """Wait until a text is written, since the last keys were sent. Returns when."""
        deadline = time.perf_counter() + seconds
        while text not in self._seen:
            self._read(deadline, text)
        return time.perf_counter()

    def watch(self, seconds: float) -> None:
        """Let it draw for a while."""
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            if select.select([self._terminal], [], [], left)[0]:
                os.read(self._terminal, 1 << 16)

    def _read(self, deadline: float, wanted: str) -> None:
        left = deadline - time.perf_counter()
        if left <= 0 or not select.select([self._terminal], [], [], left)[0]:
            sys.exit(f"{wanted!r} was not drawn in time; what was: {self._seen[-2000:]!r}")
        self._seen += os.read(self._terminal, 1 << 16).decode(errors="replace")
