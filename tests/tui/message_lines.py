"""The text that blocks and messages come to, line by line."""

from __future__ import annotations

from collections.abc import Iterable

from stem_tui.widgets.blocks import Block
from stem_tui.widgets.message import Message


def block_lines(blocks: Iterable[Block], width: int = 40) -> list[str]:
    """What blocks draw at a width, gaps included."""
    lines = []
    for block in blocks:
        count = block.lay_out(width)
        if block.gap is not None:
            lines.append(block.gap.plain.rstrip())
        lines += [block.line(index).text.plain.rstrip() for index in range(count)]
    return lines


def message_lines(message: Message, width: int = 60) -> list[str]:
    """What a message draws at a width."""
    message.lay_out(width)
    return [message.line(y).text.plain.rstrip() for y in range(message.height)]
