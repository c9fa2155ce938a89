"""Rotary embedding and the cache on the device, against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_runtime.kernels import oracle
from stem_runtime.kernels.gpu.rope import rope_store, rope_table

few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@few
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 4),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 16, 20, 64]),
    norms=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_queries_turn_in_place_and_keys_and_values_reach_the_cache(
    device: str,
    batch: int,
    tokens: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    norms: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    n_heads, capacity, rows = kv_heads * group, 13, batch * tokens
    inv_freq = 10_000.0 ** -(np.arange(head_dim // 2) * 2 / head_dim)
    wide = rng.standard_normal((rows, (n_heads + 2 * kv_heads) * head_dim + 5)).astype(np.float32)
    parts = np.split(wide, np.cumsum([n_heads, kv_heads, kv_heads]) * head_dim, axis=1)[:3]
    q, k, v = (part.reshape(rows, -1, head_dim) for part in parts)
    weights = rng.uniform(0.5, 2, (2, head_dim)).astype(np.float32) if norms else None
    positions = rng.integers(0, capacity - tokens + 1, batch)

    on_device = torch.from_numpy(wide.copy()).to(device)
    cut = np.cumsum([0, n_heads, kv_heads, kv_heads]) * head_dim
    views = [on_device[:, cut[i] : cut[i + 1]] for i in range(3)]
    shape = (batch, kv_heads, capacity, head_dim)
    keys, values = (torch.full(shape, 7.0, dtype=torch.float16, device=device) for _ in range(2))
    slots = torch.arange(batch, dtype=torch.int32, device=device).flip(0)
    given_norms = [None, None] if weights is None else torch.from_numpy(weights).to(device)
    rope_store(
        *views,
        keys,
        values,
        torch.tensor(positions, dtype=torch.int32, device=device),
        rope_table(inv_freq.tolist(), capacity, device),
        slots=slots if batch > 1 else None,
        q_norm=given_norms[0],
        k_norm=given_norms[1],
        eps=1e-5,
    )

    if weights is not None:
        q, k = (oracle.rms_norm(x, w, 1e-5) for x, w in zip((q, k), weights, strict=True))
    at = (positions[:, None] + np.arange(tokens)).ravel()
    expected = oracle.rope(q, at.tolist(), inv_freq.tolist()).reshape(rows, -1)
    np.testing.assert_allclose(views[0].cpu(), expected, rtol=2e-6, atol=2e-5)
    kept = on_device.cpu().numpy()
    np.testing.assert_array_equal(kept[:, cut[1] :], wide[:, cut[1] :])
    rotated = oracle.rope(k, at.tolist(), inv_freq.tolist())
    for cache, new in ((keys, rotated), (values, v)):
        wanted = np.full(shape, 7.0)
        for row, position in enumerate(at):
            wanted[batch - 1 - row // tokens, :, position] = new[row]
        np.testing.assert_allclose(cache.cpu(), wanted, rtol=1e-3, atol=2e-5)
    exact = values.cpu().numpy()[-1, :, positions[0]]
    np.testing.assert_array_equal(exact, v[0].astype(np.float16))


def test_the_table_is_that_of_the_cpu_engine(device: str) -> None:
    table = rope_table((1.0, 0.01), 5, device).cpu().numpy()
    angles = np.outer(np.arange(5, dtype=np.float32), np.array([1.0, 0.01], np.float32))
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[:, 0], np.cos(angles))
    np.testing.assert_array_equal(table[:, 1], np.sin(angles))


def test_two_tokens_do_not_share_a_place(device: str) -> None:
    """Positions go by sequence: the second token of the first comes before the second sequence."""
    rows, head_dim = 4, 2
    v = torch.arange(1.0, 1 + rows * head_dim, device=device).reshape(rows, head_dim)
    keys, values = (torch.zeros((2, 1, 4, 2), dtype=torch.float16, device=device) for _ in range(2))
    positions = torch.tensor([1, 2], dtype=torch.int32, device=device)
    table = rope_table((1.0,), 4, device)
    rope_store(v.clone(), v.clone(), v, keys, values, positions, table)
    assert values[0, 0].tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]
    assert values[1, 0].tolist() == [[0, 0], [0, 0], [5, 6], [7, 8]]
    assert pytest.approx(keys[0, 0, 1].tolist(), abs=2e-3) == [
        np.cos(1) - 2 * np.sin(1),
        2 * np.cos(1) + np.sin(1),
    ]
