"""What makes a step fit to be recorded once, and what runs where Triton is missing."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.gpu import graph, sparse, step
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.kernels import DeviceChoice
from stem_runtime.kernels.gpu import sample_draw, sample_keys, sample_search
from stem_runtime.kernels.gpu.sample import DeviceSampler
from stem_runtime.sampling_params import SamplingParams

from ..skipping import neurons_of
from ..sparse_steps import plan_of
from ..tiny import random_packed, tiny_config

KERNELS = {
    step: "decode_attention embed hidden_values matvec norm_quantize quantize rms_norm rope_store",
    sparse: "add_contributors add_survivors find_contributors find_survivors",
}
CHOOSERS = {
    sample_keys: "all_keys best_keys",
    sample_draw: "draw",
    sample_search: "aim narrow weigh take",
}
IN_PLACE = {"aten::add_", "aten::zero_", "aten::fill_"}
VIEWS = {"aten::slice", "aten::select", "aten::view", "aten::unsqueeze", "aten::alias"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    config = tiny_config("gemma3", vocab_size=48, ffn_dim=64)
    return open_packed(random_packed(tmp_path_factory.mktemp("model") / "packed", config))


class Watched(TorchDispatchMode):
    """Names every operation of torch that is neither a view nor in place."""

    def __init__(self) -> None:
        super().__init__()
        self.others: set[str] = set()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name not in IN_PLACE | VIEWS:
            self.others.add(name)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("mode", ["dense", "gate", "contribution"])
def test_a_step_takes_no_memory_and_waits_for_nothing(
    model: PackedModel, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are left out: what they do is their launchers' business, tested where they are."""
    launched: list[str] = []
    for module, names in KERNELS.items():
        for name in names.split():
            monkeypatch.setattr(module, name, lambda *_a, _n=name, **_k: launched.append(_n))
    watched = Watched()

    def record(run: Callable[[], None], *_more: object) -> Callable[[], None]:
        with watched:
            run()
        return lambda: None

    monkeypatch.setattr(step, "captured", record)
    neurons = neurons_of(model)
    with GpuEngine(model, DeviceChoice("cpu", "triton", ""), neurons=neurons) as engine:
        engine.set_plan(plan_of(2, mode, 0.3, core=True))
        engine.decode(engine.new_cache(8), 5, sparse=True)
    assert watched.others == set()
    found = {"dense": "hidden_values", "gate": "add_survivors"}.get(mode, "add_contributors")
    assert launched.count(found) == 2
    assert launched.count("decode_attention") == 2
    assert launched[0] == "embed"


@pytest.mark.parametrize("top_k", [1, 40, 0, 300])
def test_a_choice_takes_no_memory_and_waits_for_nothing(
    top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    for module, names in CHOOSERS.items():
        for name in names.split():
            kernel = defaultdict(lambda n=name: lambda *_a, **_k: launched.append(n))
            monkeypatch.setattr(module, name, kernel)
    sampler, watched = DeviceSampler(5000, 8, "cpu"), Watched()
    sampler.begin(SamplingParams(top_k=top_k))
    logits, given = torch.zeros(1, 5000), torch.zeros(3, 1, dtype=torch.int32)
    with watched:
        sampler.sample(logits, given)
    assert watched.others == set()
    assert launched[-1] == ("draw" if 0 < top_k < 100 else "take")
    assert launched.count("narrow") == {0: 22, 300: 33}.get(top_k, 0)


def test_a_step_that_is_repeated_changes_nothing(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording runs it some times before it counts."""
    runs: list[Callable[[], None]] = []

    def record(run: Callable[[], None], *_more: object) -> Callable[[], None]:
        runs.append(run)
        return run

    monkeypatch.setattr(step, "captured", record)
    neurons = neurons_of(model)
    with GpuEngine(model, DeviceChoice("cpu", "triton", ""), neurons=neurons) as engine:
        engine.set_plan(plan_of(2, "gate", 0.3))
        cache = engine.new_cache(8)
        logits = engine.decode(cache, 5, sparse=True)
        want, counts, keys = logits.copy(), engine.last_counts, cache.device_keys.clone()
        runs[0]()
        np.testing.assert_allclose(logits, want, atol=1e-4 * want.std())
        np.testing.assert_array_equal(engine.last_counts, counts)
        assert torch.equal(cache.device_keys, keys)
        # cut-offs are read from the device: another plan of the same kind is the same step
        engine.set_plan(plan_of(2, "gate", 1.5))
        engine.decode(engine.new_cache(8), 5, sparse=True)
        cache.truncate(0)
        engine.decode(cache, 5, sparse=True)
    assert len(runs) == 2  # one for each cache


def test_recording_warms_up_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def within(name: str) -> Any:
        events.append(f"{name} begins")
        yield
        events.append(f"{name} ends")

    def stream(name: str) -> Any:
        return SimpleNamespace(
            name=name, wait_stream=lambda other: events.append(f"{name} waits for {other.name}")
        )

    recorded = SimpleNamespace(replay=lambda: events.append("replay"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: within("warming up"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: recorded)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph, **_mode: within("recording"))
    state, seen = torch.tensor([7]), list[int]()

    def step() -> None:
        events.append("run")
        state.add_(1)
        seen.append(int(state))

    run = graph.captured(step, torch.device("cuda"), [state])
    # what a run leaves for the next one is as if there had been no warming up
    assert seen == [8, 8, 8]
    run()
    assert events == [
        "side waits for main",
        "warming up begins",
        "run",
        "run",
        "warming up ends",
        "main waits for side",
        "recording begins",
        "run",
        "recording ends",
        "replay",
    ]


def test_torch_alone_is_enough(tmp_path: Path) -> None:
    folder = random_packed(tmp_path / "packed", tiny_config())
    program = f"""
import sys
sys.modules["triton"] = None
from pathlib import Path
from stem_runtime.formats.packed import open_packed
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.kernels import DeviceChoice
with GpuEngine(open_packed(Path({str(folder)!r})), DeviceChoice("cpu", "torch", "")) as engine:
    print(engine.prefill(engine.new_cache(8), [1, 2, 3]).argmax())
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert found.returncode == 0, found.stderr
    with GpuEngine(open_packed(folder), DeviceChoice("cpu", "torch", "")) as engine:
        assert int(found.stdout) == engine.prefill(engine.new_cache(8), [1, 2, 3]).argmax()
