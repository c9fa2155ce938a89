"""Answers whose tokens are chosen on the card, in the step that reads the token before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stem_local
from stem_local.model import Model
from stem_local.sparsity import Choice
from stem_runtime.formats.packed import open_packed
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.kernels import DeviceChoice

from ..skipping import neurons_of
from ..sparse_steps import plan_of
from ..tiny import random_packed, tiny_config

SMALL = {"n_layers": 1, "d_model": 32, "n_heads": 2, "kv_heads": 1, "ffn_dim": 40}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "penalized": {"seed": 5, "temperature": 2.0, "repetition_penalty": 1.4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_packed(tmp_path_factory.mktemp("model") / "packed", tiny_config(**SMALL), 3)


@pytest.fixture
def model(folder: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    card, cpu = DeviceChoice(device, "triton", "a test"), DeviceChoice("cpu", "cpu", "asked for")
    monkeypatch.setattr(
        "stem_local.api.choose_device", lambda wanted, *_: cpu if wanted == "cpu" else card
    )
    with stem_local.load(folder, context=40) as model:
        yield model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of engines on a card, token by token."""
    calls: list[str] = []
    for name in ("decode", "follow", "begin_text"):
        real = getattr(GpuEngine, name)

        def call(*args: Any, _real: Any = real, _name: str = name, **how: Any) -> Any:
            # of a text that begins also how far it is
            calls.append(f"begin_text {len(args[3])}" if _name == "begin_text" else _name)
            return _real(*args, **how)

        monkeypatch.setattr(GpuEngine, name, call)
    return calls


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_seed_gives_the_text_of_the_cpu(
    folder: Path, model: Model, asked: list[str], settings: dict[str, Any]
) -> None:
    with stem_local.load(folder, threads=1, device="cpu") as cpu:
        want = cpu.generate("Hello", raw=True, max_tokens=5, **settings)
    found = model.generate("Hello", raw=True, max_tokens=5, **settings)
    assert found.tokens == want.tokens
    assert found.text == want.text
    assert found.logprobs is None
    assert asked == ["begin_text 5", *["follow"] * (len(found.tokens) - 1)]
    # once more from the cache, and with logits on the host
    again = model.generate("Hello", raw=True, max_tokens=2, logprobs=1, **settings)
    assert again.tokens == want.tokens[:2]
    assert again.logprobs is not None
    assert asked[-1] == "decode"


def test_an_answer_is_steered_while_it_runs(
    model: Model, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another plan needs another engine: the text goes on with its draws and its cache."""
    neurons = neurons_of(open_packed(model.packed.folder))
    plan = plan_of(1, "gate", 0.0)
    monkeypatch.setattr(type(model.calibrated), "neurons", lambda *_: neurons)
    settings = SETTINGS["penalized"]
    want = model.generate("Hello", raw=True, max_tokens=5, **settings).tokens
    stream = model.stream("Hello", raw=True, max_tokens=5, **settings)
    chunks = [next(stream)]
    sparse = Choice(False, plan, "a plan that leaves nobody out")
    monkeypatch.setattr(model, "choose", lambda *_: sparse)
    before = model.engine
    stream.steer(0.5)
    chunks += stream
    assert model.engine is not before
    assert tuple(token for chunk in chunks for token in chunk.tokens) == want
    assert asked == ["begin_text 5", *["follow"] * 4] * 2
    stats = chunks[-1].stats
    assert stats is not None
    assert stats.sparsity.endswith("-> a plan that leaves nobody out")
    assert stats.active_parameters == stream.live().active_parameters
