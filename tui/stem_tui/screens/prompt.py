"""Ask for one line of text: a title, a file."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Button, Input, Static

from stem_local.terminal import printable

from .dialog import Dialog, one_line

MAX_LENGTH = 4_096
"""Characters: longer than any path a system takes."""


class PromptScreen(Dialog[str | None]):
    """One line of text with a value to start from. `None` where the user leaves without one."""

    DEFAULT_CSS = """
    PromptScreen Input {
        margin-top: 1;
    }
    PromptScreen #hint {
        color: $text-muted;
    }
    """

    AUTO_FOCUS = "Input"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="prompt.cancel"),
    ]

    def __init__(
        self, question: str, value: str = "", *, title: str = "", hint: str = "", done: str = "OK"
    ) -> None:
        """`hint` says what is expected; `done` names what will happen: "Rename", "Save"."""
        super().__init__(title)
        self._question = question
        self._value = one_line(value)[:MAX_LENGTH]
        self._hint = hint
        self._done = done

    def parts(self) -> ComposeResult:
        yield Static(Content(printable(self._question)))
        yield Input(self._value, max_length=MAX_LENGTH, id="value")
        yield Static(Content(printable(self._hint)), id="hint")
        with Horizontal(id="answers"):
            yield Button(f"{self._done} (Enter)", variant="primary", id="done")
            yield Button("Cancel (Esc)", id="cancel")

    @on(Input.Submitted)
    @on(Button.Pressed, "#done")
    def _take(self) -> None:
        text = self.query_one(Input).value.strip()
        if text:
            self.dismiss(text)
        else:
            self.query_one("#hint", Static).update("Type something first, or leave with Escape.")

    @on(Button.Pressed, "#cancel")
    def action_leave(self) -> None:
        self.dismiss(None)
