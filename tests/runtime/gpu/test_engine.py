"""The whole engine of a card on tiny models of every family, token for token with the CPU's."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stem_runtime.config import ACTIVATIONS
from stem_runtime.engine import Cancelled, Engine
from stem_runtime.errors import ContextFullError, KernelError, UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.gpu import engine as gpu
from stem_runtime.gpu import parts
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.quant import Kind
from stem_runtime.sampling import Sampler, SamplingParams

from ..tiny import MIXED, random_packed, tiny_config
from .engines import Make, engines

CHUNK = 16
FEW = {"n_layers": 1, "vocab_size": 48, "ffn_dim": 40}
"""Sizes for kernels in the interpreter, which takes milliseconds for each of their programs."""
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    # nothing is a multiple of what the kernels work in
    "odd": {"d_model": 72, "head_dim": 20, "n_heads": 3, "kv_heads": 1, "ffn_dim": 104},
    "untied": {"d_model": 40, "head_dim": 8, "n_heads": 14, "ffn_dim": 48, "tied_head": False},
    "qwen2": {"family": "qwen2", "d_model": 48, "ffn_dim": 80},
    "qwen3": {"family": "qwen3", "d_model": 100, "ffn_dim": 49},
    "gemma3": {"family": "gemma3", "layer_windows": (5, 0)},
    "minicpm": {"family": "minicpm", "d_model": 60, "head_dim": 20, "n_heads": 3, "kv_heads": 3},
}
CLEAR = 0.15
"""Of the spread of the logits: what an activation that rounds the other way may change."""

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Case:
    """What the CPU answers: `choices` follow `tokens`, the last of `logits` [n, vocab] first."""

    model: PackedModel
    tokens: list[int]
    logits: F32


Cases = Callable[..., Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    made: dict[str, Case] = {}

    def case(
        name: str,
        kinds: Kind | dict[str, Kind] | None = None,
        prompt: int = 2 * CHUNK + 5,
        count: int = 20,
        **over: Any,
    ) -> Case:
        key = f"{name} {kinds} {prompt} {count} {over}"
        if key not in made:
            values = {"vocab_size": 301, **SHAPES.get(name, {}), **over}
            folder = tmp_path_factory.mktemp("model") / "packed"
            model = open_packed(random_packed(folder, tiny_config(**values), 3, kinds or MIXED))
            made[key] = Case(model, *answered(model, prompt, count))
        return made[key]

    return case


def answered(model: PackedModel, prompt: int, count: int) -> tuple[list[int], F32]:
    """A random prompt and the CPU's greedy answer to it, and its logits after each token."""
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, prompt).tolist()
    with Engine(model, threads=1, outliers=False) as engine:
        cache = engine.new_cache(prompt + count)
        rows = list(engine.logits(cache, tokens))
        for _ in range(count):
            tokens.append(int(rows[-1].argmax()))
            rows.append(engine.decode(cache, tokens[-1]).copy())
    return tokens, np.stack(rows)


@pytest.fixture
def make(device: str) -> Iterator[Make]:
    with engines(device) as make:
        yield make


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_CHUNK", CHUNK)


def assert_same_choices(found: F32, want: F32, clear: float = 0.3) -> None:
    """The same token wherever the CPU's is clear, and logits that are off by rounding at most.

    `clear` is the least share of tokens that must be so.
    """
    assert found.shape == want.shape
    errors = np.abs(found - want).max(axis=-1) / want.std()
    assert errors.max() < CLEAR, errors
    best = np.sort(want, axis=-1)
    certain = best[:, -1] - best[:, -2] > CLEAR * want.std()
    assert certain.mean() >= clear
    np.testing.assert_array_equal(found.argmax(-1)[certain], want.argmax(-1)[certain])


def decode_all(engine: GpuEngine, tokens: Sequence[int]) -> F32:
    cache = engine.new_cache(len(tokens))
    return np.stack([engine.decode(cache, token).copy() for token in tokens])


@pytest.mark.parametrize("name", SHAPES)
def test_a_family_answers_as_on_the_cpu(cases: Cases, name: str, make: Make) -> None:
    case, engine = cases(name), make(cases(name).model)
    prompt, cache = 2 * CHUNK + 5, engine.new_cache(len(case.tokens))
    rows = [engine.prefill(cache, case.tokens[:prompt]).copy()]
    rows += [engine.decode(cache, token).copy() for token in case.tokens[prompt:]]
    assert_same_choices(np.stack(rows), case.logits[prompt - 1 :])
    assert cache.tokens == case.tokens
    cache.truncate(0)
    assert_same_choices(engine.logits(cache, case.tokens), case.logits)


