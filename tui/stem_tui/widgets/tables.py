"""Tables as blocks."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from .blocks import Block, Line

DIVIDER = " │ "
NARROWEST_COLUMN = 3


class Table(Block):
    """Rows of cells, the first of them the header."""

    def __init__(self, rows: Sequence[Sequence[Content]]) -> None:
        self.rows = rows
        self._lines: list[Line] = []
        self._width = 0

    def lay_out(self, width: int) -> int:
        room = self.room(width)
        if room == self._width:
            return len(self._lines)
        self._width = room
        columns = max(len(row) for row in self.rows)
        if columns * (NARROWEST_COLUMN + len(DIVIDER)) > room:
            self._lines = _without_columns(self.rows, room)
        else:
            self._lines = _in_columns(self.rows, _column_widths(self.rows, room))
        return len(self._lines)

    def line(self, index: int) -> Line:
        return self.with_prefix(index, self._lines[index])


def _without_columns(rows: Sequence[Sequence[Content]], room: int) -> list[Line]:
    """A row of many cells as text, since their columns would be too narrow to read."""
    lines = (Content(DIVIDER).join(row).wrap(room) for row in rows)
    return [Line(part, " " if i else "\n") for parts in lines for i, part in enumerate(parts)]


def _in_columns(rows: Sequence[Sequence[Content]], widths: Sequence[int]) -> list[Line]:
    header, *others = (_table_row(row, widths) for row in rows)
    rule = "─┼─".join("─" * width for width in widths)
    return [
        *(Line(line.stylize(".strong")) for line in header),
        Line(Content.styled(rule, ".rule")),
        *(Line(line) for lines in others for line in lines),
    ]


def _column_widths(rows: Sequence[Sequence[Content]], room: int) -> list[int]:
    """As wide as their contents; where there is no room, the widest give way."""
    columns = range(max(len(row) for row in rows))
    widths = [max(1, *(row[i].cell_length for row in rows if i < len(row))) for i in columns]
    room -= len(DIVIDER) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > NARROWEST_COLUMN:
        widest = max(widths)
        second = max((width for width in widths if width < widest), default=0)
        excess = -(-(sum(widths) - room) // widths.count(widest))
        narrower = max(widest - excess, second, NARROWEST_COLUMN)
        widths = [narrower if width == widest else width for width in widths]
    return widths


def _table_row(row: Sequence[Content], widths: Sequence[int]) -> list[Content]:
    wrapped = [cell.wrap(width) for cell, width in zip(row, widths, strict=False)]
    height = max(len(lines) for lines in wrapped)
    divider = Content.styled(DIVIDER, ".rule")
    return [
        divider.join(
            _padded(lines, y, width) for lines, width in zip(wrapped, widths, strict=False)
        )
        for y in range(height)
    ]


def _padded(lines: Sequence[Content], y: int, width: int) -> Content:
    text = lines[y] if y < len(lines) else Content()
    return text.pad_right(width - text.cell_length)
