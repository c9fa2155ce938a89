"""Several tokens in one step: every one comes out as it does alone, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stem_runtime.cache_kinds import CacheKind
from stem_runtime.engine import Engine
from stem_runtime.errors import ContextFullError, UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.kernels import available
from stem_runtime.kv_cache import KVCache

from .looks import make_look
from .test_engine import SHAPES
from .tiny import random_packed, tiny_config

VARIANTS = [name for name, lacks in available().items() if not lacks]
NAMES = ("llama", "odd", "seven", "window", "qwen2", "qwen3", "gemma3", "minicpm")
TOKENS: list[int] = np.random.default_rng(4).integers(0, 301, 75).tolist()
COUNTS = (1, 4, 2, 3, 4, 4, 1, 3, 2, 4, 3, 3)  # 34 tokens, over the ends of blocks of 16
Models = Callable[[str], PackedModel]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made: dict[str, PackedModel] = {}

    def model(name: str) -> PackedModel:
        if name not in made:
            config = tiny_config(**{"vocab_size": 301, **SHAPES[name]})
            made[name] = open_packed(random_packed(tmp_path_factory.mktemp("m") / "m", config, 3))
        return made[name]

    return model


def one_by_one(
    engine: Engine, cache: KVCache, tokens: Sequence[int], look: bool = False
) -> NDArray[np.float32]:
    return np.stack([engine.decode(cache, token, look=look).copy() for token in tokens])


def by_drafts(
    engine: Engine, cache: KVCache, counts: Sequence[int], look: bool = False
) -> NDArray[np.float32]:
    rows = []
    for count in counts:
        part = TOKENS[cache.length : cache.length + count]
        rows.append(engine.decode_draft(cache, part, look=look).copy())
        assert rows[-1].shape == (count, engine.config.vocab_size)
    return np.concatenate(rows)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_drafts_are_read_as_one_token_after_the_other(
    models: Models, name: str, variant: str
) -> None:
    kinds: tuple[CacheKind, ...] = ("fp16", "int8")
    with Engine(models(name), threads=2, kernels=variant) as engine:
        for kind in kinds:
            alone, cache = engine.new_cache(75, kind), engine.new_cache(75, kind)
            want = one_by_one(engine, alone, TOKENS[: sum(COUNTS)])
            assert np.array_equal(by_drafts(engine, cache, COUNTS), want)
            assert cache.tokens == alone.tokens
            assert np.array_equal(cache.keys, alone.keys)
            assert np.array_equal(cache.values, alone.values)


@settings(deadline=None, max_examples=25)
@given(
    start=st.integers(0, 40),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    wrong=st.integers(0, 3),
    threads=st.integers(1, 3),
)
def test_what_is_cut_off_leaves_nothing_behind(
    models: Models, start: int, counts: list[int], wrong: int, threads: int
) -> None:
    with Engine(models("llama"), threads=threads) as engine:
        alone, cache = engine.new_cache(75), engine.new_cache(75)
        want = one_by_one(engine, alone, TOKENS[: start + sum(counts)])[start:]
        for token in TOKENS[:start]:
            engine.decode(cache, token)
        got = []
        for count in counts:
            here = cache.length
            drafted = [*TOKENS[here : here + count], *[7] * wrong][: 1 + engine.draft_tokens]
            got.append(engine.decode_draft(cache, drafted)[:count].copy())
            cache.truncate(here + count)
        assert np.array_equal(np.concatenate(got), want)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("margin", [0.5, math.inf])
def test_each_token_gets_its_own_rows_of_the_head(
    models: Models, variant: str, margin: float
) -> None:
    model = models("seven")
    with Engine(model, threads=2, kernels=variant, head=make_look(model, margin)) as engine:
        alone, cache = engine.new_cache(75), engine.new_cache(75)
        want, rows = [], 0
        for token in TOKENS[: sum(COUNTS)]:
            want.append(engine.decode(alone, token, look=True).copy())
            rows += engine.last_rows
        assert np.isneginf(want).any() == (margin < math.inf)
        got, counted = [], 0
        for count in COUNTS:
            part = TOKENS[cache.length : cache.length + count]
            got.append(engine.decode_draft(cache, part, look=True).copy())
            counted += engine.last_rows
        assert np.array_equal(np.concatenate(got), np.stack(want))
        assert counted == rows


def test_a_prompt_read_at_once_goes_on_with_drafts(models: Models) -> None:
    with Engine(models("qwen3"), threads=2) as engine:
        one, other = engine.new_cache(75), engine.new_cache(75)
        for cache in (one, other):
            engine.prefill(cache, TOKENS[:40])
        want = one_by_one(engine, one, TOKENS[40:48])
        assert np.array_equal(by_drafts(engine, other, (4, 4)), want)


def test_what_does_not_fit_is_refused_and_changes_nothing(models: Models) -> None:
    with Engine(models("llama"), threads=1) as engine:
        cache = engine.new_cache(10)
        engine.prefill(cache, TOKENS[:8])
        with pytest.raises(ContextFullError, match="3 more tokens do not fit"):
            engine.decode_draft(cache, TOKENS[8:11])
        with pytest.raises(UsageError, match="at most 4 tokens, not 5"):
            engine.decode_draft(cache, TOKENS[:5])
        with pytest.raises(UsageError, match="no tokens"):
            engine.decode_draft(cache, [])
        with pytest.raises(UsageError, match="calibrate first"):
            engine.decode_draft(cache, TOKENS[8:10], look=True)
        assert cache.tokens == TOKENS[:8]
        want = one_by_one(engine, cache, TOKENS[8:10])
        cache.truncate(8)
        assert np.array_equal(engine.decode_draft(cache, TOKENS[8:10]), want)