@pytest.mark.parametrize("name", SHAPES)
def test_kernels_answer_as_the_cpu(cases: Cases, name: str, make: Make) -> None:
    layers = {"n_layers": 2} if name == "gemma3" else {}
    case = cases(name, "int4", 10, 2, **FEW | layers)
    engine = make(case.model, "triton")
    cache = engine.new_cache(len(case.tokens))
    rows = [engine.prefill(cache, case.tokens[:10]).copy()]
    rows += [engine.decode(cache, token).copy() for token in case.tokens[10:]]
    assert_same_choices(np.stack(rows), case.logits[9:], clear=0)
    assert cache.tokens == case.tokens


def test_kernels_differ_from_the_cpu_by_the_order_of_sums(cases: Cases, make: Make) -> None:
    """Tokens one by one and few together; a step that was recorded goes on after a cut."""
    case = cases("odd", MIXED, 4, 1, **FEW)
    engine = make(case.model, "triton")
    cache = engine.new_cache(8)
    rows = [engine.decode(cache, case.tokens[0]).copy(), *engine.logits(cache, case.tokens[1:3])]
    cache.truncate(2)
    rows[2:] = [engine.decode(cache, token).copy() for token in case.tokens[2:4]]
    np.testing.assert_allclose(rows, case.logits[:4], atol=1e-3 * case.logits.std())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(cases: Cases, name: str, make: Make) -> None:
    param = 0.2 if name == "fatrelu" else 0.0
    case = cases("llama", n_layers=1, activation=name, activation_param=param)
    found = decode_all(make(case.model), case.tokens[:8])
    assert_same_choices(found, case.logits[:8])


@pytest.mark.parametrize("kind", ["int4", "int4m", "int8"])
def test_every_matrix_of_one_kind(cases: Cases, kind: Kind, make: Make) -> None:
    case = cases("odd", kind)
    assert_same_choices(decode_all(make(case.model), case.tokens[:8]), case.logits[:8])


def test_a_prefix_is_used_again(cases: Cases, make: Make) -> None:
    case = cases("gemma3")
    engine = make(case.model)
    cache = engine.new_cache(len(case.tokens))
    engine.prefill(cache, case.tokens)
    for kept in (40, 17, 1):
        cache.truncate(kept)
        engine.prefill(cache, [300 - token for token in case.tokens[kept : kept + 3]])
        cache.truncate(kept)
        last = engine.prefill(cache, case.tokens[kept:])
        np.testing.assert_allclose(last, case.logits[-1], atol=CLEAR * case.logits.std())


def test_states_are_the_cpu_s(cases: Cases, make: Make) -> None:
    case = cases("minicpm")
    tokens, engine = case.tokens[: CHUNK + 3], make(case.model)
    with Engine(case.model, threads=1, outliers=False) as cpu:
        for name in ("hidden", "ffn_inputs"):
            found = getattr(engine, name)(engine.new_cache(64), tokens)
            want = getattr(cpu, name)(cpu.new_cache(64), tokens)
            np.testing.assert_allclose(found, want, atol=0.1 * want.std())
        assert engine.weight_bytes_per_token(9) <= cpu.weight_bytes_per_token(9)


def test_what_does_not_fit_is_refused(cases: Cases, make: Make) -> None:
    case = cases("llama")
    engine = make(case.model)
    cache = engine.new_cache(20)
    engine.prefill(cache, case.tokens[:19])
    for tokens, kind, told in (
        (case.tokens[:2], ContextFullError, "2 more tokens do not fit"),
        ([301], UsageError, "from 0 to 300"),
        ([], UsageError, "no tokens"),
    ):
        with pytest.raises(kind, match=told):
            engine.prefill(cache, tokens)
    with pytest.raises(UsageError, match="without neurons"):
        engine.decode(cache, 1, sparse=True)
    with pytest.raises(UsageError, match="from 1 to 256 tokens"):
        engine.new_cache(257)
    with Engine(case.model, threads=1) as cpu, pytest.raises(UsageError, match="on the CPU"):
        engine.decode(cpu.new_cache(20), 1)
    assert cache.tokens == case.tokens[:19]
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.decode(cache, 1)


