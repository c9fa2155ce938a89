"""What a message needs beside its first drawing, done in threads: the screen never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from textual.content import Span
from textual.widget import Widget

from .blocks import Block, Code
from .message import Message


class Backlog:
    """Colours code and parses long answers, one after the other, those that came last first.

    `done` is called with a message after each, and with the lines of it whose colours are new; None
    where all of its blocks are.
    """

    def __init__(self, widget: Widget, done: Callable[[Message, range | None], None]) -> None:
        self._widget = widget
        self._done = done
        self._code: dict[Code, Message] = {}
        self._long: dict[Message, None] = {}
        self._working = False

    def notice(self, message: Message, block: Block) -> None:
        """A block of a message was drawn; see whether there is anything left to do for it."""
        if isinstance(block, Code) and block.is_plain:
            self._code[block] = message
        elif message.unread:
            self._long[message] = None
        else:
            return
        if not self._working:
            self._working = True
            self._widget.run_worker(self._work(), group="backlog")

    def clear(self) -> None:
        """Nothing of what was shown is needed any more."""
        self._code.clear()
        self._long.clear()

    async def _work(self) -> None:
        try:
            while self._code or self._long:
                if self._code:
                    await self._colour(*self._code.popitem())
                else:
                    await self._parse(self._long.popitem()[0])
        finally:
            self._working = False

    async def _colour(self, code: Code, message: Message) -> None:
        text = code.text
        spans = await asyncio.to_thread(_spans, text, code.language)
        self._done(message, message.forget(code, code.paint(spans, len(text))))

    async def _parse(self, message: Message) -> None:
        entry = message.entry
        if entry is None:
            return
        body = await asyncio.to_thread(read_answer, entry.content, message.laid_out)
        if message.entry is entry:
            message.put(entry, body)
            self._done(message, None)


def _spans(code: str, language: str) -> list[Span]:
    from .code_highlight import spans

    return spans(code, language)


def read_answer(content: str, width: int) -> list[Block]:
    """The blocks of an answer, coloured and wrapped. For threads: it takes its time."""
    from stem_local.terminal import printable

    from .code_highlight import spans
    from .markdown_blocks import parse_answer

    body = parse_answer(printable(content))
    for block in body:
        block.lay_out(width)
        if isinstance(block, Code):
            block.paint(spans(block.text, block.language), len(block.text))
    return body
