"""The files that a message will bring along."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from stem_local import units
from stem_local.history.entries import Attachment
from stem_local.terminal import printable


class Chips(Widget):
    """A row of names and sizes; a click takes one off."""

    class Removed(Message):
        """The chip at `index` was clicked."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    DEFAULT_CSS = """
    Chips {
        display: none;
        height: auto;
        max-height: 3;
        padding: 0 1;
        color: $text-accent;
        link-color: $text-accent;
        link-style: none;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._files: Sequence[Attachment] = ()

    def show(self, files: Sequence[Attachment]) -> None:
        """Show a chip for each; no row where there are none."""
        self._files = tuple(files)
        self.display = bool(files)
        self.refresh(layout=True)

    def render(self) -> Content:
        chips = [
            Content.from_markup(
                f"[@click=remove({index})]+ $name $size (x)[/]",
                name=" ".join(printable(file.name).split()),
                size=units.size(len(file.text.encode())),
            )
            for index, file in enumerate(self._files)
        ]
        return Content("   ").join(chips)

    def action_remove(self, index: int) -> None:
        self.post_message(self.Removed(index))
