"""The sparse output head: its parts, and what the engine computes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stem_runtime.engine import Engine
from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.quant import pack, unpack, unpack_plain
from stem_runtime.quant.rounding import quantize
from stem_runtime.sampling import Sampler, SamplingParams
from stem_runtime.sparsity.head import (
    HeadLook,
    Looks,
    blocks,
    default_limit,
    head_of,
    principal_axes,
    row_major,
)
from stem_runtime.sparsity.trial import TOP, judge, lags, leaders

from .looks import make_look
from .tiny import random_matrix, random_packed, tiny_config

TOKENS = [5, 60, 200, 7, 130, 44, 9, 250]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    config = tiny_config("minicpm", tied_head=request.param, d_model=80, vocab_size=309)
    return open_packed(random_packed(tmp_path_factory.mktemp("head") / "m", config))


def margin(model: PackedModel) -> float:
    """One that keeps some rows and not others."""
    return 1.0 if model.config.tied_head else 0.1


def decoded(model: PackedModel, look: HeadLook | None) -> tuple[np.ndarray, list[int]]:
    """Logits after each token, decoded one by one, and the rows computed for each."""
    with Engine(model, threads=2, head=look) as engine:
        cache = engine.new_cache(len(TOKENS))
        logits, rows = [], []
        for token in TOKENS:
            logits.append(engine.decode(cache, token, look=look is not None).copy())
            rows.append(engine.last_rows)
    return np.array(logits), rows


def test_rows_are_the_head_bit_for_bit() -> None:
    head = random_matrix(np.random.default_rng(3), 4096 + 37, 72, "int8")
    rows = row_major(head)
    assert rows.shape == (4133, 3, 34)
    scales = np.ascontiguousarray(rows[:, :, :2]).view("<f2")[:, :, 0]
    plain = unpack_plain(head)
    assert np.array_equal(scales, plain.scales)
    assert np.array_equal(rows[:, :, 2:].reshape(4133, 96), plain.quants)
    parts = [(start, unpack(block)) for start, block in blocks(head)]
    assert [start for start, _ in parts] == [0, 4096]
    assert np.array_equal(np.concatenate([part for _, part in parts]), unpack(head))


def test_an_int4_head_has_no_rows() -> None:
    head = random_matrix(np.random.default_rng(0), 16, 64, "int4")
    with pytest.raises(ValueError, match="int4"):
        row_major(head)


def test_axes_come_in_the_order_of_what_they_carry() -> None:
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((500, 64)).astype(np.float32) * np.linspace(0.1, 3, 64)
    hidden += 2  # the mean is part of what a logit is a product with
    axes = principal_axes(hidden.astype(np.float32), 32)
    assert np.allclose(axes @ axes.T, np.eye(32), atol=1e-5)
    carried = ((hidden @ axes.T) ** 2).sum(axis=0)
    assert (np.diff(carried) <= 1e-3 * carried[0]).all()


def test_a_look_of_fewer_dimensions_is_a_cut_of_more(model: PackedModel) -> None:
    head = head_of(model)
    axes = principal_axes(
        np.random.default_rng(2).standard_normal((200, 80)).astype(np.float32), 64
    )
    looks, rows = Looks(head, axes), row_major(head)
    few = looks.make(32, 1.0, 16, rows)
    assert np.array_equal(unpack(few.rotation), unpack(pack(quantize(axes[:32], "int8"), "", 80)))
    rotation, look = looks.values
    assert np.array_equal(unpack(few.rotation), rotation[:32])
    assert np.array_equal(unpack(few.look), look[:, :32])
    assert looks.nbytes(32) == few.rotation.nbytes + few.look.nbytes
    assert looks.row_bytes == few.rows[0].nbytes


def test_a_wide_margin_is_the_whole_head(model: PackedModel) -> None:
    whole, rows = decoded(model, None)
    assert rows == [model.config.vocab_size] * len(TOKENS)
    found, rows = decoded(model, make_look(model, margin=1e6))
    assert rows == [model.config.vocab_size] * len(TOKENS)
    assert np.allclose(found, whole, rtol=1e-4, atol=1e-4)


def test_a_small_margin_leaves_rows_out(model: PackedModel) -> None:
    whole, _ = decoded(model, None)
    found, rows = decoded(model, make_look(model, margin(model)))
    kept = np.isfinite(found)
    assert (found[~kept] == -np.inf).all()
    assert rows == kept.sum(axis=1).tolist()
    assert all(0 < count < model.config.vocab_size for count in rows)
    assert np.allclose(found[kept], whole[kept], rtol=1e-4, atol=1e-4)
    sampler = Sampler(SamplingParams(5.0, 0, 1.0, 0.0, seed=1), model.config.vocab_size)
    for logits, row in zip(found, kept, strict=True):
        assert all(row[sampler.sample(logits)] for _ in range(50))


def test_beyond_the_limit_the_whole_head_is_computed(model: PackedModel) -> None:
    whole, _ = decoded(model, None)
    _, rows = decoded(model, make_look(model, margin(model)))
    limit = sorted(rows)[len(rows) // 2]
    found, limited = decoded(model, make_look(model, margin(model), limit))
    vocab = model.config.vocab_size
    assert limited == [count if count <= limit else vocab for count in rows]
    assert limit < max(rows)
    for logits, full, count in zip(found, whole, limited, strict=True):
        assert np.isfinite(logits).sum() == count
        if count == vocab:
            assert np.allclose(logits, full, rtol=1e-4, atol=1e-4)


def test_a_trial_counts_what_the_engine_computes(model: PackedModel) -> None:
    head, wide = head_of(model), margin(model)
    noise = np.random.default_rng(0).standard_normal((head.cols, head.cols))
    looks = Looks(head, np.linalg.qr(noise)[0][:64].astype(np.float32))
    with Engine(model, threads=1) as engine:
        hidden = engine.hidden(engine.new_cache(len(TOKENS)), TOKENS)
    whole, _ = decoded(model, None)
    ids, logits = leaders(head, hidden)
    assert np.array_equal(ids[:, 0], whole.argmax(axis=1))
    assert np.allclose(logits, -np.sort(-whole, axis=1)[:, :TOP], rtol=1e-2, atol=1e-2)
    for dims in (32, 64):
        (outcome,) = judge(looks, head, hidden, {dims: wide}, head.rows)
        rows = decoded(model, looks.make(dims, wide, head.rows, row_major(head)))[1]
        assert outcome.mean_rows == pytest.approx(np.mean(rows), rel=0.05)
        behind = lags(looks, hidden, ids[:, :1], [dims])[dims]
        assert outcome.misses == (behind > wide).sum()
        assert 0 <= outcome.default_mass <= 1
        # a limit that none keeps to: nothing is missed, and everything is read besides the look
        (outcome,) = judge(looks, head, hidden, {dims: wide}, 0)
        assert (outcome.misses, outcome.default_mass, outcome.warm_mass) == (0, 1, 1)
        assert outcome.mean_rows == head.rows
        assert outcome.head_bytes == looks.nbytes(dims) + head.nbytes
        assert outcome.passes


def test_a_look_of_another_model_is_refused(model: PackedModel, tmp_path: Path) -> None:
    other = open_packed(random_packed(tmp_path, tiny_config(vocab_size=400)))
    with pytest.raises(UsageError, match="another shape"):
        Engine(model, threads=1, head=make_look(other, margin=1.0))
    with Engine(model, threads=1) as engine, pytest.raises(UsageError, match="calibrate"):
        engine.decode(engine.new_cache(2), 1, look=True)


def test_the_limit_is_an_eighth() -> None:
    assert [default_limit(vocab) for vocab in (17, 320, 49152)] == [16, 32, 6144]
