"""The `stem-local` command: a group whose verbs are imported only when they are used."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from stem_runtime.errors import Cancelled, StemError

from ._version import __version__
from .errors import DiskSpaceError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VERBS = {
    "pull": "Get a model and install it.",
    "list": "List installed models, or those that can be pulled.",
    "show": "Show what is known of an installed model.",
    "rm": "Delete installed models.",
    "run": "Answer a prompt, or chat.",
    "convert": "Pack a model file into a folder.",
    "calibrate": "Learn what a model can leave out.",
    "bench": "Measure a model's speed on this machine.",
    "eval": "Measure a model's quality beside its cost.",
    "doctor": "Tell what this machine offers and what is set up.",
    "completion": "Print what makes a shell complete commands.",
}
"""Every verb and its line in the group's help, which is shown without importing the verb."""

_CODE_PAGES = os.name == "nt"
_INTERNAL_ERROR = 70
INTERRUPTED = 130


class Failure(click.ClickException):
    """An error as the command line tells it: one line on standard error, and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=True)


class Told(click.Command):
    """A command that tells whatever ends it in one line."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        _prepare_streams()
        with _told_in_one_line():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _told_in_one_line():
            return super().invoke(ctx)


class LazyGroup(Told, click.Group):
    """Verbs live in `commands/<verb>.py`, each with a `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        del ctx
        if name not in VERBS:
            return None
        command = import_module(f"stem_local.commands.{name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        unknown = args and not args[0].startswith("-") and args[0] not in VERBS
        if unknown and not ctx.resilient_parsing:
            raise click.UsageError(f"there is no verb {args[0]!r}; see stem-local --help", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        verbs = [verb for verb in VERBS if verb.startswith(incomplete)]
        return [
            *(CompletionItem(verb, help=VERBS[verb]) for verb in verbs),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    "stem-local",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Run stem-local VERB --help for a verb's options and examples.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error (or set STEM_DEBUG=1).")
@click.version_option(__version__, prog_name="stem-local")
def main(debug: bool) -> None:
    """Run language models on your own machine.

    \b
    Examples:
      stem-local pull smollm2-135m
      stem-local run smollm2-135m "Why is the sky blue?"
    """
    if debug:
        os.environ["STEM_DEBUG"] = "1"


def _prepare_streams() -> None:
    """Let standard output and error take every text.

    A console that cannot show a character should not end an answer. Pipes and files get UTF-8 on
    Windows too, where Python before 3.15 gives them a code page. And what is written goes nowhere
    if a program was started without output (`>&-`, pythonw).
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)
        elif isinstance(stream, io.TextIOWrapper):
            by_system = not stream.isatty() and not os.environ.get("PYTHONIOENCODING")
            encoding = "utf-8" if _CODE_PAGES and by_system else None
            stream.reconfigure(encoding=encoding, errors="replace")


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Turn whatever ends a verb into Failure, or into the exit code of an interruption."""
    try:
        yield
    except (KeyboardInterrupt, click.Abort, Cancelled):
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except (Failure, click.exceptions.Exit, click.exceptions.NoArgsIsHelpError, BrokenPipeError):
        raise
    except Exception as error:
        if os.environ.get("STEM_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        raise failure(error) from error


def failure(error: Exception) -> Failure:
    """What the command line says of an error."""
    if isinstance(error, click.ClickException):
        return Failure(error.format_message(), error.exit_code)
    if isinstance(error, StemError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            full = f"The disk is full{where}; make room and try again."
            return Failure(full, DiskSpaceError.exit_code)
        return Failure(f"{error.strerror or error}{where}", 1)
    about = f"{type(error).__name__}: {error} (a fault of STEM Local; STEM_DEBUG=1 shows where)"
    return Failure(about, _INTERNAL_ERROR)
