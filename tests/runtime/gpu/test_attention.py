"""Attention on the device against the oracle: any length, window, grouping and division of work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.kernels import oracle
from stem_runtime.kernels.gpu.attention import (
    Partials,
    choose_splits,
    decode_attention,
    prefill_attention,
)

few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 2**32 - 1)


class Case:
    """Queries [rows, n_heads, head_dim] and a cache [2, batch, kv_heads, capacity, head_dim].

    Wherever nothing may be read, there is NaN.
    """

    def __init__(
        self,
        device: str,
        q: NDArray[np.float32],
        cache: NDArray[np.float16],
        lengths: list[int],
    ) -> None:
        self.q, self.cache, self.lengths = q, cache, lengths
        self.tokens = len(q) // len(lengths)
        for sequence, length in enumerate(lengths):
            cache[:, sequence, :, length:] = np.nan
        wide = np.full((len(q), q[0].size + 3), np.nan, np.float32)
        wide[:, :-3] = q.reshape(len(q), -1)
        self.device_q = torch.from_numpy(wide).to(device)[:, :-3]
        self.keys, self.values = torch.from_numpy(cache).to(device)
        self.out = torch.full((len(q), q[0].size + 1), -1.0, device=device)
        starts = [length - self.tokens for length in lengths]
        self.positions = torch.tensor(starts, dtype=torch.int32, device=device)

    @classmethod
    def random(
        cls,
        device: str,
        lengths: list[int],
        tokens: int,
        heads: tuple[int, int],
        head_dim: int,
        seed: int,
    ) -> Case:
        rng = np.random.default_rng(seed)
        kv_heads, group = heads
        shape = (len(lengths) * tokens, kv_heads * group, head_dim)
        q = rng.normal(0, rng.choice([0.1, 1.0, 4.0]), shape).astype(np.float32)
        cache = rng.standard_normal((2, len(lengths), kv_heads, max(lengths) + 3, head_dim))
        return cls(device, q, cache.astype(np.float16), lengths)

    def check(self, scale: float, window: int, tolerance: float = 1e-5) -> None:
        found = self.out.cpu().numpy()
        assert (found[:, -1] == -1.0).all()
        for sequence, length in enumerate(self.lengths):
            rows = slice(sequence * self.tokens, (sequence + 1) * self.tokens)
            k, v = (np.swapaxes(part[sequence, :, :length], 0, 1) for part in self.cache)
            wanted = oracle.attention(self.q[rows], k, v, scale=scale, window=window)
            result = found[rows, :-1].reshape(wanted.shape)
            np.testing.assert_allclose(result, wanted, rtol=tolerance, atol=tolerance)

    def largest_weights(self, scale: float, window: int) -> NDArray[np.float64]:
        """Of one token of each sequence, by head, where all its values are read as one-hot."""
        found = []
        for q, keys, length in zip(self.q, self.cache[0], self.lengths, strict=True):
            k = np.swapaxes(keys[:, :length], 0, 1)
            # values that say which position they belong to turn the output into the weights
            shape = (*k.shape[:2], max(length, q.shape[1]))
            own = np.broadcast_to(np.eye(length, shape[2])[:, None], shape)
            wide = np.zeros((1, len(q), shape[2]))
            wide[0, :, : q.shape[1]] = q
            padded = np.zeros(shape)
            padded[..., : k.shape[2]] = k
            weights = oracle.attention(wide, padded, own, scale=scale, window=window)
            found.append(weights[0].max(axis=1))
        return np.array(found)


@few
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    heads=st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 3, 7, 17])),
    head_dim=st.sampled_from([6, 16, 20, 64]),
    splits=st.sampled_from([1, 2, 3, 5]),
    window=st.sampled_from([0, 1, 7, 64, 100]),
    seed=seeds,
)
@example([1], (1, 1), 16, 5, 0, 0)
@example([64, 65, 129], (1, 2), 256, 3, 0, 0)
def test_one_token_of_each_sequence(
    device: str,
    lengths: list[int],
    heads: tuple[int, int],
    head_dim: int,
    splits: int,
    window: int,
    seed: int,
) -> None:
    case = Case.random(device, lengths, 1, heads, head_dim, seed)
    partials = Partials.empty(len(lengths), heads[0] * heads[1], head_dim, splits, device)
    for buffer in partials:
        buffer.fill_(torch.nan)
    scale = head_dim**-0.5
    sharpness = torch.full(partials.stats.shape[:2], torch.nan, device=device)
    order = np.random.default_rng(seed).permutation(len(lengths))
    slots = torch.tensor(order.argsort(), dtype=torch.int32, device=device)
    decode_attention(
        case.out[:, :-1],
        case.device_q,
        case.keys[order],
        case.values[order],
        case.positions,
        partials,
        scale=scale,
        window=window,
        slots=slots if len(lengths) > 1 else None,
        sharpness=sharpness,
    )
    case.check(scale, window)
    np.testing.assert_allclose(sharpness.cpu(), case.largest_weights(scale, window), rtol=1e-5)


@few
@given(
    batch=st.integers(1, 2),
    earlier=st.integers(0, 150),
    tokens=st.integers(1, 90),
    heads=st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 3])),
    head_dim=st.sampled_from([6, 16, 20, 64]),
    window=st.sampled_from([0, 1, 7, 64, 100]),
    seed=seeds,
)
@example(1, 70, 70, (1, 3), 16, 2, 0)
def test_many_tokens_see_what_came_before_each(
    device: str,
    batch: int,
    earlier: int,
    tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    window: int,
    seed: int,
) -> None:
    lengths = [earlier + 5 * i + tokens for i in range(batch)]
    case = Case.random(device, lengths, tokens, heads, head_dim, seed)
    prefill_attention(
        case.out[:, :-1],
        case.device_q,
        case.keys,
        case.values,
        case.positions,
        scale=0.25,
        window=window,
    )
    case.check(0.25, window)


def test_small_differences_between_large_queries_are_kept(device: str) -> None:
    """In float16 both queries would be 1000; only the difference decides which position wins."""
    q = np.zeros((1, 2, 16), np.float32)
    q[0, :, :2] = [[1000.0, 1000.25], [1000.25, 1000.0]]
    cache = np.random.default_rng(0).standard_normal((2, 1, 1, 3, 16)).astype(np.float16)
    cache[0] = 0
    cache[0, 0, 0, 0, 0] = cache[0, 0, 0, 1, 1] = 8.0
    case = Case(device, q, cache, [2])
    prefill_attention(
        case.out[:, :-1], case.device_q, case.keys, case.values, case.positions, scale=1.0
    )
    case.check(1.0, 0, tolerance=1e-3)
    k, v = (np.swapaxes(part[0, :, :2], 0, 1) for part in case.cache)
    rounded: NDArray[np.float64] = oracle.attention(q.astype(np.float16), k, v, scale=1.0)
    assert np.abs(rounded - case.out[:, :-1].cpu().numpy().reshape(q.shape)).max() > 0.1


@pytest.mark.parametrize(
    ("batch", "kv_heads", "capacity", "processors", "splits"),
    [(1, 8, 8192, 132, 33), (8, 8, 8192, 132, 5), (1, 1, 100, 132, 2), (8, 32, 4096, 60, 1)],
)
def test_positions_are_divided_among_two_programs_a_processor(
    batch: int, kv_heads: int, capacity: int, processors: int, splits: int
) -> None:
    assert choose_splits(batch, kv_heads, 128, capacity, processors) == splits
