"""Which part of a conversation is copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stem_local.errors import UsageError
from stem_local.history.entries import Entry

_NAMES = {"user": "You", "assistant": "Answer"}


def chosen(entries: Sequence[Entry], part: str) -> tuple[str, str]:
    """The text of "answer", "code" or "all", and what to call it. UsageError without any."""
    part = part.lower() or "answer"
    if part == "all":
        texts = (f"{_NAMES[entry.role]}:\n\n{entry.content}" for entry in entries)
        return "\n\n".join(texts), "the chat"
    answer = next((e.content for e in reversed(entries) if e.role == "assistant"), None)
    if answer is None:
        raise UsageError("There is no answer to copy yet.")
    if part == "answer":
        return answer, "the answer"
    if part != "code":
        raise UsageError(f"/copy takes answer, code or all, not {part!r:.60}.")
    blocks = list(code_blocks(answer))
    if not blocks:
        raise UsageError("The last answer has no block of code.")
    return blocks[-1], "the block of code"


def code_blocks(markdown: str) -> Iterator[str]:
    """The text in each fence or indented block, without its last newline."""
    from markdown_it import MarkdownIt

    for token in MarkdownIt("commonmark").parse(markdown):
        if token.type in ("fence", "code_block"):
            yield token.content.removesuffix("\n")
