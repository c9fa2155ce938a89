"""Calibration on a card: what it measures there is used there."""

from __future__ import annotations

from pathlib import Path

import pytest

import stem_local
from stem_local.calibration import calibrate
from stem_runtime.engine import Engine
from stem_runtime.errors import KernelError
from stem_runtime.formats.packed import PackedModel
from stem_runtime.kernels import DeviceChoice
from stem_runtime.sparsity.neurons import Neurons
from tests.quick import shorten
from tests.runtime.fitted import SPARSE
from tests.runtime.tiny import random_packed, tiny_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shorten(monkeypatch)
    return random_packed(tmp_path / "tiny", tiny_config(n_layers=1, **SPARSE))


def on_card(monkeypatch: pytest.MonkeyPatch, room: int | None = None) -> None:
    """Let torch compute on the CPU where a card is asked for."""

    def choose(wanted: str, *_: object) -> DeviceChoice:
        backend = "cpu" if wanted == "cpu" else "torch"
        return DeviceChoice("cpu", backend, "a test", room)

    for module in ("stem_local.calibration", "stem_local.api"):
        monkeypatch.setattr(f"{module}.choose_device", choose)


def test_what_is_measured_on_a_card_is_used_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_card(monkeypatch)
    built = []

    def quick(model: PackedModel, card: DeviceChoice, *, neurons: Neurons | None) -> Engine:
        """The CPU's engine, which is as right and many times as fast as torch there."""
        engine = Engine(model, threads=1, neurons=neurons)
        engine.kernels = card  # type: ignore[assignment]
        built.append(neurons is None)
        return engine

    with monkeypatch.context() as patched:
        patched.setattr("stem_runtime.gpu.engine.GpuEngine", quick)
        profile = calibrate(folder)
    assert set(built) == {True, False}
    assert profile.head is None  # which a card computes whole
    assert profile.ffn is not None
    assert {setting.kernels for setting in profile.ffn.settings} == {"cpu"}
    assert profile.ffn.rules.frequency is not None
    with stem_local.load(folder) as model:
        assert "calibrated with the" not in model.choose().reason
    with stem_local.load(folder, device="cpu") as model:
        assert "calibrated with the cpu kernels, not" in model.choose().reason


def test_a_card_that_is_too_small_is_not_calibrated_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_card(monkeypatch, room=1000)
    with pytest.raises(KernelError, match=r"takes 0\.0 GB of the card and 0\.0 GB are free; cali"):
        calibrate(folder, device="cuda")
    profile = calibrate(folder, threads=1)
    assert profile.ffn is not None
    assert "cpu" not in {setting.kernels for setting in profile.ffn.settings}
