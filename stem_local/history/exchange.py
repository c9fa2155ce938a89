"""Conversations as files: Markdown to read, JSON to keep and to take in again."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from . import rows
from .entries import Attachment, Conversation, Entry
from .files import read_file, write_file
from .reading import FORMAT, VERSION, conversation_from

if TYPE_CHECKING:
    from .store import History

__all__ = ["fenced", "from_json", "read_file", "to_json", "to_markdown", "write_file"]

_ENDINGS = {
    "streaming": "not finished",
    "stopped": "stopped",
    "length": "cut off at the limit of tokens",
    "context": "cut off: the context was full",
    "failed": "ended by an error",
}


def to_markdown(history: History, conversation: int) -> str:
    """The open branch as Markdown, without control characters. Raises UsageError as `get` does."""
    from ..terminal import printable

    return printable("\n\n".join(_blocks(history.get(conversation)))) + "\n"


def to_json(history: History, conversation: int) -> str:
    """All branches as JSON, for `from_json`. Raises UsageError as `get` does."""
    opened = history.get(conversation).entries
    saved = history.tree(conversation)
    numbers = {entry.id: number for number, entry in enumerate(saved.entries, 1)}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "title": saved.info.title,
        "created": saved.info.created,
        "updated": saved.info.updated,
        "settings": saved.settings,
        "open": numbers[opened[-1].id] if opened else None,
        "messages": [_message(entry, numbers) for entry in saved.entries],
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def from_json(history: History, text: str) -> int:
    """Save a conversation from JSON: ours, a list of messages, or an object with "messages".

    Messages of other programs have a "role" and a "content". Returns the new conversation. Raises
    UsageError, and saves nothing, where the text is anything else.
    """
    return history.insert(*conversation_from(text))


def fenced(name: str, text: str) -> str:
    """A file's text under its name, between fences longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{name}:\n\n{fence}\n{text.rstrip()}\n{fence}"


def _blocks(conversation: Conversation) -> list[str]:
    """The paragraphs of a conversation."""
    info = conversation.info
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created))
    blocks = [f"# {info.title}", f"*Begun on {when}*"]
    system = conversation.settings.get("system")
    if isinstance(system, str) and system.strip():
        blocks += ["## System", system.strip()]
    for entry in conversation.entries:
        blocks += _section(entry)
    return blocks


def _section(entry: Entry) -> list[str]:
    who = "You" if entry.role == "user" else rows.clean_title(entry.model or "") or "Assistant"
    place, siblings = entry.branch
    blocks = [f"## {who} ({place} of {siblings})" if siblings > 1 else f"## {who}"]
    if entry.forgotten:
        turns = "turn" if entry.forgotten == 1 else "turns"
        blocks.append(f"*(without the {entry.forgotten} oldest {turns}: the context was full)*")
    blocks += [_attached(attachment) for attachment in entry.attachments]
    if entry.content.strip():
        blocks.append(entry.content.strip("\n"))
    if entry.state in _ENDINGS:
        blocks.append(f"*({_ENDINGS[entry.state]})*")
    return blocks


def _attached(attachment: Attachment) -> str:
    name = rows.clean_title(attachment.name).replace("`", "'")
    return fenced(f"`{name}`", attachment.text)


def _message(entry: Entry, numbers: dict[int, int]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": numbers[entry.id],
        "parent": None if entry.parent is None else numbers[entry.parent],
        "role": entry.role,
        "content": entry.content,
        "created": entry.created,
        "state": entry.state,
    }
    if entry.attachments:
        message["attachments"] = [{"name": a.name, "text": a.text} for a in entry.attachments]
    if entry.model is not None:
        message["model"] = entry.model
    if entry.stats is not None:
        message["stats"] = dict(entry.stats)
    if entry.forgotten:
        message["forgotten"] = entry.forgotten
    return message
