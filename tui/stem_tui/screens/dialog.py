"""What the screens that lie over the chat have in common: a framed box in the middle."""

from __future__ import annotations

from typing import TypeVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen

from stem_local.terminal import printable

T = TypeVar("T")


class Dialog(ModalScreen[T]):
    """A modal screen whose parts are stacked in a box; the border carries its title.

    Buttons in a part called `answers` stand side by side at the right.
    """

    DEFAULT_CSS = """
    Dialog {
        align: center middle;
    }
    Dialog > #box {
        width: 64;
        max-width: 95%;
        height: auto;
        max-height: 95%;
        overflow-y: auto;
        padding: 1 2;
        border: round $primary;
        border-title-style: bold;
        background: $surface;
        color: $foreground;
    }
    Dialog #answers {
        height: auto;
        margin-top: 1;
        align-horizontal: right;
    }
    Dialog #answers Button {
        margin-left: 2;
    }
    Dialog.-short > #box {
        max-height: 100%;
        padding: 0 1;
    }
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        # On fewer rows everything but the text gives way.
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (16, "-tall")]
        self._title = title

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = Content(one_line(self._title))
            yield from self.parts()

    def parts(self) -> ComposeResult:
        """The widgets in the box, from the top."""
        yield from ()


def one_line(text: str) -> str:
    """Text of any origin as a single line, without control characters."""
    return " ".join(printable(text).split())
