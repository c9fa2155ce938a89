"""How a saved conversation, or a message that a search found in one, reads as a row of a list."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

from textual.content import Content
from textual.widgets.option_list import Option

from stem_local.history.entries import ConversationInfo, Hit

from .dialog import one_line

NEWEST = f"  {'Last used':<15} {'Msgs':>6}  Title"
FOUND = f"  {'When':<15} {'Who':>6}  Where"
"""What stands above the columns of the two kinds of rows."""

_OPEN, _CLOSE = "\x02", "\x03"
_FOUND = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}?")


Key = tuple[int, int | None]
"""A conversation, and the message of it that was found, if any."""


class Row(Option):
    """A row that knows which conversation it stands for, and which message of it was found."""

    def __init__(
        self, prompt: Content, conversation: int, title: str, entry: int | None = None
    ) -> None:
        super().__init__(prompt)
        self.conversation = conversation
        self.title = title
        self.entry = entry

    @property
    def key(self) -> Key:
        """What tells it from other rows when they are listed anew."""
        return self.conversation, self.entry


def conversation_row(info: ConversationInfo, now: float, current: int | None = None) -> Row:
    """One line: a mark if it is the one that is open, when it was last used, its size and title."""
    title = one_line(info.title) or "(untitled)"
    mark = "▸ " if info.id == current else "  "
    columns = f"{mark}{when(info.updated, now):<15} {info.messages:>6}  "
    return Row(Content(columns + title), info.id, title)


def hit_row(hit: Hit, now: float) -> Row:
    """Two lines: where it was said and by whom, and the words around what was found."""
    title = one_line(hit.title) or "(untitled)"
    who = "you" if hit.role == "user" else "model"
    columns = f"  {when(hit.created, now):<15} {who:>6}  "
    lines = Content(columns + title), marked(hit.snippet)
    return Row(Content("\n").join(lines), hit.conversation, title, hit.entry)


def marked(snippet: str) -> Content:
    """A snippet on one line, its found words bold and underlined."""
    parts: list[str | tuple[str, str]] = ["    "]
    end = 0
    for found in _FOUND.finditer(snippet):
        parts.append(_flat(snippet[end : found.start()]))
        parts.append((_flat(found[1]), "bold underline"))
        end = found.end()
    parts.append(_flat(snippet[end:]))
    return Content.assemble(*parts)


def when(then: float, now: float | None = None) -> str:
    """A moment in local time, as short as it is clear: at most 15 characters."""
    moment = _local(then)
    today = _local(time.time() if now is None else now)
    days = (today.date() - moment.date()) // timedelta(days=1)
    if days == 0:
        return f"{moment:today %H:%M}"
    if days == 1:
        return f"{moment:yesterday %H:%M}"
    if 1 < days < 7:
        return f"{moment:%a %H:%M}"
    return f"{moment:%Y-%m-%d}"


def _local(seconds: float) -> datetime:
    # A damaged or imported conversation may claim any time.
    try:
        return datetime.fromtimestamp(seconds)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0)


def _flat(text: str) -> str:
    """One line of it, whose outer spaces are kept: they part it from what it is joined with."""
    inner = one_line(text)
    before = " " if text[:1].isspace() and inner else ""
    after = " " if text[-1:].isspace() else ""
    return before + inner + after
