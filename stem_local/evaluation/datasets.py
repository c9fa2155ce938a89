"""Reading test sets that may be damaged or hostile: SQuAD's JSON, and tables like GLUE's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stem_runtime.errors import FormatError, UsageError
from stem_runtime.formats.header import read_json, read_text

T = TypeVar("T")

MAX_WORD = 100
"""Characters that a label's word may have."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a text, and every answer that counts as right."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sentence and which of the label words belongs to it; `line` is its place in the file."""

    line: int
    sentence: str
    label: int


@dataclass(frozen=True, slots=True)
class LabelTask:
    """How sentences of a table are asked about. The defaults are those of SST-2.

    `words` are the labels in the order of their numbers in the file. `question` is put to the
    model after each sentence. Raises UsageError.
    """

    words: tuple[str, ...] = ("negative", "positive")
    question: str = "Is this sentence positive or negative?"
    sentence_column: str = "sentence"
    label_column: str = "label"

    def __post_init__(self) -> None:
        if len(self.words) < 2 or len(set(self.words)) < len(self.words):
            raise UsageError(f"labels are two or more different words, not {self.words!r:.80}.")
        if not all(word.strip() and len(word) <= MAX_WORD for word in self.words):
            raise UsageError(f"Each label is a word of 1 to {MAX_WORD} characters.")
        if not self.question.strip():
            raise UsageError("The question to ask about each sentence is empty.")


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` items, evenly spread over all of them."""
    count = min(limit, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def read_squad(path: Path) -> list[Question]:
    """Every question of a file in SQuAD v1.1's JSON format. Raises FormatError."""
    found = list(_questions(read_json(path), f"{path}: "))
    if not found:
        raise FormatError(f"{path}: holds no questions.")
    return found


def read_table(path: Path, task: LabelTask) -> list[Labelled]:
    """Every row of a tab-separated file with a header line, fields unquoted as in GLUE.

    A label is the number of a word in `task.words`, or the word itself. Raises FormatError.
    """
    lines = [line.rstrip("\r") for line in read_text(path).split("\n")]
    header = lines[0].split("\t")
    columns = [_column(header, name, path) for name in (task.sentence_column, task.label_column)]
    labels = {**{str(i): i for i in range(len(task.words))}, **_numbered(task.words)}
    rows: list[Labelled] = []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise FormatError(
                f"{path}: line {number} has {len(fields)} columns, the header {len(header)}."
            )
        sentence, label = (fields[column].strip() for column in columns)
        if not sentence:
            raise FormatError(f"{path}: line {number} has an empty {task.sentence_column}.")
        if label not in labels:
            raise FormatError(
                f"{path}: line {number} has the {task.label_column} {label!r:.40}, which is "
                f"neither one of {', '.join(task.words):.200} nor its number."
            )
        rows.append(Labelled(number, sentence, labels[label]))
    if not rows:
        raise FormatError(f"{path}: holds no sentences.")
    return rows


def _numbered(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


def _column(header: list[str], name: str, path: Path) -> int:
    if header.count(name) != 1:
        raise FormatError(
            f"{path}: the header line should have one column {name!r:.60}; it has "
            f"{', '.join(map(repr, header)):.200}."
        )
    return header.index(name)


def _questions(data: dict[str, Any], path: str) -> Iterator[Question]:
    for a, article in enumerate(_list(data, "data", path)):
        where = f"{path}data[{a}]"
        for p, paragraph in enumerate(_list(article, "paragraphs", where)):
            inside = f"{where}.paragraphs[{p}]"
            context = _text(paragraph, "context", inside)
            for q, asked in enumerate(_list(paragraph, "qas", inside)):
                yield _question(asked, context, f"{inside}.qas[{q}]")


def _question(asked: Any, context: str, where: str) -> Question:
    text = _text(asked, "question", where)
    answers = tuple(
        _text(answer, "text", f"{where}.answers[{i}]")
        for i, answer in enumerate(_list(asked, "answers", where))
    )
    if not answers:
        raise FormatError(
            f"{where}.answers is empty; SQuAD v1.1 has an answer to every question (v2.0 has not)."
        )
    return Question(_text(asked, "id", where), context, text, answers)


def _list(holder: Any, name: str, where: str) -> list[Any]:
    value = _field(holder, name, where)
    if not isinstance(value, list):
        found = type(value).__name__
        raise FormatError(f"{_at(where, name)} should be a list, found {found}.")
    return value


def _text(holder: Any, name: str, where: str) -> str:
    value = _field(holder, name, where)
    if not isinstance(value, str) or not value.strip():
        raise FormatError(f"{_at(where, name)} should be a text that is not empty.")
    return value


def _field(holder: Any, name: str, where: str) -> Any:
    if not isinstance(holder, dict) or name not in holder:
        raise FormatError(f"{_at(where, name)} is missing; this is not SQuAD v1.1.")
    return holder[name]


def _at(where: str, name: str) -> str:
    return where + name if where.endswith(" ") else f"{where}.{name}"