def test_a_card_that_is_full_is_said_to_be(
    cases: Cases, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = make(cases("llama").model)
    monkeypatch.setattr(parts, "new_caches", full)
    with pytest.raises(KernelError, match=r"no room for a context of 20 tokens; .*device='cpu'"):
        engine.new_cache(20)
    monkeypatch.setattr(parts, "TorchStep", full)
    with pytest.raises(KernelError, match="no room for this model"):
        make(cases("llama").model)


def test_cancelling_keeps_whole_chunks(cases: Cases, make: Make) -> None:
    case = cases("llama")
    engine = make(case.model)
    cache, asked, read = engine.new_cache(80), itertools.count(), list[int]()
    with pytest.raises(Cancelled):
        engine.prefill(cache, case.tokens, cancel=lambda: next(asked) == 2, progress=read.append)
    assert cache.tokens == case.tokens[: 2 * CHUNK]
    assert read == [CHUNK, 2 * CHUNK]
    cache.truncate(0)

    def interrupt(_read: int) -> None:
        other = threading.Thread(target=engine.interrupt)
        other.start()
        other.join()

    with pytest.raises(Cancelled):
        engine.prefill(cache, case.tokens, progress=interrupt)
    assert cache.tokens == case.tokens[:CHUNK]
    last = engine.prefill(cache, case.tokens[CHUNK:])
    np.testing.assert_allclose(last, case.logits[-1], atol=CLEAR * case.logits.std())


def test_tokens_are_chosen_on_the_device(cases: Cases, make: Make) -> None:
    case = cases("llama", "int4", 3, 2, **FEW)
    engine = make(case.model, "triton")
    cache = engine.new_cache(len(case.tokens))
    with pytest.raises(UsageError, match="call begin_text"):
        engine.choose(cache)
    engine.begin_text(cache, SamplingParams(temperature=0))
    with pytest.raises(UsageError, match="Nothing was read"):
        engine.choose(cache)
    engine.prefill(cache, case.tokens[:3])
    assert [engine.choose(cache), engine.follow(cache, case.tokens[3])] == case.tokens[3:]
    assert cache.tokens == case.tokens[:4]
    with pytest.raises(UsageError, match="needs Triton"):
        make(case.model).begin_text(cache, SamplingParams())


def test_a_text_that_is_sampled_on_the_device_is_that_of_the_host(cases: Cases, make: Make) -> None:
    """Draw for draw, with the penalty of recent tokens, through another text and a cut between."""
    case = cases("llama", "int4", 3, 2, **FEW)
    engine, plain = make(case.model, "triton"), make(case.model)
    params = SamplingParams(0.9, 8, 0.95, seed=7, repetition_penalty=1.3, repeat_last=3)
    sampler = Sampler(params, engine.config.vocab_size)
    (cache, other), own = engine.new_caches(2, 16), engine.new_cache(16)
    text = list(case.tokens[:3])
    assert engine.begin_text(cache, params, text) == 7
    engine.begin_text(other, SamplingParams(temperature=0))
    want = sampler.sample(plain.prefill(own, text), text)
    engine.prefill(cache, text)
    token = engine.choose(cache)
    assert token == want
    for step in range(4):
        text.append(token)
        want = sampler.sample(plain.decode(own, token), text)
        token = engine.follow(cache, token)
        assert token == want
        if step == 1:
            engine.follow(other, 5)
        if step == 2:
            # what was chosen is read again
            cache.truncate(cache.length - 1)
            engine.decode(cache, text[-1])


def test_a_choice_is_no_more_than_a_launch(
    cases: Cases, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between tokens nothing is copied to the device, where the next one is already."""
    case = cases("llama", "int4", 3, 2, **FEW)
    engine = make(case.model, "triton")
    cache = engine.new_cache(8)
    engine.begin_text(cache, SamplingParams(seed=3))
    token = engine.follow(cache, 5)
    given: list[Any] = []
    real = torch.tensor
    monkeypatch.setattr(
        torch, "tensor", lambda rows, **how: given.append(rows) or real(rows, **how)
    )
    for _ in range(2):
        token = engine.follow(cache, token)
    assert given == []
    engine.follow(cache, (token + 1) % 48)
    assert given == [[[(token + 1) % 48], [3], [0]]]
