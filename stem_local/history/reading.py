"""A conversation out of a JSON text that anybody may have written."""

from __future__ import annotations

import json
import time
from typing import Any, NoReturn, TypeVar

from stem_runtime.errors import UsageError

from . import rows
from .entries import Attachment, Conversation, ConversationInfo, Entry

FORMAT = "stem-local conversation"
VERSION = 1

MAX_TEXT = 64_000_000
MAX_MESSAGES = 100_000

_T = TypeVar("_T")


def conversation_from(text: str) -> tuple[Conversation, int | None]:
    """The conversation in a JSON text, its ids as they are there, and where its open branch ends.

    Raises UsageError that says what is wrong and in which message.
    """
    document = _parsed(text)
    if isinstance(document, list):
        return _plain({"messages": document})
    if not isinstance(document, dict):
        _refuse(f"it holds {_kind(document)}, not an object or a list")
    if "format" not in document:
        return _plain(document)
    if document["format"] != FORMAT:
        _refuse(f'its format is {document["format"]!r:.60}, not "{FORMAT}"')
    version = _take(document, "version", int)
    if version > VERSION:
        raise UsageError(
            f"This conversation was exported by a newer version of STEM Local (format {version}; "
            f"this one knows {VERSION}); update STEM Local to import it."
        )
    return _ours(document)


def _parsed(text: str) -> Any:
    if len(text) > MAX_TEXT:
        raise UsageError(f"A text of {len(text):,} characters is too long for a conversation.")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        _refuse("it is nested too deeply")
    except json.JSONDecodeError as error:
        _refuse(f"it is not JSON ({error})")
    except ValueError:
        _refuse("it has a number of thousands of digits")


def _no_constant(name: str) -> NoReturn:
    _refuse(f"it is not JSON ({name} is no number)")


def _ours(document: dict[str, Any]) -> tuple[Conversation, int | None]:
    messages = _messages(document)
    entries = tuple(_entry(message, f"message {n}") for n, message in enumerate(messages, 1))
    end = _take(document, "open", int, default=None)
    settings = _take(document, "settings", dict, default={})
    return _conversation(document, settings, entries), end


def _entry(message: Any, where: str) -> Entry:
    if not isinstance(message, dict):
        _refuse(f"{where} is {_kind(message)}, not an object")
    # A role or state that does not exist is refused where messages are saved.
    state: Any = _take(message, "state", str, where, default="whole")
    role: Any = _take(message, "role", str, where)
    return Entry(
        id=_take(message, "id", int, where),
        parent=_take(message, "parent", int, where, default=None),
        role=role,
        content=_take(message, "content", str, where),
        created=_time(message, "created", where),
        attachments=_attachments(message, where),
        state="stopped" if state == "streaming" else state,
        model=_take(message, "model", str, where, default=None),
        stats=_take(message, "stats", dict, where, default=None),
        forgotten=_forgotten(message, where),
    )


def _forgotten(message: dict[str, Any], where: str) -> int:
    forgotten: int = _take(message, "forgotten", int, where, default=0)
    if not 0 <= forgotten <= MAX_MESSAGES:
        _refuse(f'"forgotten" is {forgotten!r:.40}', where)
    return forgotten


def _attachments(message: dict[str, Any], where: str) -> tuple[Attachment, ...]:
    files = _take(message, "attachments", list, where, default=[])
    if not all(isinstance(file, dict) for file in files):
        _refuse('"attachments" are not all objects', where)
    return tuple(
        Attachment(_take(file, "name", str, where), _take(file, "text", str, where))
        for file in files
    )


def _plain(document: dict[str, Any]) -> tuple[Conversation, None]:
    """A list of messages as chat programs and interfaces pass them on: one branch."""
    messages = [_spoken(m, f"message {n}") for n, m in enumerate(_messages(document), 1)]
    system = []
    while messages and messages[0][0] in ("system", "developer"):
        system.append(messages.pop(0)[1])
    now = time.time()
    entries = tuple(
        Entry(number, number - 1 or None, role, content, now)
        for number, (role, content) in enumerate(messages, 1)
    )
    return _conversation(document, {"system": "\n\n".join(system)} if system else {}, entries), None


def _spoken(message: Any, where: str) -> tuple[Any, str]:
    if not isinstance(message, dict):
        _refuse(f"{where} is {_kind(message)}, not an object")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) < len(content):
            _refuse("it has parts that are not text", where)
        content = "".join(_take(part, "text", str, where) for part in parts)
    return _take(message, "role", str, where), _take({"content": content}, "content", str, where)


def _conversation(
    document: dict[str, Any], settings: dict[str, Any], entries: tuple[Entry, ...]
) -> Conversation:
    title = rows.clean_title(_take(document, "title", str, default=""))
    first = next((entry for entry in entries if entry.role == "user"), None)
    if not title and first is not None:
        title = rows.title_of(first.content, first.attachments)
    created, updated = _time(document, "created"), _time(document, "updated")
    return Conversation(
        ConversationInfo(0, title, created, updated, len(entries)), settings, entries
    )


def _messages(document: dict[str, Any]) -> list[Any]:
    messages: list[Any] = _take(document, "messages", list)
    if not messages:
        _refuse("it has no messages")
    if len(messages) > MAX_MESSAGES:
        _refuse(f"it has {len(messages):,} messages; at most {MAX_MESSAGES:,} can be taken in")
    return messages


def _time(fields: dict[str, Any], key: str, where: str = "") -> float:
    value = fields.get(key)
    if value is None:
        return time.time()
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(f'"{key}" is {_kind(value)}, not seconds since 1970', where)
    if not 0 <= value <= rows.MAX_TIME:
        _refuse(f'"{key}" is {value!r:.40}, which is no time in seconds since 1970', where)
    return float(value)


_REQUIRED: Any = object()


def _take(
    fields: dict[str, Any], key: str, kind: type[_T], where: str = "", default: Any = _REQUIRED
) -> Any:
    """The value of a key, which must be of a kind; absent or null it is the default."""
    value = fields.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        have = "missing" if value is None else _kind(value)
        _refuse(f'"{key}" is {have}, not {_KINDS[kind]}', where)
    return value


_KINDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    dict: "an object",
    list: "a list",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _kind(value: object) -> str:
    return _KINDS[type(value)]


def _refuse(reason: str, where: str = "") -> NoReturn:
    at = f"in {where} " if where else ""
    raise UsageError(f"This is not a conversation that can be imported: {at}{reason}.")
