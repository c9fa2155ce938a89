"""Evaluating: what each test measures, the rows side by side, the verb and the picture."""

from __future__ import annotations

import errno
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stem_local
from stem_local import plot
from stem_local.evaluation import (
    LabelScore,
    LabelTask,
    Report,
    Row,
    SquadScore,
    TextScore,
    TokenCost,
    cost,
    evaluate,
)
from stem_local.evaluation.datasets import Labelled, Question, read_squad
from stem_local.evaluation.follow import Follow
from stem_local.evaluation.likelihood import best_label, score_texts
from stem_local.evaluation.squad import answer, prompt, score_questions
from stem_local.model import Model
from stem_local.sparsity import Sparsity
from stem_runtime.engine import Cancelled
from stem_runtime.errors import ContextFullError, FormatError, UnsupportedError, UsageError
from tests.local.command import stem
from tests.local.fakes import fake_model
from tests.local.profiles import add_ffn_profile
from tests.runtime.tiny import random_packed, tiny_config

SAMPLES = Path(__file__).parents[1] / "samples"
SQUAD, SST = SAMPLES / "squad.json", SAMPLES / "sst.tsv"
QUESTION = Question("q", "The mill was red.", "What colour was it?", ("red", "was red"))
QUIET = Follow()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_packed(tmp_path / "tiny", tiny_config(context_length=1024))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 30, encoding="utf-8")
    return path


def test_the_prompt_shows_how_short_an_answer_is() -> None:
    shown = prompt(QUESTION)
    assert isinstance(shown, str)
    assert shown.endswith("\n\nThe mill was red.\n\nQuestion: What colour was it?\nAnswer:")
    assert "\nAnswer: 1888\n" in shown
    turns = prompt(QUESTION, chat=True)
    assert [m["role"] for m in turns if isinstance(m, dict)] == ["user", "assistant"] * 2 + ["user"]
    assert "The mill was red." in turns[-1]["content"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("reply", "said", "exact", "overlap"),
    [
        ("The red.\nBecause", "The red.", 1, 1),
        (" it was red", "it was red", 0, 2 * 2 / (3 + 2)),
        ("\nred", "", 0, 0),
    ],
)
def test_the_first_line_of_an_answer_counts(
    tmp_path: Path, reply: str, said: str, exact: float, overlap: float
) -> None:
    model, _ = fake_model(tmp_path, reply, context=1000, context_length=1024)
    assert answer(model, QUESTION, "off", QUIET, chat=True) == said
    scores = score_questions(model, [QUESTION, QUESTION], ["off", "auto"], QUIET, chat=True)
    assert scores == {s: SquadScore(exact, pytest.approx(overlap), 2) for s in ("off", "auto")}


def test_a_question_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path, context=100)
    with pytest.raises(ContextFullError, match="Question 'q': The prompt is"):
        answer(model, QUESTION, "off", QUIET)
    long = Labelled(7, "x" * 90, 0)
    with pytest.raises(ContextFullError, match=r"sentence in line 7 is .* tokens"):
        best_label(model, long, LabelTask(), "off")


def test_perplexity_is_that_of_the_model(folder: Path, text: Path) -> None:
    words = text.read_text(encoding="utf-8")
    with stem_local.load(folder, threads=1) as model:
        whole = score_texts(model, [words[:1024]], ["off"], QUIET, limit=2000)["off"]
        assert whole.tokens == 2 * 511
        assert whole.perplexity == pytest.approx(model.perplexity(words[:1024]), rel=1e-9)
        # one window each, of two texts, the second shorter than a window
        both = score_texts(model, [words, "Short text."], ["off"], QUIET, limit=600)["off"]
        assert both.tokens == 511 + 10
        parts = [model.perplexity(part) for part in (words[:512], "Short text.")]
        assert np.log(both.perplexity) == pytest.approx(
            np.dot(np.log(parts), [511, 10]) / both.tokens
        )
        part = score_texts(model, [words], ["off"], QUIET, limit=20)["off"]
        assert part.tokens == 19
        with pytest.raises(UsageError, match="too short"):
            score_texts(model, ["x"], ["off"], QUIET, limit=100)


