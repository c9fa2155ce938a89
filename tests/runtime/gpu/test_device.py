"""A model is loaded on the device that was chosen, and answers there as it does on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stem_local
from stem_runtime.errors import KernelError, UsageError
from stem_runtime.formats.packed import open_packed
from stem_runtime.gpu.memory import bytes_needed
from stem_runtime.gpu.placement import Placement
from stem_runtime.kernels import DeviceChoice
from tests.local.profiles import add_ffn_profile
from tests.runtime.tiny import random_packed, tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_packed(tmp_path / "model", tiny_config())
    return tmp_path / "model"


def test_answers_do_not_depend_on_the_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stem_local.load(folder, threads=1, device="cpu") as model:
        expected = model.generate("Hello", raw=True, max_tokens=12, temperature=0.0)
        assert model.info.device == "cpu"
    # torch computes on the CPU where there is no card, with the same calls
    monkeypatch.setattr(
        "stem_local.api.choose_device", lambda *_: DeviceChoice("cpu", "torch", "a test")
    )
    with stem_local.load(folder) as model:
        stream = model.stream("Hello", raw=True, max_tokens=12, temperature=0.0)
        chunks = list(stream)
        again = model.generate("Hello", raw=True, max_tokens=12, temperature=0.0)
    tokens = tuple(token for chunk in chunks for token in chunk.tokens)
    assert tokens == again.tokens == expected.tokens
    stats = chunks[-1].stats
    assert stats is not None
    assert stats.active_parameters == expected.stats.active_parameters
    assert stream.live().active_parameters == stats.active_parameters


def test_a_card_that_is_too_small_shares_with_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_packed(tmp_path / "model", tiny_config(n_layers=3))
    with stem_local.load(folder, threads=1, device="cpu") as model:
        expected = model.generate("Hello", raw=True, max_tokens=12, temperature=0.0)
        assert model.info.placement == "all 3 layers on the CPU"
    packed = open_packed(folder)
    room = bytes_needed(packed, None, 256, layers=range(2, 3))
    asked = []

    def choose(wanted: str, limit: int | None) -> DeviceChoice:
        asked.append((wanted, limit))
        return DeviceChoice("cpu", "torch", "a test", min(room, limit or room))

    monkeypatch.setattr("stem_local.api.choose_device", choose)
    with stem_local.load(folder, threads=1) as model:
        found = model.generate("Hello", raw=True, max_tokens=12, temperature=0.0)
        assert model.info.placement.startswith("the first 2 of 3 layers on the CPU, the others")
    assert found.tokens == expected.tokens
    # a smaller context leaves room for more
    with stem_local.load(folder, threads=1, context=8) as model:
        assert model.info.placement == "all 3 layers on the card"
    with (
        stem_local.load(folder, threads=1, gpu_memory=0.1) as model,
        pytest.raises(UsageError, match=r"gpu_memory must be a number from 0\.1"),
    ):
        stem_local.load(folder, gpu_memory=0.01)
    assert asked == [("auto", None), ("auto", None), ("auto", 10**8)]


def test_ffns_are_split_by_how_often_calibration_saw_neurons_fire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_packed(tmp_path / "model", tiny_config(activation="relu", vocab_size=320))
    add_ffn_profile(folder, {"name": "some"})
    asked: list[Any] = []

    def place(*_: Any, parts: str | None, frequency: Any) -> Placement:
        asked.append((parts, frequency))
        return Placement(2, hot=np.full((2, 3), 0x00FF00FF, np.uint32), hot_share=0.5)

    monkeypatch.setattr("stem_runtime.gpu.placement.place", place)
    with stem_local.load(folder, threads=1, device="cpu", sparsity="off") as model:
        expected = model.generate("Hi", raw=True, max_tokens=3, temperature=0.0)
    for backend in ("triton", "torch"):
        monkeypatch.setattr(
            "stem_local.api.choose_device",
            lambda *_, b=backend: DeviceChoice("cpu", b, "a test", 1 << 20),
        )
        if backend == "torch":  # which asks for no split, so that this one is not from `place`
            with pytest.raises(UsageError, match="takes Triton"):
                stem_local.load(folder, threads=1, sparsity="off")
            break
        with stem_local.load(folder, threads=1, sparsity="off") as model:
            assert "50% of the neurons that fire most" in model.info.placement
            found = model.generate("Hi", raw=True, max_tokens=3, temperature=0.0)
            assert found.tokens == expected.tokens
            model.generate("Hi", raw=True, max_tokens=2, temperature=0.0, sparsity=0.3)
    frequencies = [frequency for _, frequency in asked]
    assert [parts for parts, _ in asked] == [None, "up", None]
    assert frequencies[-1] is None
    assert all(known.shape == (2, 96) for known in frequencies[:-1])


def test_a_card_without_room_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "stem_local.api.choose_device", lambda *_: DeviceChoice("cpu", "torch", "a test", 1000)
    )
    with stem_local.load(folder, threads=1) as model:
        assert model.info.placement == "all 2 layers on the CPU"
        assert model.generate("Hello", raw=True, max_tokens=2).tokens
    with pytest.raises(KernelError, match="One layer and the output head of tiny take"):
        stem_local.load(folder, device="cuda")


def test_a_device_that_is_not_there_is_refused_and_auto_goes_on(folder: Path) -> None:
    with pytest.raises(KernelError, match="device='cuda' cannot be used"):
        stem_local.load(folder, device="cuda")
    with stem_local.load(folder, threads=1) as model:
        assert model.info.device == "cpu"
