"""The files that a message will bring along."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content
from textual.widget import Widget

from stem_local import units
from stem_local.errors import UsageError
from stem_local.history.entries import Attachment
from stem_local.terminal import printable

MOST = 20
"""Files of one message."""


class Chips(Widget):
    """A row of names and sizes; a click takes one off. No row at all where there are none."""

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
        self._files: tuple[Attachment, ...] = ()

    @property
    def files(self) -> tuple[Attachment, ...]:
        return self._files

    @files.setter
    def files(self, files: Iterable[Attachment]) -> None:
        self._files = tuple(files)
        self.display = bool(self._files)
        self.refresh(layout=True)

    def add(self, file: Attachment) -> None:
        """Raises UsageError where a message takes no more."""
        if len(self._files) >= MOST:
            raise UsageError(f"A message takes {MOST} files; take one off first.")
        self.files = (*self._files, file)

    def drop_last(self) -> None:
        """Take the last file off."""
        self.files = self._files[:-1]

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
        self.files = self._files[:index] + self._files[index + 1 :]
