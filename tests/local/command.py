"""The command line as tests call it."""

from __future__ import annotations

from click.testing import CliRunner, Result

from stem_local.cli import main


def stem(*args: object, stdin: str = "") -> Result:
    """Run `stem-local` with these arguments."""
    return CliRunner().invoke(main, [str(arg) for arg in args], input=stdin)


def fails(result: Result, code: int, *says: str) -> None:
    """The result is this exit code, nothing on standard output, one line on standard error."""
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for text in says:
        assert text in result.stderr
