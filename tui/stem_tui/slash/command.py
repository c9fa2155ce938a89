"""What a slash command is, and how a typed line names one."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..screens.chat import ChatScreen

# A path like /usr/lib or a comment like /* is text, not a command.
_LINE = re.compile(r"/([A-Za-z?][A-Za-z_-]*)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Something that can stand where the user types.

    `whole`: nothing more needs to follow it. `label` is shown instead of the value.
    """

    value: str
    help: str = ""
    whole: bool = True
    label: str = ""


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One command: what people type, what help says, and what it does.

    `arguments` is how help writes what follows the name: "NAME" must be given, "[NAME]" may be,
    "" is nothing. `run` gets the rest of the line, stripped. `complete` gets the screen and the
    rest of the line as typed so far, and is called in a thread: it only reads.
    """

    name: str
    arguments: str
    help: str
    run: Callable[[ChatScreen, str], Awaitable[None]]
    complete: Callable[[ChatScreen, str], Iterable[Suggestion]] | None = None
    aliases: tuple[str, ...] = ()

    @property
    def needs_argument(self) -> bool:
        return bool(self.arguments) and not self.arguments.startswith("[")

    @property
    def usage(self) -> str:
        """The line that help shows: "/set [NAME [VALUE]]"."""
        return f"/{self.name} {self.arguments}".rstrip()


def parse(text: str) -> tuple[str, str] | None:
    """The lower-case name and the argument of a typed command; None where `text` is a message."""
    match = _LINE.fullmatch(text.rstrip())
    if match is None:
        return None
    return match[1].lower(), (match[2] or "").strip()


def literal(text: str) -> str:
    """The message that `text` means: a doubled first slash stands for one."""
    return text[1:] if text.startswith("//") else text
