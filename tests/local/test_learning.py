"""Calibrating the head at the end of a pull: when it is done, and that it never harms the pull."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import stem_local
from stem_local import calibration, hub, learning, store
from stem_local.progress import LEARN
from stem_local.progress import learning as line
from stem_local.store import InstalledModel
from stem_runtime.engine import Engine
from stem_runtime.errors import FormatError
from stem_runtime.kernels import DeviceChoice
from stem_runtime.sparsity import calibrate
from stem_runtime.sparsity.profile import FILE

from ..runtime.files import tiny_gguf
from ..runtime.looks import add_profile
from ..runtime.tiny import tiny_config
from .command import stem
from .told import Told

Learn = Callable[..., None]


@pytest.fixture
def source(tmp_path: Path, unlearned: Learn, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model to pull, and pulls that calibrate, on few texts."""
    monkeypatch.setattr(learning, "learn", unlearned)
    texts = calibration.built_in_texts()
    monkeypatch.setattr(calibration, "built_in_texts", lambda: texts[:2])
    monkeypatch.setattr(calibration, "look_texts", list)
    tiny_gguf(tmp_path / "tiny.gguf", tiny_config(), kind="Q8_0")
    return str(tmp_path / "tiny.gguf")


def calibrated(model: InstalledModel) -> bool:
    return (model.folder / FILE).exists()


def test_a_pull_ends_with_learning_which_words_to_look_at(source: str) -> None:
    told = Told()
    model = hub.pull(source, progress=told)
    assert calibrated(model)
    assert list(told.steps) == ["pack", LEARN]
    done = [now for now, _ in told.steps[LEARN]]
    assert done == sorted(done)
    assert told.steps[LEARN][-1][0] == told.steps[LEARN][-1][1]
    # only the end looks like one
    assert all(now < total for now, total in told.steps[LEARN][:-1])
    assert "tiny" in told.notes[-1]
    with stem_local.load(model.name, threads=1) as loaded:
        reason = loaded.generate("Hi", max_tokens=3).stats.sparsity
    assert "only the head is calibrated, run stem-local calibrate tiny for the FFNs" in reason
    shown = json.loads(stem("show", model.name, "--json").stdout)["calibration"]
    assert shown["head"]["positions"] > 500
    assert shown["ffn"] is None


def test_what_is_calibrated_stays_so(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hub.pull(source, calibrate=False)
    assert not calibrated(model)
    add_profile(model.folder)
    held = (model.folder / FILE).read_bytes()
    monkeypatch.setattr(calibrate, "calibrate_head", None)
    told = Told()
    again = hub.pull(source, progress=told)
    assert (again.folder / FILE).read_bytes() == held
    anew = hub.pull(source, force=True, progress=told)
    assert told.notes == ["tiny is installed already (--force gets it anew)."]
    assert anew.folder != model.folder
    assert (anew.folder / FILE).read_bytes() == held
    # other weights have another calibration, and a damaged one is none
    (anew.folder / FILE).write_bytes(b"nothing")
    assert not calibrated(hub.pull(source, force=True, calibrate=False))


def test_it_is_left_where_it_is_not_worth_it(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    for name, value in (("PATIENCE", 0.0), ("SHARE", 1.0)):
        with monkeypatch.context() as patch:
            patch.setattr(learning, name, value)
            assert not calibrated(hub.pull(source, progress=told))
    assert "would take about" in told.notes[0]
    assert len(told.notes) == 2  # the second pull found it installed, and had nothing to add
    with monkeypatch.context() as patch:
        card = DeviceChoice("triton", "cuda", "found")
        patch.setattr(learning, "choose_device", lambda _: card)
        assert not calibrated(hub.pull(source, progress=told))
    assert LEARN not in told.steps
    assert calibrated(hub.pull(source, progress=told))


def test_cancelling_leaves_the_model_installed(source: str) -> None:
    told = Told()
    model = hub.pull(source, progress=told, cancel=lambda: LEARN in told.steps)
    assert model.damage is None
    assert not calibrated(model)
    assert told.notes[-1] == (
        "tiny is installed, but not calibrated; `stem-local calibrate tiny` does it later."
    )
    assert calibrated(hub.pull(source, progress=told))


@pytest.mark.parametrize("error", [FormatError("No."), MemoryError(), ValueError("odd")])
def test_its_failure_is_told_and_no_more(
    source: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Engine, "hidden", fail)
    told = Told()
    model = hub.pull(source, progress=told)
    assert (model.damage, calibrated(model)) == (None, False)
    assert "could not be learned" in told.notes[-1]
    assert "`stem-local calibrate tiny`" in told.notes[-1]


def test_the_verb_pulls_with_and_without(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = stem("pull", source, "--no-calibrate")
    assert (result.exit_code, result.stdout) == (0, "tiny\n")
    assert not calibrated(store.installed()[0])
    with monkeypatch.context() as patch:
        patch.setattr("threading.Event.is_set", lambda _: True)
        result = stem("pull", source)
        assert (result.exit_code, result.stdout) == (0, "tiny\n")
        assert "does it later" in result.stderr
        assert not calibrated(store.installed()[0])
    assert stem("pull", source).stdout == "tiny\n"
    assert calibrated(store.installed()[0])


def test_the_head_alone_is_refused_where_there_is_nothing_to_look_at(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_gguf(tmp_path / "narrow.gguf", tiny_config(d_model=32), kind="Q8_0")
    hub.pull(str(tmp_path / "narrow.gguf"), calibrate=False)
    result = stem("calibrate", "narrow", "--head-only")
    assert result.exit_code == 2
    assert "too narrow" in result.stderr
    hub.pull(source, calibrate=False)
    card = DeviceChoice("triton", "cuda", "found")
    monkeypatch.setattr(calibration, "choose_device", lambda _: card)
    assert "computes the whole head" in stem("calibrate", "tiny", "--head-only").stderr
    result = stem("calibrate", "tiny", "--head-only", "--kernels=portable", "--threads=1")
    assert result.exit_code == 2


def test_the_line_says_how_long_it_takes() -> None:
    assert line(0, 12_400) == "Learning which words to look at: 12 s"
    assert line(8_000, 12_400) == "Learning which words to look at: 4 s"
    assert line(9_100, 9_100) == "Learning which words to look at: 9 s"
