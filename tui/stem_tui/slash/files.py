"""Commands that read and write files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stem_local import units

from . import complete
from .command import SlashCommand

if TYPE_CHECKING:
    from ..screens.chat import ChatScreen


def _path(argument: str) -> str:
    """A path as shells and file managers write it: quoted, or with its blanks escaped."""
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "'\"":
        return argument[1:-1]
    return argument if os.sep == "\\" else argument.replace("\\ ", " ")


async def _read(chat: ChatScreen, argument: str) -> None:
    attachment = await chat.composer.attach(_path(argument))
    size = units.size(len(attachment.text.encode()))
    chat.tell(f"{attachment.name} ({size}) goes along with the next message.")


async def _export(chat: ChatScreen, argument: str) -> None:
    from ..screens.conversation_files import export
    from .conversation import opened

    info = (await opened(chat)).info
    told = await export(chat.app, chat.history, info.id, info.title, _path(argument) or None)
    if told is not None:
        chat.tell(told)


async def _import(chat: ChatScreen, argument: str) -> None:
    from ..screens.conversation_files import import_file

    imported = await import_file(chat.app, chat.history, _path(argument) or None)
    if imported is not None:
        await chat.open_conversation(imported)


COMMANDS = (
    SlashCommand("read", "FILE", "attach a text file", _read, complete.paths, aliases=("attach",)),
    SlashCommand("export", "[FILE]", "write this chat to .md or .json", _export, complete.paths),
    SlashCommand("import", "[FILE]", "take in a chat from .json", _import, complete.paths),
)
