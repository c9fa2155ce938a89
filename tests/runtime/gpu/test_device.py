"""A model is loaded on the device that was chosen, and answers there as it does on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

import stem_local
from stem_runtime.errors import KernelError
from stem_runtime.kernels import DeviceChoice
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


def test_a_device_that_is_not_there_is_refused_and_auto_goes_on(folder: Path) -> None:
    with pytest.raises(KernelError, match="device='cuda' cannot be used"):
        stem_local.load(folder, device="cuda")
    with stem_local.load(folder, threads=1) as model:
        assert model.info.device == "cpu"
