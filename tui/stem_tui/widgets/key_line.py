"""The bottom line: keys that are in force here, as many as there is room for."""

from __future__ import annotations

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

PADDING = 3
"""Cells around a key and its description, and between them."""


class KeyLine(Footer):
    """Ends with the last key that has room with what it does, instead of in the middle of one."""

    def __init__(self) -> None:
        super().__init__(show_command_palette=False)

    def compose(self) -> ComposeResult:
        room = self.size.width
        for key in super().compose():
            if isinstance(key, FooterKey):
                room -= cell_len(key.key_display) + cell_len(key.description) + PADDING
            if room < 0:
                return
            yield key

    def on_resize(self, event: events.Resize) -> None:
        del event
        self.refresh(recompose=True)
