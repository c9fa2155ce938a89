"""Markdown that is still being written: what was written before costs nothing when more comes.

Only the rest is read again: the last paragraph, list item or table. A fence is not read as Markdown
at all, and a long paragraph is settled piece by piece. What that gets wrong (bold text that spans
two pieces, say) comes right when the text is complete and `parse` sees all of it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from markdown_it.token import Token
from textual.content import Content

from .blocks import Block, Code, Paragraph
from .markdown_blocks import Builder, inline, language_of, parser

LONG_PARAGRAPH = 1000
"""Characters of a paragraph, or of a fence, from which on it goes on in a new piece."""

LONG_REST = 4000
"""Characters of the rest from which on it is only read again once it has grown by 1/32."""

WORD = re.compile(r"(?<=[\w,.;:!?])\s(?=[^\W\d_])")
LETTER = re.compile(r"(?<=[^\W\d_])(?=[^\W\d_])")
MARKUP = re.compile(r"[*_`~\[]")


class GrowingMarkdown:
    """The blocks of a text that comes bit by bit, all of it free of control characters."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._settled = 0
        self._rest = ""
        self._unread = 0
        self._gap: Content | None = None
        self._fence: _OpenFence | None = None
        self._flow: Paragraph | None = None
        self._joint = ""

    def append(self, text: str) -> int:
        """More text. Returns the index of the first block that is new or changed."""
        changed = self._settled
        self._rest += text
        self._unread += len(text)
        if len(self._rest) > LONG_REST and self._unread * 32 < len(self._rest):
            return len(self.blocks)
        self._unread = 0
        while self._rest and self._read():
            pass
        return changed

    def _read(self) -> bool:
        """Bring the blocks up to date. True where something was settled and more is to be read."""
        if self._fence is not None:
            return self._read_code(self._fence)
        tokens = parser().parse(self._rest)
        if self._flow is not None:
            return self._read_flow(self._flow, tokens)
        return self._read_blocks(tokens)

    def _read_blocks(self, tokens: Sequence[Token]) -> bool:
        builder = Builder()
        blocks = list(builder.blocks(tokens))
        if not blocks:
            return False
        blocks[0].gap = self._gap
        self.blocks[self._settled :] = blocks
        unit, line = _last_unit(tokens)
        if line and not _empty(blocks[-1]):
            self._settle(bisect_left(builder.starts, line))
            self._rest = _from_line(self._rest, line)
        if unit.type == "fence" and unit.level == 0 and "\n" in self._rest:
            self._open_fence(unit)
            return True
        if unit.type == "paragraph_open" and len(self._rest) > LONG_PARAGRAPH:
            self._flow = Paragraph(Content())
            self._flow.gap = self._gap
            self.blocks[self._settled :] = [self._flow]
            self._joint = ""
            return True
        return False

    def _settle(self, count: int) -> None:
        """The next `count` blocks stay as they are; the one behind them keeps its gap."""
        self._settled += count
        self._gap = (
            self.blocks[self._settled].gap if self._settled < len(self.blocks) else Content()
        )

    def _open_fence(self, token: Token) -> None:
        opening, _, self._rest = self._rest.partition("\n")
        code = Code("", language_of(token.info))
        code.gap = self._gap
        self.blocks[self._settled :] = [code]
        self._fence = _OpenFence(code, token.markup, len(opening) - len(opening.lstrip(" ")))

    def _read_code(self, fence: _OpenFence) -> bool:
        while self._rest:
            line, newline, after = self._rest.partition("\n")
            if not newline and fence.may_be_end(line):
                return False
            self._rest = after
            if newline and fence.is_end(line):
                fence.code.growing = False
                self._fence = None
                self._settle(1)
                return True
            if fence.begins_line and len(fence.code.text) > LONG_PARAGRAPH:
                fence.go_on()
                self.blocks.append(fence.code)
                self._settle(1)
            fence.write(line, bool(newline))
        return False

    def _read_flow(self, flow: Paragraph, tokens: Sequence[Token]) -> bool:
        text = next((inline(token) for token in tokens if token.type == "inline"), Content())
        flow.text = Content(self._joint) + text
        tops = [token.map[0] for token in tokens if token.level == 0 and token.map]
        if len(tops) > 1:
            self._flow = None
            self._settle(1)
            self._rest = _from_line(self._rest, tops[1])
            return True
        return len(self._rest) > LONG_PARAGRAPH and self._settle_piece(flow)

    def _settle_piece(self, flow: Paragraph) -> bool:
        """Settle the beginning of the rest, to where a word begins outside of any emphasis."""
        end = len(self._rest) - LONG_PARAGRAPH // 4
        cuts = [match.start() for match in WORD.finditer(self._rest, 0, end)]
        cuts = cuts or [match.start() for match in LETTER.finditer(self._rest, 0, end)]
        if not cuts:
            return False
        piece, rest = self._rest[: cuts[-1]], self._rest[cuts[-1] :]
        text = inline(parser().parse(piece)[1])
        if MARKUP.search(text.plain) and len(self._rest) < 2 * LONG_PARAGRAPH:
            return False
        flow.settle(Content(self._joint) + text)
        self._joint = rest[0] if rest[0].isspace() else ""
        self._rest = rest.lstrip()
        return True


class _OpenFence:
    """A fence whose end has not come yet."""

    def __init__(self, code: Code, markup: str, indent: int) -> None:
        code.growing = True
        self.code = code
        self.begins_line = True
        self._newline_due = False
        self._indent = re.compile(f" {{0,{indent}}}")
        mark = re.escape(markup[0])
        self._end = re.compile(rf" {{0,3}}{mark}{{{len(markup)},}}[ \t]*")
        self._begun = re.compile(rf" {{0,3}}{mark}*[ \t]*")

    def is_end(self, line: str) -> bool:
        """Whether a complete line closes the fence."""
        return self.begins_line and self._end.fullmatch(line) is not None

    def may_be_end(self, line: str) -> bool:
        """Whether a line that is not complete may still become the end."""
        return self.begins_line and self._begun.fullmatch(line) is not None

    def go_on(self) -> None:
        """Continue in a new block, since highlighting and wrapping a long one takes its time."""
        self.code.growing = False
        self.code = self.code.continued()
        self.code.growing = True
        self._newline_due = False

    def write(self, text: str, complete: bool) -> None:
        """A line, or the next part of one. Its newline is written only when another line comes."""
        if self.begins_line:
            text = self._indent.sub("", text, count=1)
        self.code.extend("\n" + text if self._newline_due else text)
        self._newline_due = self.begins_line = complete


def _last_unit(tokens: Sequence[Token]) -> tuple[Token, int]:
    """The token that opens the last block, or the last item where that is a list, and its line."""
    outer = [token for token in tokens if token.level == 0 and token.map]
    last = outer[-1]
    if last.type in ("bullet_list_open", "ordered_list_open"):
        items = (t for t in tokens if t.level == 1 and t.type == "list_item_open" and t.map)
        *_, last = items
    return last, last.map[0] if last.map else 0


def _empty(block: Block) -> bool:
    """Whether this is a list item without text so far: nobody knows yet how far apart they are."""
    return isinstance(block, Paragraph) and not block.text


def _from_line(text: str, number: int) -> str:
    """The text from a line on, counted from 0."""
    return text.split("\n", number)[number]
