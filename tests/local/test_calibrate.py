"""The verb, the knob, and what the figures say of a sparse output head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stem_local
from stem_local import calibration
from stem_runtime.engine import Engine
from stem_runtime.formats.packed import open_packed
from stem_runtime.kernels import choose
from stem_runtime.sparsity import capture
from stem_runtime.sparsity.profile import FILE, read_profile
from stem_runtime.tokenizer import Tokenizer
from tests.local.command import stem
from tests.quick import shorten
from tests.runtime.looks import add_profile
from tests.runtime.tiny import random_packed, tiny_config

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "draft": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_packed(tmp_path / "tiny", tiny_config())


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def calibrated(folder: Path, **changes: Any) -> Path:
    """The folder with a profile that was measured with the kernels in use here."""
    add_profile(folder, kernels=choose().name, **changes)
    return folder


@pytest.mark.usefixtures("short")
def test_the_verb_calibrates_and_says_what_it_found(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("My own text, which is short.", encoding="utf-8")
    result = stem("calibrate", str(folder), "--text", str(own), "--threads=1")
    assert (result.exit_code, result.stderr) == (0, "")
    for word in ("sparse head:", "32 axes", "winners missed:", "probability kept:", "tok/s"):
        assert word in result.stdout
    for word in ("sparse FFN:", "policies:", "uniform", "skipped"):
        assert word in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line[:2] in ("1%", "5%")]
    assert [row[0] for row in rows] == ["1%", "5%"]
    assert all(row[-1].endswith("x") for row in rows)
    shown = stem("show", str(folder)).stdout
    assert all(line in shown for line in result.stdout.splitlines()[1:2])
    known = json.loads(stem("show", str(folder), "--json").stdout)["calibration"]["head"]
    packed = open_packed(folder)
    profile = read_profile(folder, packed.config, packed.info["weights_sha256"])
    assert profile is not None
    assert profile.head is not None
    assert known == profile.head.setting.to_dict()
    again = json.loads(stem("calibrate", str(folder), "--threads=1", "--json").stdout)
    assert set(again["head"]) == set(known)
    assert [setting["name"] for setting in again["ffn"]["settings"]] == ["1%", "5%"]
    assert {"plan", "perplexity_change", "active_parameters"} <= set(again["ffn"]["settings"][0])
    assert len(again["ffn"]["policies"]) == 5


@pytest.mark.parametrize("content", [b"", b" \n\t "])
def test_an_empty_text_is_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.txt").write_bytes(content)
    result = stem("calibrate", str(folder), "--text", str(tmp_path / "empty.txt"))
    assert result.exit_code == 2
    assert "has no text in it" in result.stderr
    assert not (folder / FILE).exists()


def test_too_little_text_and_bytes_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in stem("calibrate", str(folder), "--text", str(tmp_path / "bytes")).stderr
    monkeypatch.setattr(calibration, "built_in_texts", lambda: ["Short."])
    monkeypatch.setattr(calibration, "PROMPTS", ("Hi",))
    result = stem("calibrate", str(folder), "--threads=1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "too little text" in result.stderr


@pytest.mark.usefixtures("short")
def test_an_interrupted_calibration_exits_130_and_is_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = iter([False, False, True])
    monkeypatch.setattr("threading.Event.is_set", lambda _: next(cancelled, False))
    result = stem("calibrate", str(folder), "--threads=1")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "goes on from here" in result.stderr
    assert stem("calibrate", str(folder), "--threads=1").exit_code == 0


def test_the_built_in_texts_are_five_kinds() -> None:
    texts = calibration.built_in_texts()
    assert len(texts) == 5
    assert 12_000 < sum(map(len, texts)) < 16_000
    assert ["User:" in t for t in texts] == [True, False, False, False, False]
    assert len(set(calibration.PROMPTS)) == len(calibration.PROMPTS)
    assert capture.MAX_TEXT > 16_000 / 4


def test_a_profile_that_pays_is_used(folder: Path) -> None:
    with stem_local.load(folder, threads=1) as model:
        dense = model.generate("Hi", **GREEDY)
        assert dense.stats.sparsity == "dense: not calibrated; run stem-local calibrate tiny"
        assert dense.stats.head_rows == 320
        assert dense.stats.active_parameters == dense.stats.total_parameters
        assert dense.stats.active_fraction == 1
        logits = model.logits([5, 6])
    calibrated(folder, margin=20.0, limit=320)
    with stem_local.load(folder, threads=1) as model:
        sparse = model.generate("Hi", **GREEDY)
        assert sparse.tokens == dense.tokens
        stats = sparse.stats
        assert stats.sparsity.startswith("sparse head: 32 axes, then 12 rows on average; 1 of 2000")
        assert 0 < stats.head_rows < 320
        expected = dense.stats.total_parameters - (320 - stats.head_rows) * 64 + 32 * (64 + 320)
        assert stats.active_parameters == round(expected)
        assert stats.to_dict()["active_fraction"] == stats.active_fraction
        assert stats.bytes_per_token != dense.stats.bytes_per_token
        assert "sparse head" in str(stats)
        off = model.generate("Hi", sparsity="off", **GREEDY)
        assert (off.stats.sparsity, off.stats.head_rows) == ("dense: switched off", 320)
        assert off.stats.bytes_per_token == dense.stats.bytes_per_token
        # what is asked of all rows is answered from all rows
        assert (model.logits([5, 6]) == logits).all()
    with stem_local.load(folder, threads=1, sparsity="off") as model:
        assert model.generate("Hi", **GREEDY).stats.sparsity == "dense: switched off"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens_per_second": 90.0}, "not faster here (90 tok/s, dense 100)"),
        ({"misses": 3}, "not good enough"),
        ({"default_mass": 0.99}, "not good enough"),
        ({"warm_mass": 0.99}, "not good enough"),
        ({"kernels": "other"}, "calibrated with the other kernels"),
    ],
)
def test_a_profile_that_does_not_pay_is_not_used(
    folder: Path, changes: dict[str, Any], says: str
) -> None:
    add_profile(folder, **{"kernels": choose().name, **changes})
    with stem_local.load(folder, threads=1) as model:
        stats = model.generate("Hi", **GREEDY).stats
        assert stats.sparsity.startswith("dense: ")
        assert says in stats.sparsity
        assert stats.head_rows == 320
    why, _, ffn = stats.sparsity[7:].rpartition("; ")
    assert ffn == "only the head is calibrated, run stem-local calibrate tiny for the FFNs"
    shown = " ".join(stem("show", str(folder)).stdout.split())
    assert f"sparse FFN: not used: {ffn}" in shown
    if "kernels" not in changes:
        assert f"sparse head: not used: {why}" in shown


def test_a_profile_that_cannot_be_read_is_not_used(folder: Path, tmp_path: Path) -> None:
    calibrated(folder)
    other = random_packed(tmp_path / "other", tiny_config(), seed=1)
    (other / FILE).write_bytes((folder / FILE).read_bytes())
    with stem_local.load(other, threads=1) as model:
        assert "belongs to other weights" in model.generate("Hi", **GREEDY).stats.sparsity
    assert "belongs to other weights" in stem("show", str(other)).stdout
    (folder / FILE).write_bytes(b"nothing")
    with stem_local.load(folder, threads=1) as model:
        assert "too few" in model.generate("Hi", **GREEDY).stats.sparsity


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"logprobs": 0}, "logprobs need the whole head"),
        ({"repetition_penalty": 1.1}, "a repetition penalty needs"),
        ({"temperature": 1.1}, "draw from more rows"),
        ({"top_k": 0}, "draw from more rows"),
        ({"top_k": 41}, "draw from more rows"),
        ({"top_p": 1.0}, "draw from more rows"),
        ({"min_p": 0.0}, "draw from more rows"),
        ({"top_k": 0, "temperature": 0}, ""),
        ({"temperature": 1.0, "top_k": 5}, ""),
        ({}, ""),
    ],
)
def test_options_that_need_every_row_get_it(
    folder: Path, options: dict[str, Any], says: str
) -> None:
    calibrated(folder, margin=20.0)
    with stem_local.load(folder, threads=1) as model:
        stats = model.generate("Hi", max_tokens=6, seed=1, **options).stats
    assert says in stats.sparsity
    assert stats.sparsity.startswith("dense" if says else "sparse")
    assert (stats.head_rows == 320) == bool(says)


def test_an_untied_embedding_is_not_counted_as_active(tmp_path: Path) -> None:
    folder = random_packed(tmp_path / "m", tiny_config(tied_head=False))
    with stem_local.load(folder, threads=1) as model:
        stats = model.generate("Hi", **GREEDY).stats
    assert stats.active_parameters == stats.total_parameters - 319 * 64


@pytest.mark.real_model
def test_the_real_model_says_the_same_with_and_without(
    real_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "ANSWER", 64)
    monkeypatch.setattr(calibration, "look_texts", list)
    monkeypatch.setattr(calibration, "PROMPTS", calibration.PROMPTS[:8])
    shorten(monkeypatch)
    profile = calibration.calibrate(real_model, threads=1)
    try:
        assert profile.head is not None
        assert profile.ffn is not None
        setting = profile.head.setting
        assert setting.positions > 500
        assert setting.head_bytes < 0.7 * setting.dense_head_bytes
        least = profile.ffn.settings[0]
        assert least.active_parameters < 0.95
        assert least.perplexity_change < 0.03
        packed = open_packed(real_model)
        with Engine(packed, head=profile.head.look) as engine:
            tokenizer = Tokenizer.from_file(real_model / "tokenizer.json", packed.info["tokenizer"])
            cache = engine.new_cache(100)
            for prompt in ("The sky is blue because", "def add(a, b):", "Three rivers are"):
                answers = []
                for look in (False, True):
                    cache.truncate(0)
                    logits, said = engine.prefill(cache, tokenizer.encode(prompt)), []
                    for _ in range(40):
                        said.append(int(logits.argmax()))
                        logits = engine.decode(cache, said[-1], look=look)
                    answers.append(said)
                assert answers[0] == answers[1]
    finally:
        (real_model / FILE).unlink()
