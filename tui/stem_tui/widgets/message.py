"""One message of a conversation as lines: who, what, and the figures of an answer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.content import Content
from textual.strip import Strip

from stem_local.history.entries import Attachment, Entry
from stem_local.terminal import printable
from stem_local.units import size

from .blocks import Block, Code, Line, Paragraph, Rule, Verbatim
from .figures import one_line, summary

if TYPE_CHECKING:
    from .growing_markdown import GrowingMarkdown

LONG = 16_000
"""Characters of an answer from which on it is read as Markdown in a thread, not at once."""

LONGEST = 400_000
"""Characters of an answer that is not read as Markdown at all."""

STATES = {
    "streaming": "answering …",
    "stopped": "stopped before its end",
    "length": "cut off: the limit of tokens was reached",
    "context": "cut off: the context is full",
    "failed": "cut off by an error",
}


class Message:
    """What is drawn of an entry, or only a notice where there is no entry.

    Nothing is wrapped before `lay_out`; until then `height` is a guess.
    """

    def __init__(self, entry: Entry | None, notice: str = "") -> None:
        self.entry = entry
        self.notice = notice
        self.laid_out = 0
        """The width it is wrapped to, 0 for none yet."""
        self.height = 0
        """Lines: counted once it is laid out, guessed before that."""
        self.strips: dict[int, tuple[Line, Strip]] = {}
        """What was drawn last, by line; kept here by the widget that draws."""
        self._body: list[Block] | None = None
        self._growing: GrowingMarkdown | None = None
        self._grown: list[str] = []
        self._blocks: list[Block] = []
        self._starts: list[int] = []
        self._head = 0
        self.fresh: list[Block] = []
        """The blocks that the last `extend` made or changed."""

    @property
    def text(self) -> str:
        """What was said, without control characters."""
        if self._growing is not None:
            return "".join(self._grown)
        return printable(self.entry.content) if self.entry is not None else self.notice

    @property
    def unread(self) -> bool:
        """Whether this is a long answer, shown as plain text until `put` brings its blocks."""
        entry = self.entry
        return (
            entry is not None
            and entry.role == "assistant"
            and self._body is None
            and self._growing is None
            and LONG < len(entry.content) <= LONGEST
        )

    def guess(self, width: int) -> None:
        """Forget the layout, and guess the height at a width."""
        self.laid_out = 0
        self.strips.clear()
        content = self.entry.content if self.entry is not None else ""
        self.height = 3 + content.count("\n") + len(content) // width

    def fold(self) -> None:
        """Keep nothing but the height, unless the answer is still growing."""
        if self._growing is None:
            self.laid_out = 0
            self.strips.clear()
            self._blocks, self._starts, self._body = [], [], None

    def lay_out(self, width: int) -> None:
        """Wrap to `width` cells."""
        self.laid_out = width
        self.strips.clear()
        self._starts.clear()
        self._blocks = self._heading()
        self._head = len(self._blocks)
        self._lay_out_from(0)

    @property
    def header(self) -> int:
        """The line that says whose message it is."""
        return self._starts[self._head - 1] + 1 if self.entry is not None else self.height

    def line(self, y: int) -> Line:
        """A line of the layout, from 0 to `height`."""
        index = bisect_right(self._starts, y) - 1
        block = self._blocks[index]
        row = y - self._starts[index]
        if block.gap is None:
            return block.line(row)
        return block.line(row - 1) if row else Line(block.gap)

    def block_at(self, y: int) -> Block:
        """The block that a line belongs to."""
        return self._blocks[bisect_right(self._starts, y) - 1]

    def forget(self, block: Block, rows: range) -> range:
        """Forget how lines of a block were drawn. Returns which lines of the message they are."""
        if block not in self._blocks:
            return range(0)
        top = self._starts[self._blocks.index(block)] + (block.gap is not None)
        lines = range(top + rows.start, top + rows.stop)
        for y in lines:
            self.strips.pop(y, None)
        return lines

    def begin(self) -> None:
        """From now on the answer grows, from what the entry has of it."""
        from .growing_markdown import GrowingMarkdown

        text = self.text
        self._growing = GrowingMarkdown()
        self._grown = [text]
        self._growing.append(text)

    def extend(self, text: str) -> int:
        """More text of an answer that grows. Returns the first line that is new or changed."""
        assert self._growing is not None
        text = printable(text)
        self._grown.append(text)
        changed = self._head + self._growing.append(text)
        if not self.laid_out:
            return 0
        top = self._lay_out_from(changed)
        self.fresh = self._blocks[changed:]
        return self._forget_changed(top)

    def _forget_changed(self, top: int) -> int:
        """Keep what was drawn of lines that came out the same. Returns the first that did not."""
        drawn = sorted(y for y in self.strips if y >= top)
        first = None
        for y in drawn:
            before = self.strips[y][0]
            if y >= self.height or not _same(before, self.line(y)):
                del self.strips[y]
                first = y if first is None else first
        if first is not None:
            return first
        return drawn[-1] + 1 if drawn else top

    def differs(self, entry: Entry) -> bool:
        """Whether what is known of the text does not hold for the entry as it is now."""
        if self.entry is None or entry.role == "user":
            return False
        return self._body is None or entry.content != self.entry.content

    def put(self, entry: Entry, body: list[Block] | None = None) -> None:
        """The entry as it is now. `body` is its content, parsed, where that is known."""
        if body is None and not self.differs(entry):
            body = self._body
        self.entry = entry
        self._growing = None
        self._body = body

    def codes(self) -> list[Code]:
        """The code blocks, in their order."""
        if self.entry is None or self.entry.role == "user":
            return []
        body = self._read() if self._body is None else self._body
        return [block for block in body if isinstance(block, Code)]

    def _lay_out_from(self, changed: int) -> int:
        """Lay out the blocks from one on. Returns the line on which that begins."""
        top = self._starts[changed] if changed < len(self._starts) else 0
        body = self._growing.blocks if self._growing is not None else self._content()
        changed_in_body = max(changed - self._head, 0)
        del self._blocks[max(changed, self._head) :], self._starts[changed:]
        self._blocks += [*body[changed_in_body:], *self._footer()]
        self.height = top
        for block in self._blocks[changed:]:
            self._starts.append(self.height)
            self.height += block.lay_out(self.laid_out) + (block.gap is not None)
        return top

    def _heading(self) -> list[Block]:
        rules: list[Block] = [Rule(self.notice)] if self.notice else []
        if self.entry is None:
            return rules
        if self.entry.role == "user":
            who = Content.assemble(("▶ You", ".user"))
        else:
            who = Content.assemble((f"● {one_line(self.entry.model or 'answer')}", ".model"))
        return [*rules, Paragraph(who)]

    def _content(self) -> list[Block]:
        if self.entry is None:
            return []
        if self.entry.role == "user":
            return self._typed()
        if self._body is None and len(self.entry.content) > LONG:
            return [_close_up(Verbatim(self.text))]
        if self._body is None:
            self._body = self._read()
        return self._body

    def _typed(self) -> list[Block]:
        assert self.entry is not None
        text = self.text
        blocks = [Verbatim(text) if len(text) > LONG else Paragraph(Content(text))] if text else []
        blocks += [Paragraph(_chip(attachment)) for attachment in self.entry.attachments]
        return [_close_up(block) for block in blocks]

    def _read(self) -> list[Block]:
        from .markdown_blocks import parse_answer

        return parse_answer(self.text)

    def _footer(self) -> list[Block]:
        if self.entry is None:
            return []
        words = " · ".join(self._footer_parts())
        return [_close_up(Paragraph(Content.styled(words, ".muted")))] if words else []

    def _footer_parts(self) -> Iterator[str]:
        entry = self.entry
        assert entry is not None
        place, count = entry.branch
        if count > 1:
            yield f"◂ {place}/{count} ▸"
        if entry.role == "user":
            return
        if entry.state == "streaming" and self._growing is None:
            yield "cut off with the program"
        elif entry.state in STATES:
            yield STATES[entry.state]
        if entry.forgotten:
            yield f"{counted(entry.forgotten, 'turn')} no longer seen"
        if entry.stats and (figures := summary(entry.stats)):
            yield figures


def _same(one: Line, other: Line) -> bool:
    return one.fill == other.fill and one.text.is_same(other.text)


def counted(count: int, thing: str) -> str:
    """ "1 turn", "2 turns"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _chip(attachment: Attachment) -> Content:
    weight = size(len(attachment.text.encode(errors="replace")))
    return Content.styled(f"+ {one_line(attachment.name)}  {weight}", ".chip")


def _close_up(block: Block) -> Block:
    block.gap = None
    return block
