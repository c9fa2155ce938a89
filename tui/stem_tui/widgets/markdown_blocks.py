"""Markdown as blocks. Importing this loads the parser: not before there is an answer to show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.content import Content, Span
from textual.style import Style

from .blocks import Block, Code, Paragraph, Rule
from .tables import Table

BULLETS = "•◦▪"
LEAVES = ("code_block", "fence", "hr", "inline", "table_close")
INLINE = {"em_open": ".em", "strong_open": ".strong", "s_open": ".strike"}


@cache
def parser() -> MarkdownIt:
    """CommonMark with tables and strikethrough. HTML is text like any other."""
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def parse(source: str) -> list[Block]:
    """The blocks of a text that is free of control characters."""
    return list(Builder().blocks(parser().parse(source)))


def parse_answer(source: str) -> list[Block]:
    """The same for a whole answer: closed up at its top, and with its code blocks numbered."""
    blocks = parse(source)
    if blocks:
        blocks[0].gap = None
    codes = [block for block in blocks if isinstance(block, Code)]
    for number, code in enumerate(codes, 1):
        if len(codes) > 1:
            code.label = f"{number} {code.label}"
    return blocks


@dataclass(slots=True)
class _Container:
    """A quote or a list item around blocks: what it draws before their lines."""

    first: Content
    rest: Content
    untouched: bool = True


class Builder:
    """Turns the parser's tokens into blocks. `starts` are the lines on which those begin."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self._around: list[_Container] = []
        self._line = 0
        self._shared = 0
        self._lists = 0
        self._list_begins = False
        self._rows: list[list[Content]] = []

    def blocks(self, tokens: Sequence[Token]) -> Iterator[Block]:
        """The blocks of a whole text, in their order."""
        tag = ""
        hidden = False
        for token in tokens:
            kind = token.type
            if token.map:
                self._line = token.map[0]
            if kind.endswith("_open"):
                self._open(token)
                tag, hidden = token.tag, token.hidden
            elif kind == "inline" and tag in ("th", "td"):
                self._rows[-1].append(inline(token))
            elif kind in LEAVES:
                yield self._placed(_leaf(token, tag, self._rows), tight=hidden)
                hidden = False
            else:
                if kind == "list_item_close" and self._around[-1].untouched:
                    yield self._placed(Paragraph(Content()), tight=True)
                self._close(kind)

    def _open(self, token: Token) -> None:
        kind = token.type
        if kind == "table_open":
            self._rows = []
        elif kind == "tr_open":
            self._rows.append([])
        elif kind in ("bullet_list_open", "ordered_list_open"):
            self._list_begins = self._list_begins or not self._lists
            self._lists += 1
        elif kind == "list_item_open":
            bullet = f"{token.info}." if token.info else BULLETS[(self._lists - 1) % len(BULLETS)]
            first = Content.styled(f"{bullet} ", ".bullet")
            self._around.append(_Container(first, Content(" " * len(first))))
        elif kind == "blockquote_open":
            bar = Content.styled("▎ ", ".quote")
            self._around.append(_Container(bar, bar))

    def _close(self, kind: str) -> None:
        if kind in ("bullet_list_close", "ordered_list_close"):
            self._lists -= 1
        elif kind in ("list_item_close", "blockquote_close"):
            self._around.pop()
            self._shared = min(self._shared, len(self._around))

    def _placed(self, block: Block, tight: bool) -> Block:
        """Give a block its gap and what its containers draw before it."""
        if tight and not self._list_begins:
            block.gap = None
        else:
            block.gap = Content().join(around.rest for around in self._around[: self._shared])
        block.first = Content().join(around.first for around in self._around)
        block.rest = Content().join(around.rest for around in self._around)
        for around in self._around:
            around.first = around.rest
            around.untouched = False
        self._shared = len(self._around)
        self._list_begins = False
        self.starts.append(self._line)
        return block


def _leaf(token: Token, tag: str, rows: Sequence[Sequence[Content]]) -> Block:
    if token.type == "inline":
        text = inline(token)
        return Paragraph(text.stylize_before(".heading") if tag.startswith("h") else text)
    if token.type == "table_close":
        return Table(rows)
    if token.type == "hr":
        return Rule()
    return Code(token.content.removesuffix("\n"), language_of(token.info))


def language_of(info: str) -> str:
    """The language that the opening line of a fence names, "" for none."""
    return info.split(maxsplit=1)[0][:24] if info.strip() else ""


def inline(token: Token) -> Content:
    """What is inside of a paragraph."""
    text = ""
    spans: list[Span] = []
    opened: list[tuple[int, str, str]] = []
    for child in token.children or ():
        kind = child.type
        if kind in ("softbreak", "hardbreak"):
            text += "\n"
        elif kind == "code_inline":
            spans.append(Span(len(text), len(text) + len(child.content), ".code-inline"))
            text += child.content
        elif kind == "image":
            text += f"[{child.content or 'image'}]({child.attrGet('src')})"
        elif kind.endswith("_open"):
            opened.append((len(text), INLINE.get(kind, ""), str(child.attrGet("href") or "")))
        elif kind.endswith("_close"):
            start, style, target = opened.pop()
            if target:
                text = _link(text, start, target, spans)
            else:
                spans.append(Span(start, len(text), style))
        else:
            text += child.content
    return Content(text, spans)


def _link(text: str, start: int, target: str, spans: list[Span]) -> str:
    """Where a link leads is always shown: nobody should have to follow it to learn that."""
    spans.append(Span(start, len(text), ".link"))
    spans.append(Span(start, len(text), Style.from_meta({"@click": f"open_link({target!r})"})))
    if text[start:] == target:
        return text
    spans.append(Span(len(text), len(text) + len(target) + 3, ".muted"))
    return f"{text} ({target})"
