"""stem-local completion"""

from __future__ import annotations

import click

COMMANDS = ("stem-local", "stem-chat")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that lets SHELL complete stem-local and stem-chat.

    Verbs, options and the names of models are completed. Put the line for your shell where it is
    read at every start: ~/.bashrc, ~/.zshrc after compinit, or ~/.config/fish/config.fish.

    \b
    Examples:
      stem-local completion bash
      eval "$(stem-local completion bash)"
      eval "$(stem-local completion zsh)"
      stem-local completion fish | source
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    for name in COMMANDS:
        variable = f"_{name}_COMPLETE".replace("-", "_").upper()
        click.echo(complete(click.Command(name), {}, name, variable).source())
