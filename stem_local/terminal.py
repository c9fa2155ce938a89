"""Answers on a terminal: writing them, interrupting them, and chatting line by line."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from stem_runtime.errors import Cancelled, StemError

if TYPE_CHECKING:
    from .chat import Session
    from .completion import Chunk, Completion

# Unicode's category Cc without tab and newline; a pasted megabyte is searched, not walked through
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")

HELP = """\
/help   this text
/clear  forget the conversation
/exit   leave, as Ctrl-D does
Ctrl-C  stop the answer and keep what there is of it"""


def tell(text: str) -> None:
    """Say something to the user that is not part of the answer."""
    click.echo(text, err=True)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Let Ctrl-C set the event instead of raising; a second one raises as ever.

    What fails once it was pressed raises Cancelled: processes that were started get the key too.
    """
    event = threading.Event()

    def on_interrupt(number: int, frame: object) -> None:
        del number, frame
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    except StemError as error:
        if event.is_set():
            raise Cancelled("interrupted") from error
        raise
    finally:
        signal.signal(signal.SIGINT, previous)


def print_answer(chunks: Iterable[Chunk]) -> Chunk:
    """Write an answer as it comes, a newline after it. Returns the last chunk."""
    on_terminal = sys.stdout.isatty()
    ended = False
    for chunk in chunks:
        text = printable(chunk.text) if on_terminal else chunk.text
        if text:
            click.echo(text, nl=False)
            ended = text.endswith("\n")
        last = chunk
    if not ended:
        click.echo()
    return last


def print_json(chunks: Iterable[Chunk]) -> Completion:
    """Write a whole answer as one line of JSON."""
    from .completion import collect

    completion = collect(chunks)
    fields = {
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "stats": completion.stats.to_dict(),
    }
    echo_json(fields)
    return completion


def echo_json(value: Any, indent: int | None = None) -> None:
    """Write JSON to standard output, with escapes for what that cannot encode."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    readable = encoding.replace("_", "-") in ("utf-8", "utf8")
    click.echo(json.dumps(value, indent=indent, ensure_ascii=not readable))


def printable(text: str) -> str:
    """Text without the control characters by which a model could take over a terminal."""
    return _CONTROL.sub("", text)


def line_chat(session: Session, stats: bool) -> None:
    """Read lines and answer them until the user leaves."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives input() its history and editing
    tell("Type a message; /help lists commands, Ctrl-D leaves.")
    while True:
        try:
            line = input(">>> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        if line == "/exit":
            return
        if line.startswith("/"):
            _command(session, line)
        elif line:
            _answer(session, line, stats)


def _command(session: Session, line: str) -> None:
    if line == "/clear":
        session.clear()
        tell("The conversation is forgotten.")
    elif line == "/help":
        tell(HELP)
    else:
        tell(f"There is no command {line.split()[0]}; /help lists them.")


def _answer(session: Session, line: str, stats: bool) -> None:
    """One turn. An error is told and leaves the conversation as it was."""
    try:
        with interruptible() as cancel:
            last = print_answer(session.stream(line, cancel=cancel))
    except StemError as error:
        tell(str(error))
        return
    if last.dropped_turns:
        tell(f"(without the {last.dropped_turns} oldest turns: the context is full)")
    if last.finish_reason == "context":
        tell("(cut off: the context is full; /clear begins a new conversation)")
    if stats:
        tell(str(last.stats))
