"""What verbs share in writing to a terminal or a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import click

from ..cli import INTERRUPTED
from ..progress import LEARN, learning
from ..terminal import echo_json, interruptible
from ..units import size


def as_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    echo_json(value, indent=2)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; without the heading when not on a terminal, to be read by programs."""
    lines = [list(row) for row in rows]
    if sys.stdout.isatty():
        lines.insert(0, list(head))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))] if lines else []
    for line in lines:
        click.echo("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print one `name: value` line for each pair whose value is known."""
    known = [(name, str(value)) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in known), default=0) + 2
    for name, value in known:
        click.echo(f"{name + ':':<{width}}{value}")


class Bar:
    """Follows a pull on standard error: one line that is drawn over; notes only when piped.

    Implements `stem_local.progress.Reporter`. Use as a context manager, so that the line is ended.
    """

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._step = ""
        self._since = (0.0, 0)
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_line()

    def note(self, text: str) -> None:
        self._end_line()
        click.echo(text, err=True)

    def update(self, step: str, done: int, total: int) -> None:
        if not self._live:
            return
        now = time.monotonic()
        if step != self._step:
            self._end_line()
            self._step, self._since = step, (now, done)
        if step == LEARN:
            self._draw(learning(done, total))
            return
        rate = (done - self._since[1]) / max(now - self._since[0], 1e-3)
        self._draw(_line(step, done, total, rate))

    def share(self, step: str, done: int, total: int) -> None:
        """Show how much of a step that is not counted in bytes is done."""
        if not self._live:
            return
        if step != self._step:
            self._end_line()
            self._step = step
        filled = 24 * done // max(total, 1)
        self._draw(f"{step:<12}{'#' * filled:.<24} {100 * done // max(total, 1):3d}%")

    def _draw(self, text: str) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def _end_line(self) -> None:
        if self._width:
            sys.stderr.write("\n")
        self._step, self._width = "", 0


@contextmanager
def cancellable() -> Iterator[tuple[Bar, Callable[[], bool]]]:
    """A bar for long work, and whether Ctrl-C asked to stop it; work that did says so and exits."""
    from stem_runtime.engine import Cancelled

    with Bar() as bar, interruptible() as cancel:
        try:
            yield bar, cancel.is_set
        except Cancelled as error:
            bar.note(str(error))
            raise click.exceptions.Exit(INTERRUPTED) from None


def _line(step: str, done: int, total: int, rate: float) -> str:
    names = {"download": "Downloading", "pack": "Packing"}
    filled = round(24 * done / total)
    text = f"{names.get(step, step):<12}{'#' * filled:.<24} {100 * done // total:3d}% {size(done)}"
    if 0 < done < total and rate > 0:
        left = (total - done) / rate
        text += (
            f" of {size(total)}, {size(rate)}/s, {left / 60:.0f} min"
            if left >= 90
            else (f" of {size(total)}, {size(rate)}/s, {left:.0f} s")
        )
    return text
