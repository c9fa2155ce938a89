"""Sampling against a slow NumPy definition of every transform, and stop strings against theirs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.errors import StemError, UsageError
from stem_runtime.sampling import Sampler, SamplingParams, logprobs
from stem_runtime.text import MAX_STOP_CHARS, MAX_STOPS, StopMatcher


def oracle(
    logits: NDArray[np.float32], p: SamplingParams, recent: list[int]
) -> tuple[dict[int, float], float]:
    """Probabilities of the tokens that may be sampled, and how near any was to being cut."""
    x = logits.astype(np.float64)
    for token in set(recent[-p.repeat_last :] if p.repeat_last else []):
        penalized = logits[token] / np.float32(p.repetition_penalty)
        if logits[token] <= 0:
            penalized = logits[token] * np.float32(p.repetition_penalty)
        x[token] = penalized
    order = np.lexsort((np.arange(len(x)), -x))
    weights = np.exp((x[order] - x[order[0]]) / p.temperature)
    if p.top_k:
        order, weights = order[: p.top_k], weights[: p.top_k]
    shares = np.cumsum(weights) / weights.sum()
    before = np.concatenate([[0.0], shares[:-1]])
    kept = weights > 1e-300
    near = 1.0
    if p.top_p < 1:
        kept &= before < p.top_p
        near = min(near, float(np.abs(before - p.top_p).min()))
    if p.min_p > 0:
        kept &= weights >= p.min_p
        near = min(near, float(np.abs(weights[1:] - p.min_p).min(initial=1.0)))
    mass = weights[kept].sum()
    return dict(zip(order[kept].tolist(), (weights[kept] / mass).tolist(), strict=True)), near


@st.composite
def logit_arrays(draw: st.DrawFn) -> NDArray[np.float32]:
    size = draw(st.sampled_from([1, 2, 3, 17, 63, 64, 65, 200, 1000, 5000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_normal(size) * draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]))
    if draw(st.booleans()):
        x = np.round(x * 2) / 2  # many ties, and zeros of both signs
    x = x.astype(np.float32)
    if draw(st.booleans()):
        x[rng.random(size) < draw(st.sampled_from([0.1, 0.9]))] = -np.inf
        x[int(rng.integers(size))] = 1.0
    return x


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.01, 0.3, 0.7, 1.0, 2.0, 50.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 100, 4000, 10_000]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    repeat_last=st.sampled_from([0, 2, 64]),
    seed=st.just(1),
)


@settings(max_examples=150, deadline=None)
@given(logit_arrays(), params, st.lists(st.integers(0, 4999), max_size=5))
def test_the_same_tokens_with_the_same_probabilities_as_the_definition(
    logits: NDArray[np.float32], p: SamplingParams, recent: list[int]
) -> None:
    recent = [token % len(logits) for token in recent]
    expected, near = oracle(logits, p, recent)
    # within rounding of a limit either side is right
    assume(near > 1e-9)
    before = logits.copy()
    ids, probabilities = Sampler(p, len(logits)).distribution(logits, recent)
    assert set(ids.tolist()) == set(expected)
    wanted = [expected[token] for token in ids.tolist()]
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-9, atol=1e-15)
    assert Sampler(p, len(logits)).sample(logits, recent) in expected
    np.testing.assert_array_equal(logits, before)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    p = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=7)
    sampler = Sampler(p, 4)
    counts = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / 20_000, [0.5, 0.25, 0.15, 0.1], atol=0.015)


def test_one_seed_one_text_and_a_new_seed_each_time_without() -> None:
    logits = (np.arange(500) * 7919 % 1000 / 100).astype(np.float32)

    def tokens(sampler: Sampler) -> list[int]:
        return [sampler.sample(logits) for _ in range(30)]

    fixed = SamplingParams(seed=42)
    first = tokens(Sampler(fixed, 500))
    assert first == tokens(Sampler(fixed, 500))
    assert first[:8] == [408, 210, 457, 99, 321, 260, 494, 371]
    one, other = Sampler(SamplingParams(), 500), Sampler(SamplingParams(), 500)
    assert one.seed != other.seed
    assert tokens(one) == tokens(Sampler(SamplingParams(seed=one.seed), 500))


def test_random_numbers_are_those_of_splitmix64() -> None:
    # the first outputs for seed 1234567 in Vigna's reference program
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    sampler = Sampler(SamplingParams(temperature=0, seed=1234567), 1)
    assert [sampler._uniform() for _ in reference] == [(x >> 11) * 2.0**-53 for x in reference]


@settings(max_examples=30, deadline=None)
@given(logit_arrays())
def test_no_temperature_takes_the_best_and_little_nearly_so(logits: NDArray[np.float32]) -> None:
    best = int(logits.argmax())
    assert Sampler(SamplingParams(temperature=0), len(logits)).sample(logits) == best
    tiny = SamplingParams(temperature=1e-300, top_k=0, top_p=1.0, min_p=0.0)
    assert logits[Sampler(tiny, len(logits)).sample(logits)] == logits[best]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits_are_reported(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), 100)
    for bad in (np.nan, -np.nan, np.inf):
        logits = np.zeros(100, np.float32)
        logits[70] = bad
        with pytest.raises(StemError, match="not finite"):
            sampler.sample(logits)
    with pytest.raises(StemError, match="excluded"):
        sampler.sample(np.full(100, -np.inf, np.float32))
    for wrong in (np.zeros(99, np.float32), np.zeros(100)):
        with pytest.raises(UsageError, match="float32"):
            sampler.sample(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", 1.5),
        ("temperature", np.float32("nan")),
        ("repetition_penalty", 0.05),
        ("repeat_last", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", np.True_),
        ("seed", np.float64(1)),
    ],
)
def test_values_out_of_range_name_the_argument(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})


@settings(max_examples=40, deadline=None)
@given(logit_arrays(), st.integers(0, 10))
def test_logprobs_are_the_log_softmax(logits: NDArray[np.float32], top: int) -> None:
    x = logits.astype(np.float64)
    expected = x - np.log(np.sum(np.exp(x - x.max()))) - x.max()
    chosen, best = logprobs(logits, 0, top)
    assert chosen == pytest.approx(expected[0])
    order = np.lexsort((np.arange(len(x)), -x))[: min(top, len(x))]
    values = [value for _, value in best]
    np.testing.assert_allclose(values, expected[order], rtol=1e-12, atol=1e-14)
    assert all(value == pytest.approx(expected[token]) for token, value in best)


def test_logprobs_of_unusable_logits() -> None:
    with pytest.raises(StemError, match="not finite"):
        logprobs(np.array([0, np.nan], np.float32), 0)


def test_importing_sampling_leaves_numba_alone() -> None:
    code = "import sys, stem_runtime.sampling; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def stopped_text(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: cut at the stop that is complete first, at its earliest beginning."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


short_text = st.text("ab\n", max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(short_text, max_size=10),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_stops_do_not_depend_on_how_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown, stopped = "", False
    expected, expected_stop = stopped_text("".join(pieces), stops)
    seen = ""
    for piece in pieces:
        seen += piece
        text, stopped = matcher.push(piece)
        shown += text
        assert expected.startswith(shown)
        if not stopped:
            # nothing is held back but what may still become a stop
            held = seen[len(shown) :]
            assert not held or any(stop.startswith(held) for stop in stops)
    shown += matcher.flush()
    assert (shown, stopped) == (expected, expected_stop)
    assert not stopped or matcher.push("more") == ("", True)


@pytest.mark.parametrize(
    "stops", ["ab", [""], ["x" * (MAX_STOP_CHARS + 1)], ["x"] * (MAX_STOPS + 1), [3]]
)
def test_unusable_stops_are_refused(stops: Any) -> None:
    with pytest.raises(UsageError, match="stop"):
        StopMatcher(stops)
