"""Write docs/cli.md from the commands themselves, or check that it is current.

python docs/generate_cli.py [--check]
"""

from __future__ import annotations

from collections.abc import Iterator

import click
from generate_page import write_or_check

from stem_local.cli import main as stem_local
from stem_tui.cli import main as stem_chat

WIDTH = 80
HEAD = """# Command line

<!-- Written by docs/generate_cli.py: change the commands, then run `make docs`. -->

What `stem-chat --help`, `stem-local --help` and `stem-local VERB --help` print. To have the
shell complete both commands, see [stem-local completion](#stem-local-completion).
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
    for command, called in ((stem_chat, "stem-chat"), (stem_local, "stem-local")):
        for name, text in helps(command, _context(command, called)):
            parts.append(f"## {name}\n\n```text\n{click.unstyle(text).rstrip()}\n```\n")
    return "\n".join(parts)


def _context(
    command: click.Command, name: str, parent: click.Context | None = None
) -> click.Context:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)


if __name__ == "__main__":
    write_or_check("cli.md", page())
