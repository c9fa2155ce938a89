"""What a message is drawn from: blocks that are wrapped to a width and drawn line by line.

A block makes its lines when they are asked for, so that what is out of sight costs next to nothing.
Styles are names: ".code" is a component class of the widget that draws, anything else Textual's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from rich.cells import cell_len
from textual.content import Content, Span

TAB = 4
NARROWEST = 8
"""Text is wrapped to at least this many cells, however deep it is nested."""


class Line(NamedTuple):
    """One line on the screen. `joint` is what stood between it and the line above in the text:
    a newline, or what wrapping took away. `fill` is the style of the cells beyond its end.
    """

    text: Content
    joint: str = "\n"
    fill: str = ""


EMPTY = Line(Content())


class Block(ABC):
    """A part of a message. `gap` is drawn as a line above it, None for no such line.

    `first` and `rest` are drawn before its first line and before the others: bullets and bars.
    """

    gap: Content | None = EMPTY.text
    first: Content = EMPTY.text
    rest: Content = EMPTY.text

    @abstractmethod
    def lay_out(self, width: int) -> int:
        """Wrap to `width` cells. Returns the number of lines, without the gap."""

    @abstractmethod
    def line(self, index: int) -> Line:
        """A line of the last layout."""

    def room(self, width: int) -> int:
        """Cells that are left of `width` beside bullets and bars."""
        return max(width - max(self.first.cell_length, self.rest.cell_length), NARROWEST)

    def with_prefix(self, index: int, line: Line) -> Line:
        """A line with its bullets and bars."""
        prefix = self.rest if index else self.first
        return line._replace(text=prefix + line.text) if prefix else line


class Paragraph(Block):
    """Text that is wrapped at spaces.

    While it grows, `settle` keeps its beginning, which is then wrapped only once.
    """

    def __init__(self, text: Content) -> None:
        self.text = text
        self._settled: list[Content] = []
        self._lines: list[Line] = []
        self._whole = 0
        self._carry = Line(Content())
        self._wrapped = 0
        self._width = 0
        self._laid_out: Content | None = None

    def settle(self, text: Content) -> None:
        """Nothing before the end of `text`, which is the next part, will change any more."""
        self._settled.append(text)
        self.text = Content()

    def lay_out(self, width: int) -> int:
        room = self.room(width)
        if room != self._width:
            self._width, self._whole, self._wrapped, self._carry = room, 0, 0, EMPTY
        elif self._laid_out is self.text and self._wrapped == len(self._settled):
            return len(self._lines)
        self._laid_out = self.text
        del self._lines[self._whole :]
        for part in self._settled[self._wrapped :]:
            self._lines += self._wrap(part)
            self._carry = self._lines.pop()
        self._whole, self._wrapped = len(self._lines), len(self._settled)
        self._lines += self._wrap(self.text)
        return len(self._lines)

    def _wrap(self, text: Content) -> list[Line]:
        lines: list[Line] = []
        joint = self._carry.joint
        for hard_line in (self._carry.text + text).split("\n", allow_blank=True):
            for line in hard_line.wrap(self._width):
                lines.append(Line(line, joint))
                joint = " "
            joint = "\n"
        return lines

    def line(self, index: int) -> Line:
        return self.with_prefix(index, self._lines[index])


class Verbatim(Block):
    """Text whose lines are kept as they are, and broken only at the edge."""

    style = ""
    padding = 0

    def __init__(self, text: str) -> None:
        self.spans: Sequence[Span] = ()
        self.text = ""
        self._rows: list[tuple[int, int, str]] = []
        self._width = 0
        self.extend(text)

    def extend(self, text: str) -> None:
        """More text at the end."""
        self.text += text.expandtabs(TAB)

    def lay_out(self, width: int) -> int:
        room = max(self.room(width) - 2 * self.padding, NARROWEST)
        start = 0
        if room == self._width and self._rows:
            while self._rows and self._rows[-1][2] != "\n":
                self._rows.pop()
            start = self._rows.pop()[0]
        else:
            self._width = room
            self._rows.clear()
        for line in self.text[start:].split("\n"):
            self._rows += _broken(line, start, room)
            start += len(line) + 1
        return len(self._rows)

    def line(self, index: int) -> Line:
        return self.with_prefix(index, self._row(index))

    def _row(self, index: int) -> Line:
        start, end, joint = self._rows[index]
        text = Content(self.text[start:end], self._spans_within(start, end))
        if self.padding:
            text = text.pad(self.padding, self.padding)
        return Line(text.stylize_before(self.style), joint, self.style)

    def _spans_within(self, start: int, end: int) -> list[Span]:
        found = []
        first = bisect_right(self.spans, start, key=lambda span: span.end)
        for span in islice(self.spans, first, None):
            if span.start >= end:
                break
            inside = max(span.start, start) - start, min(span.end, end) - start
            found.append(Span(*inside, span.style))
        return found


class Code(Verbatim):
    """A fence, or a part of one that is still growing. Its colours come later."""

    style = ".code"
    padding = 1

    def __init__(self, text: str, language: str, label: str | None = None) -> None:
        super().__init__(text)
        self.source = text
        """The code as it was when this was made, its tabs included."""
        self.language = language
        self.label = language or "code" if label is None else label
        self.growing = False
        self._painted = 0

    @property
    def is_plain(self) -> bool:
        """Whether it is worth a `paint`: of all that is new, or of two lines while it grows."""
        if self.growing:
            return self.text.count("\n", self._painted) > 1
        return self._painted < len(self.text)

    def paint(self, spans: Sequence[Span], length: int) -> range:
        """Colour the first `length` characters; spans are in order and do not overlap.

        Returns the lines of the layout whose colours are new.
        """
        start = self.text.rfind("\n", 0, self._painted) + 1
        self.spans = spans
        self._painted = length
        label = bool(self.label)
        first = bisect_left(self._rows, start, key=lambda row: row[0])
        return range(first + label, len(self._rows) + label)

    def continued(self) -> Code:
        """An empty block that goes on where this one ends."""
        code = Code("", self.language, label="")
        code.gap, code.first, code.rest = None, self.rest, self.rest
        return code

    def lay_out(self, width: int) -> int:
        return super().lay_out(width) + bool(self.label)

    def line(self, index: int) -> Line:
        if not self.label:
            return super().line(index)
        row = self._row(index - 1) if index else self._label_row()
        return self.with_prefix(index, row)

    def _label_row(self) -> Line:
        label = Content.styled(f" {self.label}", ".code-label").stylize_before(self.style)
        return Line(label, fill=self.style)


class Rule(Block):
    """A line from side to side, with a word in it or none."""

    def __init__(self, words: str = "") -> None:
        self.words = words
        self._width = 0

    def lay_out(self, width: int) -> int:
        self._width = self.room(width)
        return 1

    def line(self, index: int) -> Line:
        words = f"── {self.words} " if self.words else ""
        rule = Content.styled(words + "─" * (self._width - cell_len(words)), ".rule")
        return self.with_prefix(index, Line(rule[: max(self._width, len(words))]))


def _broken(line: str, start: int, width: int) -> list[tuple[int, int, str]]:
    """(start, end, joint) of the rows of one line of a text; `start` is the line's place in it."""
    if line.isascii():
        ends = [*range(width, len(line), width), len(line)]
    else:
        ends = _ends_of_rows(line, width)
    starts = [0, *ends[:-1]]
    joints = ["\n", *("" for _ in ends[1:])]
    return [(start + a, start + b, joint) for a, b, joint in zip(starts, ends, joints, strict=True)]


def _ends_of_rows(line: str, width: int) -> list[int]:
    ends = []
    cells = 0
    for index, character in enumerate(line):
        size = cell_len(character)
        if cells + size > width:
            ends.append(index)
            cells = 0
        cells += size
    return [*ends, len(line)]
