"""Commands about the app itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stem_local.errors import UsageError

from . import complete
from .command import SlashCommand, Suggestion

if TYPE_CHECKING:
    from ..screens.chat import ChatScreen


async def _help(chat: ChatScreen, argument: str) -> None:
    from ..screens.help import HelpScreen
    from .registry import find, unknown

    if not argument:
        chat.app.push_screen(HelpScreen(chat))
        return
    name = argument.lower().removeprefix("/")
    command = find(name)
    if command is None:
        raise UsageError(unknown(name))
    also = "".join(f", /{alias}" for alias in command.aliases)
    chat.tell(f"{command.usage}{also}: {command.help}")


def _commands(_: ChatScreen, typed: str) -> list[Suggestion]:
    from .registry import COMMANDS

    return complete.matching(
        typed, (Suggestion(command.name, command.help) for command in COMMANDS.values())
    )


async def _theme(chat: ChatScreen, argument: str) -> None:
    if not argument:
        chat.app.action_change_theme()
        return
    known = chat.app.available_themes
    if argument not in known:
        import difflib

        near = difflib.get_close_matches(argument, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
        raise UsageError(f"There is no theme {argument!r:.60}; {hint}")
    chat.app.theme = argument


async def _exit(chat: ChatScreen, _: str) -> None:
    await chat.app.action_quit()


COMMANDS = (
    SlashCommand("help", "[COMMAND]", "keys and commands", _help, _commands, aliases=("?",)),
    SlashCommand("theme", "[NAME]", "change the colours", _theme, complete.themes),
    SlashCommand("exit", "", "leave; chats are saved as they go", _exit, aliases=("quit", "bye")),
)
