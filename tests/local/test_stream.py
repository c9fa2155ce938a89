"""An answer as it comes can be watched, steered and stopped from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import stem_local
from stem_local.completion import collect
from stem_local.decoding import Decoding, total_cost
from stem_runtime.errors import UsageError

from .fakes import fake_model
from .profiles import add_ffn_profile

TEXT = "Sixteen letters and some more of them, so that there is something to read here."


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that live figures are told, in seconds."""
    now = [100.0]
    monkeypatch.setattr("stem_local.generation.time.perf_counter", lambda: now[0])
    return now


def test_live_figures_follow_the_answer(tmp_path: Path, clock: list[float]) -> None:
    model, _ = fake_model(tmp_path, "One two three.")
    stream = model.stream("Hi")
    before = stream.live()
    assert (before.prompt_done, before.tokens, before.tokens_per_second) == (0, 0, 0.0)
    next(stream)
    first = stream.live()
    assert first.prompt_done == first.prompt_total > 0
    assert first.tokens == 1
    assert first.context_used == first.prompt_total + 1
    assert first.context == model.context
    assert first.active_parameters == first.total_parameters
    assert first.layer_active_fraction == (1.0, 1.0)
    clock[0] += 0.5
    for _ in range(4):
        next(stream)
    assert stream.live().tokens_per_second == pytest.approx(8)
    clock[0] += 2
    next(stream)
    assert stream.live().tokens_per_second == pytest.approx(0.5)
    clock[0] += 1
    next(stream)
    # only what came since about a second ago counts
    assert stream.live().tokens_per_second == pytest.approx(1.0)


def test_live_figures_tell_how_much_of_the_prompt_is_read(tmp_path: Path) -> None:
    model, engine = fake_model(tmp_path)
    stream = model.stream(TEXT)
    seen = []
    engine.before_step = lambda _: seen.append(stream.live().prompt_done)
    collect(stream)
    total = stream.live().prompt_total
    assert seen[:3] == [0, 8, 16]
    assert seen[-1] == total


def test_a_prompt_being_read_is_stopped_at_once(tmp_path: Path) -> None:
    model, engine = fake_model(tmp_path)
    stream = model.stream(TEXT)
    engine.before_step = lambda _: stream.stop()
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    assert engine.interrupted
    # within the part of the prompt that was being read, not after it
    assert stream.live().prompt_done == 0
    engine.before_step = id
    assert str(model.generate(TEXT)) == "Hello there."


def test_a_stopped_answer_keeps_what_was_said(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path)
    stream = model.chat().stream("Hi")
    said = next(stream).text
    stream.stop()
    rest = collect(stream)
    assert (said + rest.text, rest.finish_reason) == ("He", "cancelled")


def test_stopping_after_the_end_does_no_harm(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path)
    stream = model.stream("Hi")
    collect(stream)
    stream.stop()
    model.close()
    stream.stop()


def test_forgotten_turns_stay_forgotten(tmp_path: Path) -> None:
    model, engine = fake_model(tmp_path)
    messages = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello there."},
    ]
    session = model.chat(messages=messages, forgotten=1)
    last = collect(session.stream("Hi", draft=False))
    assert last.dropped_turns == 1
    assert engine.evaluated == last.stats.prompt_tokens + len("Hello there.")
    assert last.stats.prompt_tokens == model.generate("Hi").stats.prompt_tokens


@pytest.fixture
def calibrated(folder: Path) -> Iterator[stem_local.Model]:
    add_ffn_profile(folder, {"tokens_per_second": 50.0})
    with stem_local.load(folder, threads=1, sparsity="off") as model:
        yield model


def test_an_answer_is_steered_while_it_comes(calibrated: stem_local.Model) -> None:
    stream = calibrated.stream(TEXT, max_tokens=60, temperature=0.0)
    for _ in range(10):
        next(stream)
    dense = stream.live()
    assert dense.active_parameters == dense.total_parameters
    stream.steer(0.9)
    for _ in range(10):
        next(stream)
    sparse = stream.live()
    assert sparse.active_parameters < 0.9 * dense.active_parameters
    assert max(sparse.layer_active_fraction) < 0.9
    stats = collect(stream).stats
    assert stats.sparsity.startswith("dense: switched off -> sparse FFN: 90% of the neurons")
    assert sparse.active_parameters < stats.active_parameters < dense.active_parameters


def test_steering_where_it_cannot_be_leaves_the_answer_as_it_was(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path)
    stream = model.stream("Hi")
    next(stream)
    with pytest.raises(UsageError, match="which neurons of"):
        stream.steer(0.5)
    with pytest.raises(UsageError, match="sparsity is"):
        stream.steer("of")  # type: ignore[arg-type]
    rest = collect(stream)
    assert (rest.text, rest.stats.sparsity) == ("ello there.", stream.live().sparsity)


def test_what_several_ways_cost_is_their_mean_by_steps(calibrated: stem_local.Model) -> None:
    cache = calibrated.engine.new_cache(100)
    parts: list[Decoding] = []
    for sparsity, steps in (("off", 6), (0.9, 2)):
        part = Decoding(calibrated, calibrated.choose(sparsity), cache, cache.length)
        parts.append(part)
        if not cache.length:
            part.prefill(calibrated.tokenize("Some."))
        for token in range(10, 10 + steps):
            part.step(token)
    dense, sparse = (part.cost(20) for part in parts)
    both = total_cost(parts, 20)
    assert both.active_parameters == pytest.approx(
        0.75 * dense.active_parameters + 0.25 * sparse.active_parameters, abs=1
    )
    expected = 0.75 * np.array(dense.layer_active_fraction) + 0.25 * np.array(
        sparse.layer_active_fraction
    )
    assert both.layer_active_fraction == pytest.approx(tuple(expected))
    assert both.rules == sparse.rules


def test_figures_are_of_the_steps_since_they_were_last_asked_for(
    calibrated: stem_local.Model,
) -> None:
    cache = calibrated.engine.new_cache(100)
    part = Decoding(calibrated, calibrated.choose(0.9), cache)
    part.prefill(calibrated.tokenize("Some."))
    for token in range(10, 16):
        part.step(token)
    first = part.recent()
    assert part.recent() == first
    before = part.cost(20).active_parameters
    part.step(40)
    latest = part.recent()
    assert latest != first
    after = part.cost(20).active_parameters
    assert after * 7 == pytest.approx(before * 6 + latest[0], abs=7)
