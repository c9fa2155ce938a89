"""A page of Markdown over the chat: help, figures, notes."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Markdown

from stem_local.terminal import printable

from ..widgets.key_line import KeyLine
from .confirm import ConfirmScreen
from .dialog import Dialog


class PageScreen(Dialog[None]):
    """A titled page to read and scroll. A link is followed only after asking."""

    DEFAULT_CSS = """
    PageScreen > #box {
        width: 90;
        padding: 0 1;
    }
    PageScreen VerticalScroll {
        height: auto;
        max-height: 1fr;
    }
    PageScreen Markdown {
        background: transparent;
    }
    """

    AUTO_FOCUS = "VerticalScroll"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "leave", "Close", id="page.close"),
    ]

    def __init__(self, title: str, markdown: str) -> None:
        super().__init__(title)
        self._markdown = printable(markdown)

    def parts(self) -> ComposeResult:
        with VerticalScroll():
            yield Markdown(self._markdown, open_links=False)
        yield KeyLine()

    async def on_markdown_link_clicked(self, event: Markdown.LinkClicked) -> None:
        address = event.href

        def follow(wanted: bool | None) -> None:
            if wanted:
                self.app.open_url(address)

        question = f"Open this address in the browser?\n\n{address}"
        await self.app.push_screen(ConfirmScreen(question, title="A link", yes="Open"), follow)

    def action_leave(self) -> None:
        self.dismiss()
