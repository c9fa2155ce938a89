"""The command line as tests call it."""

from __future__ import annotations

from click.testing import CliRunner, Result

from stem_local.cli import main


def stem(*args: object, stdin: str = "") -> Result:
    """Run `stem-local` with these arguments."""
    return CliRunner().invoke(main, [str(arg) for arg in args], input=stdin)
