"""The table of slash commands, and what is asked of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import app, conversation, files, model
from .command import SlashCommand, Suggestion

if TYPE_CHECKING:
    from textual.worker import Worker

    from ..screens.chat import ChatScreen

COMMANDS: Mapping[str, SlashCommand] = {
    command.name: command
    for group in (app, conversation, model, files)
    for command in group.COMMANDS
}
"""Every command by its name, in the order in which help lists them."""

_BY_ALIAS = {alias: command for command in COMMANDS.values() for alias in command.aliases}

# The name and one blank at least, then an argument in the same line.
_ARGUMENT = re.compile(r"(/([A-Za-z?][A-Za-z_-]*)[ \t]+)([^\n]*)")


def find(name: str) -> SlashCommand | None:
    """The command of that name or alias."""
    return COMMANDS.get(name) or _BY_ALIAS.get(name)


def unknown(name: str) -> str:
    """The sentence for a command that does not exist, with the nearest that do."""
    import difflib

    near = difflib.get_close_matches(name, [*COMMANDS, *_BY_ALIAS], n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'/{other}' for other in near)}?" if near else "/help lists"
    if not near:
        hint += " them all."
    return f"There is no command /{name:.40}; {hint} (// begins a message with a slash.)"


def start(chat: ChatScreen, name: str, argument: str = "") -> Worker[None]:
    """Run a command beside the screen's own messages, which it may have to wait for."""
    return chat.run_worker(run(chat, name, argument), group="slash", name=f"/{name}")


async def run(chat: ChatScreen, name: str, argument: str = "") -> None:
    """Run a command. What goes wrong is told in the chat."""
    from stem_local.errors import StemError, UsageError

    command = find(name)
    if command is None:
        chat.tell(unknown(name), "warning")
        return
    if command.needs_argument and not argument:
        chat.tell(f"{command.usage}: {command.help}", "warning")
        return
    try:
        await command.run(chat, argument)
    except UsageError as error:
        chat.tell(str(error), "warning")
    except StemError as error:
        chat.tell(str(error), "error")
    except OSError as error:
        # a disk or a terminal that fails where nobody expects it must not end the chat
        chat.tell(f"/{command.name} could not be done: {error.strerror or error}.", "error")


def names(text: str) -> Sequence[Suggestion]:
    """The commands that a line could still turn into while its first word is typed."""
    if not re.fullmatch(r"/([A-Za-z_?-]*)", text):
        return ()
    typed = text[1:].lower()
    found = [command for name, command in COMMANDS.items() if name.startswith(typed)]
    found += [
        command
        for alias, command in _BY_ALIAS.items()
        if typed and alias.startswith(typed) and command not in found
    ]
    return [
        Suggestion(
            f"/{command.name}",
            command.help,
            whole=not command.needs_argument,
            label=command.usage,
        )
        for command in found
    ]


def awaited(text: str) -> tuple[SlashCommand, str] | None:
    """The command whose argument is being typed, if it can be completed, and that argument."""
    match = _ARGUMENT.fullmatch(text)
    command = find(match[2].lower()) if match else None
    if match is None or command is None or command.complete is None:
        return None
    return command, match[3]


def arguments(chat: ChatScreen, text: str) -> Sequence[Suggestion]:
    """What the argument being typed could be. Reads files and folders, so call it in a thread."""
    from stem_local.errors import StemError

    waiting = awaited(text)
    if waiting is None:
        return ()
    command, argument = waiting
    assert command.complete is not None
    try:
        return list(command.complete(chat, argument))
    except (StemError, OSError, ValueError, RuntimeError):
        # half a path names no folder, or no user after ~
        return ()


def completed(text: str, chosen: Suggestion) -> str:
    """The line with the suggestion in place of what was typed of it."""
    match = _ARGUMENT.fullmatch(text)
    if match is None:
        command = find(chosen.value[1:])
        return f"{chosen.value} " if command and command.arguments else chosen.value
    more = "" if chosen.whole or chosen.value.endswith("/") else " "
    return f"{match[1]}{chosen.value}{more}"
