"""stem-local rm"""

from __future__ import annotations

import sys

import click

from ..cli_types import installed
from ..units import size


@click.command()
@click.argument("models", metavar="NAME...", nargs=-1, required=True, shell_complete=installed)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def command(models: tuple[str, ...], yes: bool) -> None:
    """Delete installed models from the disk, after asking.

    \b
    Examples:
      stem-local rm smollm2-135m
      stem-local rm qwen3-0.6b smollm2-360m --yes
    """
    from .. import store
    from ..catalog import find

    names = [entry.name if (entry := find(name)) else name for name in models]
    found = [store.find(name) for name in names]
    for name, model in zip(names, found, strict=True):
        if model is None:
            raise store.not_installed(name)
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("rm asks before it deletes; without a terminal give --yes")
        total = sum(model.size for model in found if model)
        click.confirm(f"Delete {', '.join(names)} ({size(total)})?", abort=True, err=True)
    for name in names:
        store.remove(name)
        click.echo(f"Deleted {name}", err=True)
