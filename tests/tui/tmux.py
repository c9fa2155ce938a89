"""A real terminal to run commands in: tmux, read back as text."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self


class Tmux:
    """One window of a tmux server of its own. A context manager."""

    def __init__(self, folder: Path, size: tuple[int, int] = (80, 24)) -> None:
        self._socket = folder / "tmux"
        self._fifo = folder / "output"
        self._width, self._height = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run([*self._command, "kill-server"], check=False, capture_output=True)

    @property
    def _command(self) -> list[str]:
        return ["tmux", "-S", str(self._socket), "-f", "/dev/null"]

    def run(self, command: list[str], environment: Mapping[str, str | None]) -> None:
        """Start a command; what it draws is what `screen` shows. None unsets a variable."""
        os.mkfifo(self._fifo)
        # opened for both, so that neither end waits for the other
        self._output = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK)
        told = [f"--unset={name}" for name, value in environment.items() if value is None]
        told += [f"{name}={value}" for name, value in environment.items() if value is not None]
        size = ["-x", str(self._width), "-y", str(self._height)]
        line = "exec " + shlex.join(["env", *told, *command])
        self._tmux("new-session", "-d", *size, f"{line}")
        self._tmux("set-option", "-g", "remain-on-exit", "on")
        self._tmux("pipe-pane", "-O", f"cat > {shlex.quote(str(self._fifo))}")

    @property
    def pid(self) -> int:
        """The command's process: each shell and `env` before it makes way for the next."""
        return int(self._tmux("list-panes", "-F", "#{pane_pid}"))

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Keys as tmux calls them: Enter, Escape, F2, C-q."""
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self) -> str:
        """What the window shows now."""
        return self._tmux("capture-pane", "-p")

    def wait_for(self, *texts: str, without: str = "\0", seconds: float = 60) -> str:
        """Wait until all of these are seen, and `without` is not. Returns the screen."""

        def seen() -> bool:
            screen = self.screen()
            return all(text in screen for text in texts) and without not in screen

        self._wait(seen, f"{texts} were not seen", seconds)
        return self.screen()

    def wait_for_end(self, seconds: float = 60) -> None:
        """Wait until the command has ended."""

        def ended() -> bool:
            return self._tmux("list-panes", "-F", "#{pane_dead}").strip() == "1"

        self._wait(ended, "The command did not end", seconds)

    def _wait(self, condition: Callable[[], bool], failure: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{failure} in {seconds} s:\n{self.screen()}")
            # whatever is drawn is a reason to look again
            if select.select([self._output], [], [], min(left, 0.5))[0]:
                os.read(self._output, 1 << 20)

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout
