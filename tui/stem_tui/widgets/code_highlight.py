"""Colours for code. Importing this loads pygments, and lexing takes its time: for threads only."""

from __future__ import annotations

from textual.content import Span
from textual.highlight import highlight

LONGEST = 200_000
"""Characters; longer code stays plain."""


def spans(code: str, language: str) -> list[Span]:
    """What to colour, in order and without overlaps. Nothing where the language is not known."""
    if len(code) > LONGEST:
        return []
    try:
        found = highlight(code, language=language or "text").spans
    except Exception:  # there are hundreds of lexers, and none is worth a conversation
        return []
    return [span for span in found if span.end - span.start < len(code)]
