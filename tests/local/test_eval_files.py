"""SQuAD's way of comparing answers, and files of questions and sentences that may be damaged."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_local.evaluation import LabelTask
from stem_local.evaluation.datasets import Labelled, read_squad, read_table, spread
from stem_local.evaluation.metrics import exact_match, f1, normalized
from stem_runtime.errors import FormatError, UsageError

SAMPLES = Path(__file__).parents[1] / "samples"
WORDS = st.lists(st.sampled_from(["red", "blue", "The", "a", "1974", "U.S.", "é"]), max_size=6)
ANSWERS = WORDS.map(" ".join) | st.text(max_size=20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S. Army's, an Eagle!", "us armys eagle"),
        ("a-the", "athe"),  # punctuation goes first, and joins what it stood between
        ("Theatre and anthem", "theatre and anthem"),
        (" THE ", ""),
        ("“quoted”", "“quoted”"),
        ("a\tb\nc", "b c"),
    ],
)
def test_normalized(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "overlap"),
    [
        ("Maria Dunn.", ["the engineer Maria Dunn", "maria dunn"], 1, 1),
        ("in the year 1862", ["1862"], 0, 2 * 1 / (3 + 1)),
        ("red red blue", ["red blue blue"], 0, 2 * 2 / (3 + 3)),
        ("red", ["green", "red and white"], 0, 2 * 1 / (1 + 3)),
        ("blue", ["red"], 0, 0),
        ("", ["red"], 0, 0),
        ("the", ["a"], 1, 0),  # nothing is left of either: the same text, and no word in common
        ("red", [], 0, 0),
    ],
)
def test_scores(answer: str, accepted: list[str], exact: float, overlap: float) -> None:
    assert exact_match(answer, accepted) == exact
    assert f1(answer, accepted) == pytest.approx(overlap)


@given(left=ANSWERS, right=ANSWERS)
@settings(max_examples=60)
def test_scores_are_symmetric_shares(left: str, right: str) -> None:
    overlap, exact = f1(left, [right]), exact_match(left, [right])
    assert overlap == f1(right, [left])
    assert exact == exact_match(right, [left])
    assert 0 <= overlap <= 1
    assert overlap == 1 if exact and normalized(left) else overlap < 1 or not exact
    assert f1(left, [right, left]) >= overlap
    assert exact_match(left, [right, left]) == 1


@given(length=st.integers(0, 50), limit=st.integers(1, 60))
@settings(max_examples=60)
def test_items_are_spread_evenly(length: int, limit: int) -> None:
    chosen = spread(range(length), limit)
    assert len(chosen) == min(length, limit)
    assert chosen[:1] == [0][:length]
    gaps = {later - early for early, later in pairwise([*chosen, length])} or {1}
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_the_sample_questions() -> None:
    questions = read_squad(SAMPLES / "squad.json")
    assert len(questions) == 14
    first = questions[0]
    assert (first.id, first.question) == ("q1", "Who built the lighthouse?")
    assert first.answers == ("Maria Dunn", "the engineer Maria Dunn")
    assert "Harrow Point" in first.context


QUESTION = "data.0.paragraphs.0.qas.0"


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("data", None, "bad.json: data is missing"),
        ("data", {}, "bad.json: data should be a list, found dict"),
        ("data", [], "holds no questions"),
        ("data.0", 1, "data[0].paragraphs is missing"),
        ("data.0.paragraphs", "x", "data[0].paragraphs should be a list, found str"),
        ("data.0.paragraphs.0.context", 5, "data[0].paragraphs[0].context should be a text"),
        (f"{QUESTION}.question", " ", "paragraphs[0].qas[0].question should be a text"),
        (f"{QUESTION}.id", None, "paragraphs[0].qas[0].id is missing"),
        (f"{QUESTION}.answers", [], "SQuAD v1.1 has an answer to every question"),
        (f"{QUESTION}.answers.0.text", ["x"], "qas[0].answers[0].text should be a text"),
        (f"{QUESTION}.answers.0", None, "qas[0].answers[0].text is missing"),
    ],
)
def test_a_damaged_squad_file_is_refused(tmp_path: Path, place: str, value: Any, says: str) -> None:
    data = json.loads((SAMPLES / "squad.json").read_text(encoding="utf-8"))
    holder, *path = data, *place.split(".")
    for step in path[:-1]:
        holder = holder[int(step) if step.isdigit() else step]
    if value is None and isinstance(holder, dict):
        del holder[path[-1]]
    else:
        holder[int(path[-1]) if path[-1].isdigit() else path[-1]] = copy.copy(value)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(FormatError) as refused:
        read_squad(bad)
    assert says in str(refused.value)
    assert str(bad) in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"data": [', b"\xff\xfe", b"[" * 100_000, b'{"data": NaN}']
)
def test_what_is_not_squad_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"bad\.json: "):
        read_squad(tmp_path / "bad.json")
    with pytest.raises(FormatError, match="cannot be read"):
        read_squad(tmp_path / "missing.json")


def table(folder: Path, text: str, task: LabelTask | None = None) -> list[Labelled]:
    (folder / "t.tsv").write_bytes(text.encode())
    return read_table(folder / "t.tsv", task or LabelTask())


def test_tables_of_sentences(tmp_path: Path) -> None:
    rows = read_table(SAMPLES / "sst.tsv", LabelTask())
    assert len(rows) == 12
    assert rows[0] == Labelled(2, "a warm and funny film that i would see again", 1)
    text = '\ufeffid\ttag\ttext\r\n7\tno\t"quoted\r\n\r\n8\t0\tlast'
    task = LabelTask(("yes", "no"), "Is it?", sentence_column="text", label_column="tag")
    assert table(tmp_path, text, task) == [Labelled(2, '"quoted', 1), Labelled(4, "last", 0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "should have one column 'sentence'; it has ''"),
        ("sentence\tlabel\n", "holds no sentences"),
        ("sentence\ttag\nx\t1\n", "should have one column 'label'; it has 'sentence', 'tag'"),
        ("sentence\tlabel\tlabel\nx\t1\t1\n", "should have one column 'label'"),
        ("sentence\tlabel\nx\t1\nx\n", "line 3 has 1 columns, the header 2"),
        ("sentence\tlabel\nx\t1\ty\n", "line 2 has 3 columns, the header 2"),
        ("sentence\tlabel\n \t1\n", "line 2 has an empty sentence"),
        ("sentence\tlabel\nx\t2\n", "line 2 has the label '2', which is neither one of negative"),
        ("sentence\tlabel\nx\t-1\n", "line 2 has the label '-1'"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(FormatError) as refused:
        table(tmp_path, text)
    assert says in str(refused.value)
    assert str(tmp_path / "t.tsv") in str(refused.value)


@given(text=st.text(st.sampled_from("sentence\tlabel01\n\r xé"), max_size=60))
@settings(max_examples=40)
def test_any_table_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("table")
    try:
        rows = table(folder, f"sentence\tlabel\n{text}")
    except FormatError as error:
        assert "t.tsv: " in str(error)
    else:
        assert rows and all(row.sentence and row.label in (0, 1) for row in rows)


@pytest.mark.parametrize(
    "wrong",
    [
        {"words": ("one",)},
        {"words": ("same", "same")},
        {"words": ("a", " ")},
        {"words": ("a", "b" * 101)},
        {"question": " "},
    ],
)
def test_bad_labels_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LabelTask(**wrong)
