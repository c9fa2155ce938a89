"""Commands about the model and how it answers."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from stem_local.errors import UsageError

from . import complete
from .command import SlashCommand

if TYPE_CHECKING:
    from ..screens.chat import ChatScreen


async def _model(chat: ChatScreen, argument: str) -> None:
    if argument:
        await chat.use_model(argument)
    else:
        await chat.choose_model()


async def _system(chat: ChatScreen, argument: str) -> None:
    if not argument:
        prompt = chat.settings.system
        chat.show_text("System prompt", _quoted(prompt) if prompt else "There is none.")
        return
    text = "" if argument.lower() == "none" else argument
    chat.change(chat.settings.with_text("system", text))
    chat.tell("The system prompt is used from the next answer on." if text else "It is gone.")


async def _set(chat: ChatScreen, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if not name:
        chat.show_text("Settings of this chat", _page(chat))
    elif value.strip():
        _change(chat, name, value.strip())
    else:
        chat.tell(_described(chat, name))


async def _sparsity(chat: ChatScreen, argument: str) -> None:
    if argument:
        _change(chat, "sparsity", argument)
    else:
        chat.tell(_described(chat, "sparsity"))


def _change(chat: ChatScreen, name: str, value: str) -> None:
    from stem_local.chat_settings import value_text

    name = name.lower()
    settings = chat.settings.with_text(name, value)
    chat.change(settings)
    chat.tell(f"{name} is {_short(value_text(name, getattr(settings, name)))} now.")


def _described(chat: ChatScreen, wanted: str) -> str:
    for name, value, about in chat.settings.describe():
        if name == wanted.lower():
            return f"{name} is {_short(value)}. {about}"
    chat.settings.with_text(wanted, "")  # raises, naming the nearest setting
    raise UsageError(f"There is no setting {wanted!r:.60}.")


def _page(chat: ChatScreen) -> str:
    rows = []
    for name, value, about in chat.settings.describe():
        shown = _short(value).replace("`", "'")
        rows.append(f"- **{name}** `{shown}`\n\n  {about}")
    return "\n".join([*rows, "", "`/set NAME VALUE` changes one for this chat."])


def _short(value: str) -> str:
    """A value in one line, which only a system prompt may need to be cut for."""
    return textwrap.shorten(value, 60, placeholder=" …") or "none"


def _quoted(text: str) -> str:
    """Text as a Markdown block that shows it as it is, whatever fences it has."""
    return "\n".join(f"    {line}" for line in text.splitlines())


async def _stats(chat: ChatScreen, _: str) -> None:
    from .stats import last_answer

    chat.show_text("The last answer", await last_answer(chat))


COMMANDS = (
    SlashCommand("model", "[NAME]", "switch, get or remove a model", _model, complete.models),
    SlashCommand("system", "[TEXT]", "show or set the system prompt; none: no prompt", _system),
    SlashCommand("set", "[NAME [VALUE]]", "show or change a setting", _set, complete.settings),
    SlashCommand("sparsity", "[auto|off|N%]", "how much is left out", _sparsity, complete.sparsity),
    SlashCommand("stats", "", "what the last answer took", _stats),
)
