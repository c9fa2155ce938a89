"""A few values in a row, of which one is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from .figures import FOCUSED


class Choices(Widget, can_focus=True):
    """Values by their labels; the taken one has a filled mark. `Changed` tells of people only."""

    DEFAULT_CSS = """
    Choices {
        height: 1;
        color: $foreground;
        pointer: pointer;
        &:focus { text-style: bold; background: $primary 15%; }
    }
    """
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Previous choice", id="settings.previous_choice", show=False),
        Binding("right,space", "move(1)", "Next choice", id="settings.next_choice", show=False),
    ]

    value: reactive[str] = reactive("")

    class Changed(Message):
        """Someone took another value."""

        def __init__(self, choices: Choices, value: str) -> None:
            super().__init__()
            self.choices = choices
            self.value = value

        @property
        def control(self) -> Choices:
            return self.choices

    def __init__(
        self, options: Sequence[tuple[str, str]], value: str, *, name: str | None = None
    ) -> None:
        """`options` are values and their labels."""
        super().__init__(name=name)
        self._options = tuple(options)
        self.set_reactive(Choices.value, value)

    def render(self) -> RenderResult:
        mark = FOCUSED if self.has_focus else " "
        return Content(mark + " " + "  ".join(self._labels()))

    def _labels(self) -> list[str]:
        return [
            f"({'•' if value == self.value else ' '}) {label}" for value, label in self._options
        ]

    def action_move(self, step: int) -> None:
        values = [value for value, _ in self._options]
        self._take(values[(values.index(self.value) + step) % len(values)])

    def on_click(self, event: events.Click) -> None:
        start = 2
        for (value, _), label in zip(self._options, self._labels(), strict=True):
            if start <= event.x < start + len(label):
                self._take(value)
            start += len(label) + 2

    def _take(self, value: str) -> None:
        if value != self.value:
            self.value = value
            self.post_message(self.Changed(self, value))
