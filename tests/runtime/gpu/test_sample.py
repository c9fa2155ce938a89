"""Sampling on the device: the tokens of the CPU's sampler, draw for draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.kernels.gpu import sample
from stem_runtime.kernels.gpu.sample import FINE, NOT_FINITE, NOTHING_LEFT, DeviceSampler
from stem_runtime.sampling import Sampler, SamplingParams

from ..test_sampling import logit_arrays, oracle, params

few = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORD = (1 << 64) - 1


def seed_of(draw: float) -> int:
    """The seed whose first random number is `draw`: SplitMix64 backwards."""

    def unshift(z: int, by: int) -> int:
        result = z
        for _ in range(64 // by):
            result = z ^ (result >> by)
        return result

    z = int(draw * 2**53) << 11
    z = unshift(z, 31) * pow(0x94D049BB133111EB, -1, 1 << 64) & WORD
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & WORD
    return (unshift(z, 30) - 0x9E3779B97F4A7C15) & WORD


def draws(
    device: str,
    logits: NDArray[np.float32],
    p: SamplingParams,
    recent: list[int],
    numbers: list[float],
) -> list[tuple[int, int]]:
    """Tokens and statuses of texts that begin with these random numbers."""
    batch = len(numbers)
    sampler = DeviceSampler(len(logits), 100, device, batch)
    sampler.begin(p, [recent] * batch)
    seeds = np.array([seed_of(number) for number in numbers], np.uint64)
    sampler.changing[0][:] = torch.from_numpy(seeds.view(np.int64)).to(device)
    sampler.sample(torch.from_numpy(logits).to(device).expand(batch, -1))
    return list(zip(*sampler.found.tolist(), strict=True))


def draw_one(
    device: str, logits: NDArray[np.float32], p: SamplingParams, recent: list[int]
) -> tuple[int, int]:
    """Token and status of a new sampler's first draw."""
    return draws(device, logits, p, recent, [0.5])[0]


def with_seed(p: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(
        p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, p.repeat_last, seed
    )


def test_the_seed_of_a_draw() -> None:
    for draw in (0.0, 0.25, 1 - 2**-53):
        assert Sampler(SamplingParams(temperature=0, seed=seed_of(draw)), 1)._uniform() == draw


@few
@given(logit_arrays(), params, st.lists(st.integers(0, 4999), max_size=5), st.data())
def test_every_token_has_its_share_of_the_draws(
    device: str,
    logits: NDArray[np.float32],
    p: SamplingParams,
    recent: list[int],
    data: st.DataObject,
) -> None:
    recent = [token % len(logits) for token in recent]
    expected, near = oracle(logits, p, recent)
    # within rounding of a limit either side is right
    assume(near > 1e-9)
    ids, shares = Sampler(p, len(logits)).distribution(logits, recent)
    ends = np.cumsum(shares)
    wide = np.flatnonzero(shares > 1e-9)
    places = [wide[0], wide[-1], *data.draw(st.lists(st.sampled_from(wide.tolist()), max_size=3))]
    middles = (ends[places] - shares[places] / 2).tolist()
    found = draws(device, logits, p, recent, [*middles, 0.0, 1 - 2**-53])
    assert found[:-2] == [(ids[place], FINE) for place in places]
    for token, _ in found[-2:]:
        assert token in expected


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0.0), (0, 1.0, 0.02), (0, 0.6, 0.0), (3000, 1.0, 0.0), (40, 0.95, 0.05), (1, 1.0, 0)],
)
def test_a_text_is_that_of_the_cpu(device: str, top_k: int, top_p: float, min_p: float) -> None:
    rng = np.random.default_rng(3)
    # no multiple of anything, and more than one slice of each kernel
    p = SamplingParams(1.0, top_k, top_p, min_p, repetition_penalty=1.5, repeat_last=3, seed=11)
    vocab, history = 9001, [5, 6, 7, 8]
    sampler, reference = DeviceSampler(vocab, 20, device), Sampler(p, vocab)
    assert sampler.begin(p, [history]) == 11
    for step in range(6):
        # the last few are likely again, so that the penalty matters
        logits = rng.standard_normal(vocab).astype(np.float32)
        logits[history[-4:]] = 9 + np.arange(4) / 4
        sampler.sample(torch.from_numpy(logits)[None].to(device))
        token = int(sampler.found[0, 0])
        assert token == reference.sample(logits, history), step
        history.append(token)


