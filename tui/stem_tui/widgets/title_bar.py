"""The top line of the chat: which model answers, what the chat is called, what is not saved."""

from __future__ import annotations

from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget


class TitleBar(Widget):
    """One line; `unsaved` says why nothing is written, empty where it is."""

    DEFAULT_CSS = """
    TitleBar {
        height: 1;
        padding: 0 1;
        background: $panel;
        color: $text;
    }
    """

    model = reactive("")
    title = reactive("")
    unsaved = reactive("")

    def render(self) -> RenderResult:
        unsaved = f" · ({self.unsaved})" if self.unsaved else ""
        name = Content(f"{self.model or 'no model'} · {self.title or 'new chat'}")
        room = max(self.size.width - len(unsaved), 0)
        return name.truncate(room, ellipsis=True) + unsaved
