"""Commands about the messages of a chat, and about other chats."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stem_local.errors import UsageError
from stem_local.history import typed_number

from . import complete
from .command import SlashCommand, Suggestion

if TYPE_CHECKING:
    from stem_local.history import Conversation

    from ..dialogue import Dialogue
    from ..screens.chat import ChatScreen


async def opened(chat: ChatScreen) -> Conversation:
    """The chat's conversation as it is saved. UsageError where nothing was said yet."""

    def get(dialogue: Dialogue) -> Conversation:
        if dialogue.id is None:
            raise UsageError("This chat has no messages yet.")
        return dialogue.history.get(dialogue.id)

    return await chat.kept(get)


async def _regen(chat: ChatScreen, _: str) -> None:
    await chat.regenerate()


async def _edit(chat: ChatScreen, _: str) -> None:
    await chat.edit()


async def _clear(chat: ChatScreen, _: str) -> None:
    await chat.new_chat()


async def _branch(chat: ChatScreen, argument: str) -> None:
    from ..widgets.transcript import Transcript

    steps = {"next": 1, "previous": -1}
    if argument not in steps:
        raise UsageError("/branch next and /branch previous go through what was tried in turn.")
    for entry in reversed((await opened(chat)).entries):
        if entry.branch[1] > 1:
            chat.transcript.post_message(Transcript.BranchRequested(entry.id, steps[argument]))
            return
    raise UsageError("This chat has no branches: /regen and /edit make them.")


def _directions(_: ChatScreen, typed: str) -> list[Suggestion]:
    return complete.matching(typed, (Suggestion("previous"), Suggestion("next")))


async def _copy(chat: ChatScreen, argument: str) -> None:
    from .. import clipboard
    from .copying import chosen

    text, what = chosen((await opened(chat)).entries, argument)
    chat.tell(await clipboard.copy(chat.app, text, what))


def _copyable(_: ChatScreen, typed: str) -> list[Suggestion]:
    return complete.matching(
        typed,
        (
            Suggestion("answer", "the last one"),
            Suggestion("code", "the last block of code in the last answer"),
            Suggestion("all", "every message that is shown"),
        ),
    )


async def _save(chat: ChatScreen, argument: str) -> None:
    await chat.app.save_again()
    info = (await opened(chat)).info
    if argument:
        await asyncio.to_thread(chat.history.rename, info.id, argument)
        await chat.retitle()
        info = (await opened(chat)).info
    if chat.history.private:
        chat.tell("This chat is private, so nothing is saved; /export writes it to a file.")
    else:
        chat.tell(f"Saved as “{info.title}”, as it goes; /load {info.id} opens it.")


async def _load(chat: ChatScreen, argument: str) -> None:
    if (number := typed_number(argument)) is None:
        await chat.choose_conversation(argument)
    else:
        await chat.open_conversation(number)


async def _search(chat: ChatScreen, argument: str) -> None:
    await chat.choose_conversation(argument)


async def _delete(chat: ChatScreen, _: str) -> None:
    from ..screens.confirm import ConfirmScreen

    info = (await opened(chat)).info
    if chat.answering:
        raise UsageError("An answer is being written into this chat; stop it first.")
    question = f"Delete “{info.title}” with all its messages? This cannot be undone."
    confirm = ConfirmScreen(question, title="Delete", yes="Delete", no="Keep")
    if await chat.app.push_screen_wait(confirm):
        await asyncio.to_thread(chat.history.delete, info.id)
        await chat.new_chat()


COMMANDS = (
    SlashCommand("regen", "", "answer the last message again", _regen, aliases=("retry",)),
    SlashCommand("edit", "", "change the last message and branch", _edit),
    SlashCommand("branch", "previous|next", "go through what was tried", _branch, _directions),
    SlashCommand("copy", "[answer|code|all]", "copy to the clipboard", _copy, _copyable),
    SlashCommand("clear", "", "begin a new chat; this one stays saved", _clear, aliases=("new",)),
    SlashCommand("save", "[TITLE]", "name this chat", _save, aliases=("rename",)),
    SlashCommand("load", "[NUMBER|WORDS]", "open a saved chat", _load, complete.conversations),
    SlashCommand("search", "[WORDS]", "search all messages", _search),
    SlashCommand("delete", "", "delete this chat; asks first", _delete),
)
