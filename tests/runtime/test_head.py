"""The sparse output head: its parts, and what the engine computes with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stem_runtime.engine import Engine
from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.kernels.cpu.layout import BINS_PER_NAT, LAG_BINS, NEAR
from stem_runtime.kernels.oracle import OUTLIERS, matmul
from stem_runtime.kernels.oracle_sparse import head_rows
from stem_runtime.quant import pack, unpack, unpack_plain
from stem_runtime.quant.rounding import quantize
from stem_runtime.sampling import Sampler, SamplingParams
from stem_runtime.sparsity import head as head_module
from stem_runtime.sparsity import head_fit
from stem_runtime.sparsity.head import (
    HeadLook,
    Looks,
    blocks,
    head_of,
    limits,
    principal_axes,
    rounded,
    row_major,
)
from stem_runtime.sparsity.trial import (
    TOP,
    WIDEST,
    Seen,
    judge,
    leaders,
    least_margin,
    see,
)

from .looks import make_look
from .tiny import random_matrix, random_packed, tiny_config

TOKENS = [5, 60, 200, 7, 130, 44, 9, 250]
MARGIN = 8.0  # keeps some rows and not others


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    scale = 0.25 if request.param else 2.5  # embeddings are larger than the rows of other heads
    config = tiny_config(
        "minicpm", tied_head=request.param, d_model=80, vocab_size=309, logit_scale=scale
    )
    return open_packed(random_packed(tmp_path_factory.mktemp("head") / "m", config))


def decoded(
    model: PackedModel, look: HeadLook | None, threads: int = 2
) -> tuple[np.ndarray, list[int]]:
    """Logits after each token, decoded one by one, and the rows computed for each."""
    with Engine(model, threads=threads, head=look) as engine:
        cache = engine.new_cache(len(TOKENS))
        logits, rows = [], []
        for token in TOKENS:
            logits.append(engine.decode(cache, token, look=look is not None).copy())
            rows.append(engine.last_rows)
    return np.array(logits), rows


def hidden_of(model: PackedModel) -> np.ndarray:
    """What the head gets after each token."""
    with Engine(model, threads=1) as engine:
        return engine.hidden(engine.new_cache(len(TOKENS)), TOKENS)


def sharp_look(model: PackedModel, margin: float, limit: int | None = None) -> HeadLook:
    """A look along axes that hold the states after TOKENS."""
    head, hidden = head_of(model), hidden_of(model)
    axes = principal_axes(hidden, 32)
    looks = Looks(head, axes, np.sqrt(np.mean((hidden @ axes.T) ** 2, axis=0)))
    return looks.make(32, margin, limit or head.rows, row_major(head))


def logits_of(model: PackedModel, look: HeadLook) -> np.ndarray:
    """Logits after each token, less what the mean row adds to all."""
    assert look.mean is not None
    hidden = hidden_of(model)
    return matmul(head_of(model), hidden, OUTLIERS) - matmul(look.mean, hidden, OUTLIERS)


def marks(model: PackedModel, look: HeadLook) -> tuple[np.ndarray, np.ndarray]:
    """What margins are measured from after each token, [n, 1], and the scores [n, vocab]."""
    scores = matmul(look.look, matmul(look.rotation, hidden_of(model), OUTLIERS))
    best = scores.max(axis=1, keepdims=True)
    if look.mean is None:
        return best, scores
    near = np.where(scores >= best - NEAR, logits_of(model, look), -np.inf)
    return (best + near.max(axis=1, keepdims=True)) / 2, scores


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
    looks, rows = Looks(head, axes, np.ones(64, np.float32)), row_major(head)
    few = looks.make(32, 1.0, 16, rows)
    assert np.array_equal(unpack(few.rotation), unpack(pack(quantize(axes[:32], "int8"), "", 80)))
    rotation, look = looks.values
    assert np.array_equal(unpack(few.rotation), rotation[:32])
    assert np.array_equal(unpack(few.look), look[:, :32])
    assert looks.nbytes(32) == few.rotation.nbytes + few.look.nbytes
    assert looks.row_bytes == few.rows[0].nbytes


def test_a_look_tells_rows_apart_as_the_head_does(model: PackedModel) -> None:
    """Whatever axes are scaled by, and however far from zero the rows are, all of them together."""
    plain = unpack_plain(head_of(model))
    rows = unpack(head_of(model)) + 3 * plain.scales.astype(np.float32).mean() * 127
    head = pack(quantize(rows, "int8"), "head", head_of(model).cols)
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((80, 80)))[0][:64].astype(np.float32)
    spread = np.geomspace(20, 0.2, 64).astype(np.float32)
    rotation, look = Looks(head, axes, spread).values
    states = (rng.standard_normal((50, 64)) * spread).astype(np.float32) @ axes
    scores, logits = states @ rotation.T @ look.T, states @ unpack(head).T
    error = (scores - logits) - (scores - logits).mean(axis=1, keepdims=True)
    assert error.std() < 0.1 * (logits - logits.mean(axis=1, keepdims=True)).std()
    flat = Looks(head, axes, np.zeros(64, np.float32)).values
    assert all(np.isfinite(part).all() for part in flat)


def test_a_wide_margin_is_the_whole_head(model: PackedModel) -> None:
    whole, rows = decoded(model, None)
    assert rows == [model.config.vocab_size] * len(TOKENS)
    found, rows = decoded(model, make_look(model, margin=1e6))
    assert rows == [model.config.vocab_size] * len(TOKENS)
    assert np.allclose(found, whole, rtol=1e-4, atol=1e-4)


def test_a_small_margin_leaves_rows_out(model: PackedModel) -> None:
    whole, _ = decoded(model, None)
    found, rows = decoded(model, sharp_look(model, MARGIN))
    kept = np.isfinite(found)
    assert (found[~kept] == -np.inf).all()
    assert rows == kept.sum(axis=1).tolist()
    assert all(0 < count < model.config.vocab_size for count in rows)
    assert np.allclose(found[kept], whole[kept], rtol=1e-4, atol=1e-4)
    sampler = Sampler(SamplingParams(5.0, 0, 1.0, 0.0, seed=1), model.config.vocab_size)
    for logits, row in zip(found, kept, strict=True):
        assert all(row[sampler.sample(logits)] for _ in range(50))


def test_beyond_the_limit_the_best_are_computed(model: PackedModel) -> None:
    whole, _ = decoded(model, None)
    free, rows = decoded(model, sharp_look(model, MARGIN))
    limit = sorted(rows)[len(rows) // 2]
    found, limited = decoded(model, sharp_look(model, MARGIN, limit))
    assert max(limited) <= limit < max(rows)
    for logits, full, kept, count, before in zip(found, whole, free, limited, rows, strict=True):
        assert count == np.isfinite(logits).sum()
        assert (count == before) == (before <= limit)
        assert not (np.isfinite(logits) & ~np.isfinite(kept)).any()
        assert np.allclose(logits[np.isfinite(logits)], full[np.isfinite(logits)], rtol=1e-4)


def test_the_whole_head_is_computed_where_the_look_tells_nothing(model: PackedModel) -> None:
    whole, _ = decoded(model, None)
    look = make_look(model, MARGIN, 20)
    blind = quantize(np.zeros((look.look.rows, look.dims), np.float32), "int4")
    found, rows = decoded(model, dataclasses.replace(look, look=pack(blind, "head.look")))
    assert rows == [model.config.vocab_size] * len(TOKENS)
    assert np.array_equal(found, whole)


@pytest.mark.parametrize("anchored", [True, False], ids=["mark", "best score"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("wide", "limit"), [(6.0, 309), (8.0, 40), (12.0, 150), (7.0, 7), (1.0, 309)]
)
def test_the_rows_are_the_oracles(
    model: PackedModel, threads: int, wide: float, limit: int, anchored: bool
) -> None:
    look = make_look(model, wide, limit)
    look = look if anchored else dataclasses.replace(look, mean=None)
    mark, scores = marks(model, look)
    apart = logits_of(model, look) if anchored else None
    expected = head_rows(scores, wide, limit, apart)
    found, rows = decoded(model, look, threads)
    # a score next to an edge may round to its other side, and with it all rows of a bin
    lags = (mark - scores) * BINS_PER_NAT
    near = (np.abs(lags - np.rint(lags)) < 1e-4) & (lags > 0)
    clear = [token for token, edge in enumerate(near.any(axis=1)) if not edge]
    assert len(clear) >= len(TOKENS) // 2
    for token in clear:
        assert np.array_equal(np.isfinite(found[token]), expected[token])
    assert rows == np.isfinite(found).sum(axis=1).tolist()


def test_as_many_rows_as_the_limit_are_computed(model: PackedModel) -> None:
    look = sharp_look(model, 2 * MARGIN)
    mark, scores = marks(model, look)
    bins = np.maximum((mark - scores) * BINS_PER_NAT, 0).astype(np.int64)
    exact = []
    for token, row in enumerate(bins):
        limit = int((row < 24).sum())
        _, rows = decoded(model, dataclasses.replace(look, limit=limit))
        exact.append(rows[token] == limit)
        assert rows[token] <= limit
    assert sum(exact) >= len(TOKENS) - 1  # a score next to an edge may round to its other side


def test_a_trial_counts_what_the_engine_computes(model: PackedModel) -> None:
    head = head_of(model)
    noise = np.random.default_rng(0).standard_normal((head.cols, head.cols))
    axes = np.linalg.qr(noise)[0][:64].astype(np.float32)
    looks = Looks(head, axes, np.ones(64, np.float32))
    hidden = hidden_of(model)
    whole, _ = decoded(model, None)
    ids, logits = leaders(head, hidden)
    assert np.array_equal(ids[:, 0], whole.argmax(axis=1))
    assert np.allclose(logits, -np.sort(-whole, axis=1)[:, :TOP], rtol=1e-2, atol=1e-2)
    for dims in (32, 64):
        seen = see(looks, hidden, ids, logits, dims)
        for limit in (head.rows, 40):
            outcome = judge(looks, head, seen, logits, dims, MARGIN, limit)
            found, rows = decoded(model, looks.make(dims, MARGIN, limit, row_major(head)))
            assert outcome.mean_rows == pytest.approx(np.mean(rows), rel=0.1)
            missed = ~np.isfinite(np.take_along_axis(found, ids[:, :1], axis=1))
            assert abs(outcome.misses - missed.sum()) <= 1
            assert 0 <= outcome.default_mass <= 1
        # not even one row may be computed, so all are: nothing is missed, and the look was in vain
        outcome = judge(looks, head, seen, logits, dims, MARGIN, 0)
        assert (outcome.misses, outcome.default_mass, outcome.warm_mass) == (0, 1, 1)
        assert outcome.mean_rows == head.rows
        assert outcome.head_bytes == looks.nbytes(dims) + head.nbytes
        assert outcome.passes


def test_the_margin_is_the_smallest_that_misses_few_enough() -> None:
    """Of 8,000 positions two winners may be missed; nearly all others are in the first bin."""
    counts = np.tile(np.arange(1, LAG_BINS + 1), (8000, 1))
    behind = np.zeros((8000, 1), np.int64)
    behind[:6, 0] = [100, 90, 80, 70, 60, 50]
    logits = np.zeros((8000, 1), np.float32)
    seen = Seen(behind, counts)
    assert least_margin(seen, logits, 1000) == 81 / BINS_PER_NAT
    # with at most 75 rows the three far ones are lost whatever the margin, which is one too many
    assert least_margin(seen, logits, 75) is None
    assert least_margin(seen, logits, 85) == 81 / BINS_PER_NAT
    # more equal rows than the limit: the whole head is computed there, and nothing is lost
    counts[:3] = 1000
    assert least_margin(seen, logits, 75) == 51 / BINS_PER_NAT


def test_a_look_has_a_wider_margin_than_it_was_fitted_to(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_fit, "limits", lambda vocab: [vocab])
    head = head_of(model)
    rng = np.random.default_rng(1)
    plane = rng.standard_normal((8, head.cols))
    noise = (rng.standard_normal((6000, 8)) @ plane).astype(np.float32)
    states = noise[:3000], noise[3000:4000], noise[4000:]
    told: list[tuple[int, int]] = []
    look, outcome = head_fit.fit_look(head, states, lambda *now: told.append(now))
    assert (look.margin, look.limit, look.dims) == (outcome.margin, outcome.limit, outcome.dims)
    assert outcome.positions == 2000
    assert told == [(done, 5) for done in range(6)]
    monkeypatch.setattr(head_fit, "SPARE", 0.0)
    _, bare = head_fit.fit_look(head, states, lambda *_: None)
    assert outcome.margin == min(bare.margin + 1, WIDEST) > bare.margin
    assert outcome.misses <= bare.misses


@pytest.mark.parametrize("rows", [16, 48, 192])
def test_leaders_are_found_block_by_block(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    head, hidden = head_of(model), hidden_of(model)
    scores = rounded(hidden, OUTLIERS) @ unpack(head).T
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    monkeypatch.setattr(head_module, "_BLOCK_ROWS", rows)
    ids, logits = leaders(head, hidden)
    assert np.allclose(logits, np.take_along_axis(scores, expected, axis=1), rtol=1e-5, atol=1e-5)
    assert np.allclose(np.take_along_axis(scores, ids, axis=1), logits, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == TOP for row in ids.tolist())


def test_a_look_of_another_model_is_refused(model: PackedModel, tmp_path: Path) -> None:
    other = open_packed(random_packed(tmp_path, tiny_config(vocab_size=400)))
    with pytest.raises(UsageError, match="another shape"):
        Engine(model, threads=1, head=make_look(other, margin=1.0))
    with Engine(model, threads=1) as engine, pytest.raises(UsageError, match="calibrate"):
        engine.decode(engine.new_cache(2), 1, look=True)


def test_limits_go_down_from_an_eighth() -> None:
    assert limits(49152) == [3072, 6144]
    assert limits(320) == [20, 40]
    assert limits(17) == [16]