def test_the_likeliest_label_is_taken(folder: Path) -> None:
    words, chosen = ["no", "up", "not at all", "me"], set()
    with stem_local.load(folder, threads=1) as model:
        for turn in range(len(words)):
            task = LabelTask((*words[turn:], *words[:turn]), "Is it?")
            sentence = f"Sentence {turn} of many"
            asked = model.tokenize(f"{sentence}\nQuestion: Is it?\nAnswer:")
            sums = []
            for word in task.words:
                said = model.tokenize(f" {word}")
                logits = model.logits(asked + said)[len(asked) - 1 : -1].astype(np.float64)
                logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                sums.append(sum(row[token] for row, token in zip(logprobs, said, strict=True)))
            best = best_label(model, Labelled(2, sentence, 0), task, "off")
            assert best == int(np.argmax(sums))
            chosen.add(best)
    assert len(chosen) > 1


def everything(model: Model, text: Path, **options: Any) -> Report:
    return evaluate(model, texts=[text], squad=SQUAD, table=SST, limit=4, tokens=600, **options)


def test_a_report_has_every_figure(folder: Path, text: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with stem_local.load(folder, threads=1) as model:
        report = everything(
            model, text, sparsities=["off", "auto"], progress=lambda *step: told.append(step)
        )
        kernels = model.engine.kernels.name
        alone = evaluate(model, table=SST, sparsities=["auto", "auto"])
    assert (report.model, report.kernels, report.threads) == ("tiny", kernels, 1)
    dense, auto = report.rows
    assert dense.text is not None and dense.squad is not None and dense.labels is not None
    assert (dense.text.tokens, dense.squad.questions, dense.labels.sentences) == (511, 4, 4)
    # the model is not calibrated: auto is dense, and says so
    assert (auto.text, auto.squad, auto.labels) == (dense.text, dense.squad, dense.labels)
    assert dense.setting == "dense: switched off"
    assert auto.setting.startswith("dense: not calibrated")
    assert dense.cost.active_fraction == 1
    assert dense.cost.bytes_per_token > 10_000
    assert dense.cost.tokens_per_second > 0
    assert [report.perplexity_change(row) for row in report.rows] == [0, 0]
    assert {step for step, _, _ in told} == {"speed", "perplexity", "questions", "labels"}
    for step in ("speed", "perplexity", "questions", "labels"):
        counts = [(done, total) for name, done, total in told if name == step]
        assert counts == [(done, counts[0][1]) for done in range(counts[0][1] + 1)]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["rows"][0]["squad"] == {
        "exact_match": dense.squad.exact_match, "f1": dense.squad.f1, "questions": 4
    }  # fmt: skip
    assert plain["rows"][0]["cost"]["active_fraction"] == 1
    (row,) = alone.rows
    assert row.text is None and row.squad is None and row.labels is not None
    assert row.labels.sentences == 12
    assert alone.perplexity_change(row) is None


def test_neurons_are_left_out_while_quality_is_measured(folder: Path, text: Path) -> None:
    add_ffn_profile(folder, {})
    words = text.read_text(encoding="utf-8")[:512]
    text.write_text(words, encoding="utf-8")
    with stem_local.load(folder, threads=1) as model:
        report = everything(model, text)
        expected = [model.perplexity(words, sparsity=s) for s in ("off", "auto", 0.3, 0.5)]
    off, auto, less, half = report.rows
    assert [row.sparsity for row in report.rows] == ["off", "auto", 0.3, 0.5]
    assert auto.setting.startswith("sparse FFN")
    found = [row.text.perplexity for row in report.rows if row.text is not None]
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(set(found)) == 3  # auto leaves out half of the neurons too
    assert report.perplexity_change(half) == pytest.approx(expected[3] / expected[0] - 1)
    active = [row.cost.active_parameters for row in (off, less, half)]
    assert active == sorted(active, reverse=True) and len(set(active)) == 3
    assert less.cost.bytes_per_token > half.cost.bytes_per_token


def test_labels_are_judged_with_neurons_left_out(folder: Path) -> None:
    add_ffn_profile(folder, {})
    words = tuple(2 * letter for letter in "abcdefghij")
    task = LabelTask(words, "Is it?")
    chosen: dict[Sparsity, list[int]] = {"off": [], 0.9: []}
    with stem_local.load(folder, threads=1) as model:
        for number in range(8):
            row = Labelled(2, f"Sentence {number}", 0)
            asked = f"{row.sentence}\nQuestion: Is it?\nAnswer:"
            for sparsity, best in chosen.items():
                # labels of as many tokens: the likeliest has the least perplexity
                found = [model.perplexity(f"{asked} {w}", sparsity=sparsity) for w in words]
                best.append(best_label(model, row, task, sparsity))
                assert best[-1] == int(np.argmin(found))
    assert chosen["off"] != chosen[0.9]


def test_without_files_built_in_texts_are_read(folder: Path) -> None:
    with stem_local.load(folder, threads=1) as model:
        (row,) = evaluate(model, tokens=100).rows
    assert row.sparsity == "off"
    assert row.text is not None and row.text.tokens == 4 * 99


def test_cancelling_stops_every_step(folder: Path, text: Path) -> None:
    told: list[str] = []
    with stem_local.load(folder, threads=1) as model:
        everything(model, text, progress=lambda step, *_: told.append(step))
        whole = list(told)
        for step in ("speed", "perplexity", "questions", "labels"):
            told.clear()
            with pytest.raises(Cancelled, match="stopped"):
                everything(
                    model,
                    text,
                    progress=lambda step, *_: told.append(step),
                    cancel=lambda step=step: step in told,
                )
            assert told == whole[: len(told)]
            assert told[-1] == step


def test_bad_arguments_are_refused(folder: Path, text: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n", encoding="utf-8")
    with stem_local.load(folder, threads=1) as model:
        for wrong in ({"limit": 0}, {"tokens": 0}, {"limit": True}, {"sparsities": []}):
            with pytest.raises(UsageError):
                evaluate(model, texts=[text], **wrong)
        with pytest.raises(UsageError, match=r"empty\.txt has no text"):
            evaluate(model, texts=[text, empty])
        with pytest.raises(UsageError, match="sparsity is"):
            evaluate(model, sparsities=["on"])  # type: ignore[list-item]
        with pytest.raises(FormatError, match="cannot be read"):
            evaluate(model, squad=tmp_path / "missing.json")


def test_the_verb_prints_a_table(folder: Path, text: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.svg"
    args = ["--text", text, "--squad", SQUAD, "--tsv", SST, "--limit=2", "--tokens=512"]
    result = stem(
        "eval", folder, *args, "--sparsity=off,auto", "--threads=1", "--chat", f"--plot={picture}"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["off", "auto"]
    assert lines[0].count("%") == 3
    for said in ("tok/s", "+0.00%", "dense: switched off", "over 511 tokens", "2 questions"):
        assert said in result.stdout
    assert "dense: not calibrated" in result.stdout
    assert picture.exists()


def test_the_verb_prints_json(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("s\tgold\nIt rains\tyes\n", encoding="utf-8")
    columns = ["--labels=no, yes", "--question=Is it wet?", "--sentence-column=s"]
    args = ["--tsv", tmp_path / "t.tsv", *columns, "--label-column=gold", "--threads=1"]
    result = stem("eval", folder, *args, "--json")
    (row,) = json.loads(result.stdout)["rows"]
    assert row["labels"]["sentences"] == 1
    assert row["text"] is None


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--labels=no,yes"], 2, "--labels need a --question"),
        (["--sparsity=off,on"], 2, "--sparsity takes auto, off or shares"),
        (["--sparsity=nan"], 2, "sparsity is"),
        (["--sparsity=0.3"], 2, "sparsity=0.3 needs to know which neurons of tiny matter"),
        (["--limit=0"], 2, "limit must be a whole number from 1 up"),
        (["--tokens=1"], 2, "tokens must be a whole number from 2 up"),
        (["--plot=picture.jpg"], 2, "ending in .png or .svg, not 'picture.jpg'"),
        (["--plot=nowhere/p.png"], 2, "nowhere is not a folder"),
        (["--plot=folder.png"], 2, "folder.png cannot be written"),
        (["--squad=missing.json"], 3, "missing.json: cannot be read"),
        (["--tsv", str(SQUAD)], 3, "should have one column 'sentence'"),
    ],
)
def test_the_verb_refuses_in_one_line(
    folder: Path, args: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("folder.png").mkdir(exist_ok=True)
    result = stem("eval", folder, "--threads=1", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_plot_that_cannot_be_drawn_costs_nothing_that_was_measured(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plot, "draw", full)
    args = ["--text", text, "--tokens=64", "--sparsity=off", "--threads=1", "--json"]
    result = stem("eval", folder, *args, "--plot", tmp_path / "p.png")
    assert result.exit_code == 15
    assert json.loads(result.stdout)["rows"][0]["text"]["tokens"] == 63


def test_an_interrupted_evaluation_exits_130(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = iter([False, False, True])
    monkeypatch.setattr("threading.Event.is_set", lambda _: next(cancelled, False))
    result = stem("eval", folder, "--threads=1")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "stopped" in result.stderr


def made_up(*settings: tuple[Sparsity, float, float, float]) -> Report:
    """A report of (sparsity, active millions, tok/s, quality)."""
    rows = [
        Row(
            sparsity,
            "made up",
            TokenCost(round(active * 1e6), 134_000_000, 10**8, speed, None),
            TextScore(20 + quality, 1000),
            SquadScore(0.5 - quality / 50, 0.6 - quality / 50, 100),
            LabelScore(0.8 - quality / 50, 100),
        )
        for sparsity, active, speed, quality in settings
    ]
    return Report("tiny-model", "portable", 2, tuple(rows))


REPORT = made_up(("off", 134, 370, 0), ("auto", 118, 460, 0.1), (0.3, 105, 490, 0.8))


def test_a_picture_names_what_it_shows(tmp_path: Path) -> None:
    plot.draw(REPORT, tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text(encoding="utf-8")
    for words in (
        "tiny-model",
        "active parameters per token, millions",
        "decoding speed, tok/s",
        "perplexity",
        "SQuAD F1, %",
        "SQuAD exact match, %",
        "label accuracy, %",
        "off (dense)",
        ">auto<",
        ">0.3<",
    ):
        assert words in drawn, words
    plot.draw(REPORT, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == drawn


def test_a_picture_of_what_was_measured_only(tmp_path: Path) -> None:
    (row,) = made_up(("off", 134, 370, 0)).rows
    one = Report("m", "k", 1, (Row(row.sparsity, row.setting, row.cost, row.text),))
    plot.draw(one, tmp_path / "p.PNG")
    data = (tmp_path / "p.PNG").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1500, 570)
    plot.draw(one, tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert "perplexity" in drawn
    assert "SQuAD" not in drawn and "accuracy" not in drawn


def test_without_matplotlib_a_plot_is_refused_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match="matplotlib"):
        plot.draw(REPORT, tmp_path / "p.png")
    result = stem("eval", folder, "--plot", tmp_path / "p.png")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "pip install 'stem-local[plot]'" in result.stderr


@pytest.mark.real_model
def test_the_real_model_is_evaluated(real_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "ROUNDS", 1)
    monkeypatch.setattr(cost, "TOKENS", 8)
    with stem_local.load(real_model) as model:
        (row,) = evaluate(model, squad=SQUAD, table=SST, limit=4, sparsities=["off"]).rows
        until = read_squad(SQUAD)[2]
        assert "1974" in answer(model, until, "off", QUIET)
    assert row.squad is not None and row.labels is not None
    assert row.squad.f1 > 0.3
    assert row.labels.accuracy >= 0.5
