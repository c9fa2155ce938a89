"""The `stem-local` command: a group whose verbs are imported only when they are used."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from stem_runtime.errors import StemError

from ._version import __version__

VERBS = {
    "pull": "Get a model and install it.",
    "list": "List installed models, or those that can be pulled.",
    "show": "Show what is known of an installed model.",
    "rm": "Delete installed models.",
    "run": "Answer a prompt, or chat.",
    "convert": "Pack a model file into a folder.",
    "bench": "Measure a model's speed on this machine.",
    "doctor": "Tell what this machine offers and what is set up.",
}
"""Every verb and its line in the group's help, which is shown without importing the verb."""

_INTERNAL_ERROR = 70
_INTERRUPTED = 130
_BROKEN_PIPE = 141


class LazyGroup(click.Group):
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
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            raise click.UsageError(f"there is no verb {args[0]!r}; see stem-local --help", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Run stem-local VERB --help for a verb's options and examples.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error (or set STEM_DEBUG=1).")
@click.version_option(__version__, prog_name="stem-local")
def cli(debug: bool) -> None:
    """Run language models on your own machine.

    \b
    Examples:
      stem-local pull smollm2-135m
      stem-local run smollm2-135m "Why is the sky blue?"
    """
    if debug:
        os.environ["STEM_DEBUG"] = "1"


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code, every error told in one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        # A console that cannot show a character should not end an answer.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        result = cli.main(args=args, prog_name="stem-local", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which must not fail aloud either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except StemError as error:
        return _failed(str(error), error.exit_code)
    except OSError as error:
        return _failed(f"{error.strerror or error}: {error.filename or 'the system refused'}", 1)
    except Exception as error:
        about = f"this is a fault of stem-local, {type(error).__name__}: {error}"
        return _failed(f"{about} (--debug shows where)", _INTERNAL_ERROR)
    return result if isinstance(result, int) else 0


def _failed(message: str, code: int) -> int:
    if os.environ.get("STEM_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
