'''A message between """ and """, in which Enter begins a new line.'''

from __future__ import annotations

QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether `text` begins such a block and does not end with it.

    A last line with quotes of its own on both sides, as a docstring has, does not end the block.
    """
    return text.startswith(QUOTES) and not _ends(text)


def content(text: str) -> str:
    """What a message says: without the quotes, if it is one such block."""
    if text.startswith(QUOTES) and _ends(text):
        return text.rstrip()[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def _ends(text: str) -> bool:
    last = text[len(QUOTES) :].rstrip().rpartition("\n")[2]
    return last.endswith(QUOTES) and last.count(QUOTES) == 1
