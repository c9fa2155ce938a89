"""Saved conversations: one SQLite file that is written while answers stream.

The dataclasses cost nothing to import; `History`, which brings SQLite, is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .entries import (
    Attachment,
    Conversation,
    ConversationInfo,
    Entry,
    Hit,
    Role,
    State,
    typed_number,
)

if TYPE_CHECKING:
    from .store import History

__all__ = [
    "Attachment",
    "Conversation",
    "ConversationInfo",
    "Entry",
    "History",
    "Hit",
    "Role",
    "State",
    "typed_number",
]


def __getattr__(name: str) -> object:
    if name != "History":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .store import History

    globals()[name] = History
    return History
