"""Messages and conversations to rows of the tables and back, both ways checked and bounded."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from stem_runtime.errors import UsageError

from .entries import Attachment, Conversation, ConversationInfo, Entry, Role, State

MAX_CONTENT = 16_000_000
MAX_FIELDS = 4_000_000
MAX_ATTACHMENTS = 100
MAX_TIME = 1e11
"""The year 5138, in seconds since the epoch: beyond it calendars fail."""

TITLE_LENGTH = 80
UNTITLED = "New chat"

ROLES = frozenset(get_args(Role))
STATES = frozenset(get_args(State))

ENTRY_FIELDS = """
    e.id, e.parent, e.role, e.state, e.created, e.forgotten, e.model, e.stats, e.content,
    e.attachments
"""
ENTRY_COLUMNS = f"""
    {ENTRY_FIELDS},
    (SELECT count(*) FROM entries s
     WHERE s.parent IS e.parent AND s.conversation = e.conversation AND s.id <= e.id) AS place,
    (SELECT count(*) FROM entries s
     WHERE s.parent IS e.parent AND s.conversation = e.conversation) AS siblings
"""


def stored_text(text: str, what: str = "message") -> str:
    """Text as SQLite can hold it: halves of surrogate pairs, which no file can hold, become "?".

    Raises UsageError for one that is too long.
    """
    if len(text) > MAX_CONTENT:
        raise UsageError(
            f"The {what} has {len(text):,} characters; at most {MAX_CONTENT:,} can be saved."
        )
    return _storable(text)


def stored_fields(fields: Mapping[str, Any], what: str) -> str:
    """A mapping as JSON. Raises UsageError where it is not JSON, or too long."""
    try:
        text = json.dumps(dict(fields), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The {what} cannot be saved as JSON: {error}.") from error
    if len(text) > MAX_FIELDS:
        raise UsageError(f"The {what} are too long to be saved: {len(text):,} characters.")
    return text


def stored_attachments(attachments: Sequence[Attachment]) -> str:
    """Attachments as JSON. Raises UsageError where they are too many or too long."""
    if len(attachments) > MAX_ATTACHMENTS:
        raise UsageError(
            f"{len(attachments)} files are attached; a message takes at most {MAX_ATTACHMENTS}."
        )
    if sum(len(a.text) + len(a.name) for a in attachments) > MAX_CONTENT:
        raise UsageError(f"The attached files have more than {MAX_CONTENT:,} characters in all.")
    files = [{"name": _storable(a.name), "text": _storable(a.text)} for a in attachments]
    return json.dumps(files, ensure_ascii=False)


def checked(value: str, allowed: frozenset[str], what: str) -> str:
    """The value. Raises UsageError where it is none of those allowed."""
    if value not in allowed:
        raise UsageError(f"{value!r:.40} is no {what}: use {', '.join(sorted(allowed))}.")
    return value


def title_of(content: str, attachments: Sequence[Attachment] = ()) -> str:
    """A title for a conversation that begins with this message, empty for an empty one."""
    text = content if content.strip() else "".join(a.name for a in attachments[:1])
    return clean_title(text.strip().partition("\n")[0])


def clean_title(text: str) -> str:
    """One line without control characters, cut at a length that fits a list."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


def entry(row: sqlite3.Row) -> Entry:
    """A row of ENTRY_COLUMNS. Raises ValueError or TypeError where it holds what cannot be."""
    # Unpacked at once: looking columns up by name takes twice as long for a long conversation.
    ident, parent, who, state, created, forgotten, model, stats, content, files, *branch = row
    return Entry(
        id=number(ident),
        parent=None if parent is None else number(parent),
        role=role(who),
        content=text(content),
        created=moment(created),
        branch=(number(branch[0]), number(branch[1])),
        attachments=_attachments(files),
        state=cast("State", _one_of(state, STATES)),
        model=None if model is None else text(model),
        stats=None if stats is None else fields(stats),
        forgotten=number(forgotten),
    )


def info(row: sqlite3.Row) -> ConversationInfo:
    """A row of conversations. Raises ValueError or TypeError where it holds what cannot be."""
    return ConversationInfo(
        id=number(row["id"]),
        title=clean_title(text(row["title"])) or UNTITLED,
        created=moment(row["created"]),
        updated=moment(row["updated"]),
        messages=number(row["messages"]),
    )


def conversation(row: sqlite3.Row, entries: Sequence[sqlite3.Row]) -> Conversation:
    """A row of conversations and the rows of a branch of it. Raises as `entry` and `info` do."""
    return Conversation(info(row), fields(row["settings"]), tuple(entry(e) for e in entries))


def fields(stored: object) -> dict[str, Any]:
    """A mapping from JSON. Raises ValueError or TypeError where it is not one."""
    value = json.loads(text(stored))
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where settings or figures should be")
    return value


def decoded(stored: bytes) -> str:
    """Text as the file has it: bytes damaged into invalid UTF-8 cost a character, no more."""
    return stored.decode("utf-8", "replace")


def number(value: object) -> int:
    """The value, which must be a whole number. Raises TypeError."""
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} where a number should be")
    return value


def text(value: object) -> str:
    """The value, which must be text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text should be")
    return value


def moment(value: object) -> float:
    """The value, which must be seconds since the epoch that calendars know. Raises ValueError."""
    if not isinstance(value, int | float) or not 0 <= value <= MAX_TIME:
        raise ValueError(f"{value!r:.40} where a time should be")
    return float(value)


def role(value: object) -> Role:
    """The value, which must be a role. Raises ValueError."""
    return cast("Role", _one_of(value, ROLES))


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _attachments(stored: object) -> tuple[Attachment, ...]:
    if stored == "[]":
        return ()
    return tuple(Attachment(text(a["name"]), text(a["text"])) for a in json.loads(text(stored)))


def _one_of(value: object, allowed: frozenset[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{value!r:.40} is none of {', '.join(sorted(allowed))}")
    return value
