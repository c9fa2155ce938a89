"""Ask before something that cannot be taken back."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Static

from stem_local.terminal import printable

from .dialog import Dialog


class ConfirmScreen(Dialog[bool]):
    """A question with two answers; `False` has the focus, so that a hasty Enter harms nothing."""

    DEFAULT_CSS = """
    ConfirmScreen VerticalScroll {
        height: auto;
        max-height: 1fr;
    }
    """

    AUTO_FOCUS = "#no"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="confirm.yes"),
        Binding("n,escape", "answer(False)", "No", id="confirm.no"),
        Binding("left,up", "app.focus_previous", "Other answer", show=False, id="confirm.previous"),
        Binding("right,down", "app.focus_next", "Other answer", show=False, id="confirm.next"),
    ]

    def __init__(self, question: str, *, title: str = "", yes: str = "Yes", no: str = "No") -> None:
        """`yes` and `no` are best the names of what will happen: "Delete", "Keep"."""
        super().__init__(title)
        self._question = question
        self._yes = yes
        self._no = no

    def parts(self) -> ComposeResult:
        # However long the question is, the answers stay in sight.
        with VerticalScroll(can_focus=False):
            yield Static(Content(printable(self._question)))
        with Horizontal(id="answers"):
            yield Button(f"{self._yes} (y)", variant="error", id="yes")
            yield Button(f"{self._no} (n)", id="no")

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
