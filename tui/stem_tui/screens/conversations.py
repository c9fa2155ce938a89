"""All saved conversations: found again, opened, renamed, exported, imported, deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Input, OptionList, Static

from stem_local.errors import StemError

from ..widgets.key_line import KeyLine
from .confirm import ConfirmScreen
from .conversation_files import export, import_file
from .conversation_rows import FOUND, NEWEST, Key, Row, conversation_row, hit_row
from .dialog import Dialog, one_line
from .prompt import PromptScreen

if TYPE_CHECKING:
    from stem_local.history import History

PAGE = 200
"""Conversations or found messages fetched at a time."""

PAUSE = 0.15
"""Seconds without a key before a search starts."""


class SearchBox(Input):
    """Where words are typed. Its own meaning of two keys gives way to the list's."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.open", "Open", id="conversations.open"),
        Binding("ctrl+d", "screen.delete", "Delete", id="conversations.delete"),
    ]


class ConversationsScreen(Dialog[int | None]):
    """The saved conversations, newest first, or the messages that hold the words typed above them.

    Returns the conversation to open, or `None`. `deleted` and `renamed` tell what became of others
    meanwhile, the one that was open maybe; `found` is the message whose branch was opened.
    """

    DEFAULT_CSS = """
    ConversationsScreen > #box {
        width: 100;
        height: 90%;
        padding: 0;
    }
    ConversationsScreen Input {
        margin: 0 1;
    }
    ConversationsScreen.-short > #box {
        height: 100%;
        padding: 0;
    }
    ConversationsScreen.-short Input {
        height: 1;
        border: none;
    }
    ConversationsScreen #header {
        height: 1;
        text-wrap: nowrap;
        padding: 0 2;
        color: $text-muted;
    }
    ConversationsScreen OptionList {
        height: 1fr;
        min-height: 2;
        border: none;
        padding: 0 2;
        text-wrap: nowrap;
        text-overflow: ellipsis;
        &:nocolor > .option-list--option-highlighted {
            text-style: reverse;
        }
    }
    ConversationsScreen #status {
        padding: 0 2;
        color: $text-muted;
    }
    """

    AUTO_FOCUS = "SearchBox"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "move('cursor_down')", "Next", show=False, id="conversations.next"),
        Binding("up", "move('cursor_up')", "Previous", show=False, id="conversations.previous"),
        Binding("pagedown", "move('page_down')", "Page down", show=False, id="conversations.down"),
        Binding("pageup", "move('page_up')", "Page up", show=False, id="conversations.up"),
        Binding("ctrl+r", "rename", "Rename", id="conversations.rename"),
        Binding("ctrl+s", "export", "Export", id="conversations.export"),
        Binding("ctrl+o", "import", "Import", id="conversations.import"),
        Binding("escape", "leave", "Close", id="conversations.close"),
    ]

    def __init__(
        self,
        history: History,
        current: int | None = None,
        *,
        query: str = "",
        answering: bool = False,
    ) -> None:
        """`current` is the conversation that is open, `answering` whether an answer is being
        written into it; `query` is searched for from the start.
        """
        super().__init__("Conversations (not saved)" if history.private else "Conversations")
        self._history = history
        self._current = current
        self._query_at_first = query
        self._answering = answering
        self._typing: Timer | None = None
        self._more = False
        self._listed_for: str | None = None
        self._open_when_listed = False
        self.deleted: set[int] = set()
        self.renamed: dict[int, str] = {}
        self.found: int | None = None

    def parts(self) -> ComposeResult:
        yield SearchBox(self._query_at_first, placeholder="Search all messages", id="search")
        yield Static(id="header")
        yield OptionList(id="list")
        yield Static(id="status")
        yield KeyLine()

    def on_mount(self) -> None:
        # The search box keeps the focus; up and down reach the list from there.
        self._list.can_focus = False
        self.watch(self._list, "scroll_y", self._scrolled, init=False)
        self._reload()

    # ------------------------------------------------------------------ what is listed

    @on(Input.Changed)
    def _typed(self) -> None:
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(PAUSE, self._reload)

    @work(exclusive=True, group="list")
    async def _reload(self, select: Key | None = None) -> None:
        """List anew what the search box asks for; `select`, or what was highlighted, stays so."""
        if select is None and self._row is not None:
            select = self._row.key
        words = self._search.value.strip()
        with self._telling():
            if words:
                await self._list_found(words, select)
            else:
                await self._list_newest(select)
        self._listed_for = words
        if self._open_when_listed:
            self._open_when_listed = False
            self.action_open()

    async def _list_found(self, words: str, select: Key | None) -> None:
        hits = await asyncio.to_thread(self._history.search, words, PAGE)
        now = time.time()
        self._fill(FOUND, [hit_row(hit, now) for hit in hits], select)
        self._say(_found(len(hits), words))

    async def _list_newest(self, select: Key | None) -> None:
        count = max(PAGE, len(self._rows))
        infos = await asyncio.to_thread(self._history.conversations, count)
        now = time.time()
        rows = [conversation_row(info, now, self._current) for info in infos]
        self._fill(NEWEST, rows, select)
        self._more = len(infos) == count
        self._say(_listed(len(infos), self._more))

    def _fill(self, header: str, rows: list[Row], select: Key | None) -> None:
        self._more = False
        self.query_one("#header", Static).update(header)
        self._list.set_options(rows)
        places = (index for index, row in enumerate(rows) if row.key == select)
        self._list.highlighted = next(places, 0) if rows else None

    def _scrolled(self) -> None:
        left = self._list.max_scroll_y - self._list.scroll_y
        if self._more and left < self._list.size.height:
            self._more = False
            self._load_more()

    @work(exclusive=True, group="list")
    async def _load_more(self) -> None:
        with self._telling():
            have = len(self._rows)
            infos = await asyncio.to_thread(self._history.conversations, PAGE, have)
            now = time.time()
            # Another window may have begun a conversation since, which moves all others down.
            known = {row.conversation for row in self._rows}
            self._list.add_options(
                conversation_row(info, now, self._current) for info in infos if info.id not in known
            )
            self._more = len(infos) == PAGE
            self._say(_listed(self._list.option_count, self._more))

    # ------------------------------------------------------------------ what keys do

    def action_move(self, how: str) -> None:
        getattr(self._list, f"action_{how}")()

    @work(exclusive=True, group="action")
    async def action_open(self) -> None:
        if self._listed_for != self._search.value.strip():
            # Enter was faster than the search: what it means is still to come.
            self._open_when_listed = True
            return
        if (row := self._row) is None:
            return
        with self._telling():
            # The message may be on a branch that is not the open one, which an answer under way
            # is being written to.
            if row.entry is not None and not self._being_answered(row):
                await asyncio.to_thread(self._history.open_entry, row.entry)
                self.found = row.entry
            self.dismiss(row.conversation)

    @on(OptionList.OptionSelected)
    def _clicked(self) -> None:
        self.action_open()

    def action_leave(self) -> None:
        self.dismiss(None)

    @work(exclusive=True, group="action")
    async def action_rename(self) -> None:
        if (row := self._row) is None:
            return
        prompt = PromptScreen("New title", row.title, title="Rename", done="Rename")
        title = await self.app.push_screen_wait(prompt)
        if title is None:
            return
        with self._telling():
            await asyncio.to_thread(self._history.rename, row.conversation, title)
            self.renamed[row.conversation] = title
            self._reload()

    @work(exclusive=True, group="action")
    async def action_delete(self) -> None:
        if (row := self._row) is None:
            return
        if self._being_answered(row):
            self._say("An answer is being written into this conversation: stop it first.")
            return
        question = f"Delete “{row.title}” with all its messages? This cannot be undone."
        confirm = ConfirmScreen(question, title="Delete", yes="Delete", no="Keep")
        if not await self.app.push_screen_wait(confirm):
            return
        with self._telling():
            await asyncio.to_thread(self._history.delete, row.conversation)
            self.deleted.add(row.conversation)
            self._reload(self._neighbour(row))

    @work(exclusive=True, group="action")
    async def action_export(self) -> None:
        if (row := self._row) is None:
            return
        with self._telling():
            told = await export(self.app, self._history, row.conversation, row.title)
            if told is not None:
                self._say(told)

    @work(exclusive=True, group="action")
    async def action_import(self) -> None:
        with self._telling():
            imported = await import_file(self.app, self._history)
            if imported is not None:
                self._search.value = ""
                self._reload((imported, None))

    # ------------------------------------------------------------------ small things

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say what goes wrong instead of failing: the list is still good."""
        try:
            yield
        except StemError as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        self.query_one("#status", Static).update(Content(one_line(text)))

    @property
    def _search(self) -> Input:
        return self.query_one("#search", Input)

    @property
    def _list(self) -> OptionList:
        return self.query_one("#list", OptionList)

    @property
    def _rows(self) -> list[Row]:
        return [row for row in self._list.options if isinstance(row, Row)]

    @property
    def _row(self) -> Row | None:
        row = self._list.highlighted_option
        return row if isinstance(row, Row) else None

    def _being_answered(self, row: Row) -> bool:
        return self._answering and row.conversation == self._current

    def _neighbour(self, gone: Row) -> Key | None:
        """The row below those of a conversation that goes, or above where they were the last."""
        others = [row for row in self._rows if row.conversation != gone.conversation]
        place = self._list.highlighted or 0
        return others[min(place, len(others) - 1)].key if others else None


def _found(count: int, words: str) -> str:
    if count == 0:
        return f"Nothing has “{words}”."
    if count == PAGE:
        return f"The first {PAGE} with “{words}”; more words find fewer."
    return f"{count} found with “{words}”."


def _listed(count: int, more: bool) -> str:
    if count == 0:
        return "No conversations yet: what you ask is saved here."
    if more:
        return f"The {count} newest conversations; more below."
    return f"{count} {'conversation' if count == 1 else 'conversations'}."
