"""Write docs/cli.md from the commands themselves, or check that it is current.

python docs/generate_cli.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from stem_local.cli import main as stem_local

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 80
HEAD = """# Command line

<!-- Written by docs/generate_cli.py: change the commands, then run `make docs`. -->

What `stem-local --help` and `stem-local VERB --help` print.
"""


def helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield (full command, its help) for a command and everything under it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            if sub is not None and not sub.hidden:
                yield from helps(sub, _context(sub, name, context))


def page() -> str:
    """The whole page. The same on every machine: the width is fixed and colours are left out."""
    parts = [HEAD]
    for name, text in helps(stem_local, _context(stem_local, "stem-local")):
        parts.append(f"## {name}\n\n```text\n{click.unstyle(text).rstrip()}\n```\n")
    return "\n".join(parts)


def _context(
    command: click.Command, name: str, parent: click.Context | None = None
) -> click.Context:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)


def main() -> None:
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/cli.md is not what the commands say; run `make docs`.")
    elif not sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
