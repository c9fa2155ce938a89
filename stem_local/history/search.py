"""Finding messages: by words through the index, by substring where words do not help."""

from __future__ import annotations

import re
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterator

from . import rows
from .entries import Hit

FOUND, END = "\x02", "\x03"
"""What a snippet has before and after each found word."""

MAX_QUERY = 500
MAX_TERMS = 20
_SNIPPET_WORDS = 14
_SNIPPET_CHARACTERS = 40

_TERM = re.compile(r'"([^"]*)"|(\S+)')
# Chinese, Japanese, Thai, Lao, Khmer and Burmese write no spaces, so that the index takes whole
# sentences of theirs for one word.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    r"|[\U00020000-\U0003ffff]"
)

_BY_WORDS = """
    SELECT e.id, e.conversation, e.role, e.created, c.title,
        snippet(words, 0, :found, :end, '…', :length) AS snippet
    FROM words JOIN entries e ON e.id = words.rowid JOIN conversations c ON c.id = e.conversation
    WHERE words MATCH :query ORDER BY words.rowid DESC LIMIT :limit
"""
_BY_SUBSTRING = """
    SELECT e.id, e.conversation, e.role, e.created, c.title, e.content
    FROM entries e JOIN conversations c ON c.id = e.conversation
    WHERE {} ORDER BY e.id DESC LIMIT ?
"""
_CONTAINS = r"e.content LIKE ? ESCAPE '\'"
_TITLES = """
    SELECT c.id AS conversation, c.title, e.id, e.role, e.created
    FROM conversations c JOIN entries e ON e.id = c.open_root
    WHERE c.title <> '' ORDER BY c.updated DESC, c.id DESC
"""


def search(connection: sqlite3.Connection, query: str, limit: int) -> list[Hit]:
    """Conversations whose title matches, then messages, each kind newest first.

    Every word must occur, the last one may be a beginning; "a phrase" in quotes as it stands.
    """
    terms = list(_terms(query))
    if not terms or limit < 1:
        return []
    if all(_is_word(term) for term in terms):
        messages = _by_words(connection, terms, limit)
    else:
        messages = _by_substring(connection, terms, limit)
    seen = {hit.conversation for hit in messages}
    titles = [hit for hit in _by_title(connection, terms, limit) if hit.conversation not in seen]
    return (titles + messages)[:limit]


def _terms(query: str) -> Iterator[str]:
    text = "".join(c if c.isprintable() else " " for c in query[:MAX_QUERY])
    for number, match in enumerate(_TERM.finditer(text)):
        if number == MAX_TERMS:
            return
        if term := (match[1] if match[1] is not None else match[2]).strip():
            yield term


def _is_word(term: str) -> bool:
    lettered = any(unicodedata.category(c)[0] in "LN" for c in term)
    return lettered and not _UNSPACED.search(term)


def _by_words(connection: sqlite3.Connection, terms: list[str], limit: int) -> list[Hit]:
    # The marks around found words are drawn anew, so that no message can contain them.
    found, end = (f"<{secrets.token_hex(8)}>" for _ in range(2))
    quoted = ('"{}"'.format(term.replace('"', '""')) for term in terms)
    values = {
        "query": " ".join(quoted) + "*",
        "limit": limit,
        "found": found,
        "end": end,
        "length": _SNIPPET_WORDS,
    }
    return [
        _hit(row, _one_line(rows.text(row["snippet"])).replace(found, FOUND).replace(end, END))
        for row in connection.execute(_BY_WORDS, values)
    ]


def _by_substring(connection: sqlite3.Connection, terms: list[str], limit: int) -> list[Hit]:
    query = _BY_SUBSTRING.format(" AND ".join([_CONTAINS] * len(terms)))
    patterns = ("%{}%".format(re.sub(r"([\\%_])", r"\\\1", term)) for term in terms)
    return [
        _hit(row, _around(rows.text(row["content"]), terms))
        for row in connection.execute(query, (*patterns, limit))
    ]


def _by_title(connection: sqlite3.Connection, terms: list[str], limit: int) -> Iterator[Hit]:
    """Titles that contain every term. There are few of them, and they are short."""
    folded = [term.casefold() for term in terms]
    for row in connection.execute(_TITLES):
        title = rows.text(row["title"]).casefold()
        if all(term in title for term in folded):
            yield _hit(row, _marked(rows.clean_title(row["title"]), terms))
            limit -= 1
            if not limit:
                return


def _hit(row: sqlite3.Row, snippet: str) -> Hit:
    return Hit(
        conversation=rows.number(row["conversation"]),
        title=rows.clean_title(rows.text(row["title"])) or rows.UNTITLED,
        entry=rows.number(row["id"]),
        role=rows.role(row["role"]),
        snippet=snippet,
        created=rows.moment(row["created"]),
    )


def _around(content: str, terms: list[str]) -> str:
    """The first place of the first term, with a little of what surrounds it."""
    at = max(content.lower().find(terms[0].lower()), 0)
    first, last = max(at - _SNIPPET_CHARACTERS, 0), at + len(terms[0]) + _SNIPPET_CHARACTERS
    cut = _one_line(content[first:last])
    return ("…" if first else "") + _marked(cut, terms) + ("…" if last < len(content) else "")


def _marked(text: str, terms: list[str]) -> str:
    pattern = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
    return re.sub(pattern, lambda match: f"{FOUND}{match[0]}{END}", text, flags=re.IGNORECASE)


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
