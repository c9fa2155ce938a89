"""What an engine takes of a card, against the tensors that it really has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch

from stem_runtime.formats.packed import open_packed
from stem_runtime.gpu import split_step
from stem_runtime.gpu.memory import bytes_needed
from stem_runtime.gpu.placement import place
from stem_runtime.sampling_params import SamplingParams
from stem_runtime.sparsity.neurons import Parts

from ..skipping import neurons_of
from ..sparse_steps import plan_of
from ..tiny import random_packed, tiny_config
from .engines import engines
from .test_step import KERNELS

CAPACITY = 300
LARGE = {"n_heads": 8, "kv_heads": 4, "head_dim": 64, "ffn_dim": 1408, "vocab_size": 3000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def tensors_in(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that can be reached from what an object holds."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
        return
    parts: Any = ()
    if isinstance(thing, Mapping | WeakKeyDictionary):
        parts = [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple):
        parts = thing
    elif is_dataclass(thing) and not isinstance(thing, type):
        parts = [getattr(thing, field.name) for field in fields(thing)]
    elif type(thing).__module__.startswith("stem_runtime"):
        parts = list(vars(thing).values()) if hasattr(thing, "__dict__") else ()
    for part in parts:
        yield from tensors_in(part, seen)


def held(*things: Any) -> int:
    """Bytes of the different memories that some objects hold."""
    seen: set[int] = set()
    memories = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for thing in things
        for tensor in tensors_in(thing, seen)
    }
    return sum(memories.values())


@pytest.mark.parametrize(
    ("family", "parts", "over"),
    [
        ("llama", None, {}),
        ("gemma3", "gate", {}),
        ("qwen2", "up", {"tied_head": False, "ffn_dim": 1411}),
        ("llama", "down", {"context_length": 4096}),
    ],
)
def test_an_engine_takes_what_was_counted(
    folder: Path, family: str, parts: Parts | None, over: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(family, **{"d_model": 512, "context_length": 512, **LARGE, **over})
    name = f"{family} {parts}"
    model = open_packed(random_packed(folder / name, config))
    for module, names in KERNELS.items():
        for kernel in names.split():
            monkeypatch.setattr(module, kernel, lambda *_a, **_k: None)
    neurons = None if parts is None else neurons_of(model, parts)
    with engines("cpu") as make:
        engine = make(model, "triton", neurons=neurons)
        cache = engine.new_cache(CAPACITY)
        engine.begin_text(cache, SamplingParams())
        if parts is not None:
            engine.set_plan(plan_of(config.n_layers, "contribution", 0.0, 0.1))
        engine.decode(cache, 1, sparse=parts is not None)
        found = held(engine, cache)
    assert abs(bytes_needed(model, parts, CAPACITY) / found - 1) < 0.02


@pytest.mark.parametrize("way", ["layers", "hotness"])
def test_a_placed_engine_takes_what_was_counted(
    folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**{"n_layers": 6, "d_model": 512, "context_length": 512, **LARGE})
    model = open_packed(random_packed(folder / way, config))
    kernels = {**KERNELS, split_step: "embed norm_quantize rms_norm"}
    for module, names in kernels.items():
        for kernel in names.split():
            monkeypatch.setattr(module, kernel, lambda *_a, **_k: None)
    monkeypatch.setattr("stem_runtime.gpu.placement.CROSSING", 0.0)
    frequency = None
    if way == "hotness":
        often = np.linspace(0.9, 0, config.ffn_dim, dtype=np.float32) ** 2
        frequency = np.tile(often, (6, 1))
    room = bytes_needed(model, None, CAPACITY, layers=range(1, 6)) + 10_000
    placement = place(model, room, CAPACITY, frequency=frequency)
    assert (placement.hot is not None) == (way == "hotness")
    neurons = neurons_of(model) if way == "hotness" else None
    with engines("cpu") as make:
        engine = make(model, "triton", neurons=neurons, placement=placement, threads=1)
        cache = engine.new_cache(CAPACITY)
        engine.prefill(cache, [1])
        engine.decode(cache, 1)
        found = held(engine, cache)
    assert found <= 1.02 * placement.card_bytes
    assert found > 0.95 * placement.card_bytes


def test_layers_without_embedding_and_head_take_less(folder: Path) -> None:
    config = tiny_config(n_layers=3, tied_head=False, vocab_size=3000)
    model = open_packed(random_packed(folder / "layers", config))
    whole = bytes_needed(model, "up", 100)
    embed, head = model.matrix("embed").nbytes, model.matrix("head").nbytes
    last = bytes_needed(model, "up", 100, layers=range(1, 3))
    first = bytes_needed(model, "up", 100, layers=range(1), head=False)
    shared = bytes_needed(model, "up", 100, layers=range(0), head=False)
    # what a step writes to is there however few the layers are
    assert first + last - shared == whole
    assert last < whole - embed
    assert first < last - head + embed
    assert bytes_needed(model, None, 200) > bytes_needed(model, None, 100)
    two = bytes_needed(model, "up", 100, batch=2)
    assert bytes_needed(model, "up", 100, batch=3) - two == two - whole