@pytest.mark.parametrize("top_k", [1, 60, 100])
def test_the_best_are_found_in_as_many_rounds_as_it_takes(
    device: str, monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    monkeypatch.setattr(sample, "_SLICE", 256)
    logits = np.random.default_rng(top_k).standard_normal(3001).astype(np.float32)
    p = SamplingParams(2.0, top_k, 1.0, 0.0)
    ids, shares = Sampler(p, len(logits)).distribution(logits)
    assert len(ids) == top_k
    places = [0, top_k // 2, top_k - 1]
    middles = [float(shares[:place].sum() + shares[place] / 2) for place in places]
    found = draws(device, logits, p, [], middles)
    assert found == [(ids[place], FINE) for place in places]


def test_no_temperature_takes_the_lowest_of_the_best(device: str) -> None:
    logits = np.zeros(5000, np.float32)
    logits[[777, 4500]] = 2.0
    p = SamplingParams(temperature=0, repetition_penalty=1.5)
    assert draw_one(device, logits, p, []) == (777, FINE)
    assert draw_one(device, logits, p, [777]) == (4500, FINE)
    assert draw_one(device, -logits, p, []) == (0, FINE)
    # below zero a penalty multiplies
    below = np.array([-1.0, -1.25], np.float32)
    assert draw_one(device, below, p, [0]) == (1, FINE)


def test_texts_of_a_batch_have_their_own_draws_and_penalties(device: str) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    p = SamplingParams(top_k=20, repetition_penalty=3.0, seed=(1 << 64) - 1)
    wide = torch.nn.functional.pad(torch.from_numpy(logits), (0, 5), value=torch.nan).to(device)
    recent = [[1], logits[1].argsort()[-5:].tolist(), []]
    sampler = DeviceSampler(300, 10, device, batch=3)
    sampler.begin(p, recent)
    given = torch.tensor([[7, 8, 9], [3, 4, 5], [0, 1, 2]], dtype=torch.int32, device=device)
    sampler.sample(wide, given)
    found = sampler.found[0].tolist()
    # the step that follows reads what was chosen, one place further
    assert given.tolist() == [found, [4, 5, 6], [0, 1, 2]]
    seeds = [(1 << 64) - 1, 0, 1]
    assert found == [
        Sampler(with_seed(p, seed), 300).sample(row, before)
        for seed, row, before in zip(seeds, logits, recent, strict=True)
    ]


def test_what_is_repeated_is_forgotten_by_the_next_text(device: str) -> None:
    p = SamplingParams(temperature=0, repetition_penalty=2.0, repeat_last=1000)
    logits = torch.tensor([[1.0, 1.9, 1.5]], device=device)
    sampler = DeviceSampler(3, 2, device)
    for _ in range(2):
        sampler.begin(p)
        found = []
        for _ in range(4):
            sampler.sample(logits)
            found.append(int(sampler.found[0, 0]))
        assert found == [1, 2, 0, 1]


# minus infinity from itself, by NumPy: the result is not used
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("top_k", [0, 5, 4000])
def test_unusable_logits_give_a_status_and_a_token_that_exists(device: str, top_k: int) -> None:
    p = SamplingParams(top_k=top_k, top_p=0.9, repetition_penalty=1.1)
    logits = np.zeros((5, 5000), np.float32)
    logits[0, 4700], logits[1, 4700], logits[2, 4700] = np.nan, -np.nan, np.inf
    logits[3] = -np.inf
    sampler = DeviceSampler(5000, 10, device, batch=5)
    sampler.begin(p)
    sampler.sample(torch.from_numpy(logits).to(device))
    tokens, statuses = sampler.found.tolist()
    assert tokens[:4] == [0] * 4
    assert statuses == [NOT_FINITE, NOT_FINITE, NOT_FINITE, NOTHING_LEFT, FINE]


def test_settings_with_the_same_launches_share_a_variant(device: str) -> None:
    sampler = DeviceSampler(1000, 10, device)

    def variant(**settings: float) -> int | str:
        sampler.begin(SamplingParams(**settings))  # type: ignore[arg-type]
        return sampler.variant

    assert variant(temperature=0.0) == variant(top_k=1) == 1
    assert variant(top_k=2) == variant(top_k=64, top_p=0.5, temperature=2.0) == 64
    assert variant(top_k=100) == 128
    assert variant(top_k=200) == variant(top_k=999, top_p=0.9) == "top_k"
    assert variant(top_k=0, top_p=0.9) == variant(top_k=1000) == "nucleus"
    assert variant(top_k=0, top_p=1.0, min_p=0.1) == variant(top_k=1000, top_p=1.0) == "all"
