"""What a saved conversation is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stem_runtime.errors import UsageError

Role = Literal["user", "assistant"]

State = Literal["whole", "streaming", "stopped", "length", "context", "failed"]
"""whole: came to its own end. streaming: still being written. stopped: by the user, or with the
process. length: at max_tokens. context: the context was full. failed: by an error."""

TOO_LARGE = "That number is too large to be one in the history."

# SQLite's numbers have 19 digits at most, and Python reads none of thousands
_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file that a message brings along."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a conversation, which is a tree: siblings are answers or edits tried in turn.

    `branch` is its place among its siblings, from 1, and how many they are. `created` is seconds
    since the epoch. `stats` is `Stats.to_dict()` of an answer. `forgotten` is how many of the
    oldest turns an answer was given without, because the context was full.
    """

    id: int
    parent: int | None
    role: Role
    content: str
    created: float
    branch: tuple[int, int] = (1, 1)
    attachments: tuple[Attachment, ...] = ()
    state: State = "whole"
    model: str | None = None
    stats: Mapping[str, Any] | None = None
    forgotten: int = 0


@dataclass(frozen=True, slots=True)
class ConversationInfo:
    """A conversation as a list shows it. Times are seconds since the epoch."""

    id: int
    title: str
    created: float
    updated: float
    messages: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation: `settings` as they were last (`ChatSettings.to_dict()` and the model), and
    `entries`, the branch that is open, from its first message to its last.
    """

    info: ConversationInfo
    settings: Mapping[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that a search found. `snippet` has the found words between \\x02 and \\x03."""

    conversation: int
    title: str
    entry: int
    role: Role
    snippet: str
    created: float


def typed_number(text: str) -> int | None:
    """The number of a conversation or message, None for a text that is none. Raises UsageError."""
    if not text.isdecimal():
        return None
    if len(text) > _DIGITS:
        raise UsageError(TOO_LARGE)
    return int(text)
