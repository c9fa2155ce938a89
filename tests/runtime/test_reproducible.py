"""The same tokens give the same bits, however they are read and by however many threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_runtime.cache_kinds import CACHE_KINDS, CacheKind
from stem_runtime.engine import Engine
from stem_runtime.formats.packed import open_packed
from stem_runtime.kernels import available
from stem_runtime.kernels.cpu import layout as L

from .test_engine import SHAPES
from .tiny import random_packed, tiny_config

VARIANTS = [name for name, lacks in available().items() if not lacks]
LENGTH = 16 * L.ATTENTION_BLOCKS + 60
"""Into the second of the large chunks of positions that attention is done by."""

TOKENS: list[int] = np.random.default_rng(8).integers(0, 301, LENGTH).tolist()


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("name", ["llama", "wide", "window", "gemma3"])
def test_a_prompt_and_decoding_with_any_threads(tmp_path: Path, name: str, kind: CacheKind) -> None:
    shapes = SHAPES | {"wide": {"head_dim": 80, "n_heads": 6, "kv_heads": 1}}
    config = tiny_config(**{"vocab_size": 301, **shapes[name], "context_length": LENGTH})
    model = open_packed(random_packed(tmp_path / "m", config, 3))
    with Engine(model, threads=1, kv_cache=kind) as engine:
        want = engine.logits(engine.new_cache(LENGTH), TOKENS)
    for threads in (1, 3):
        with Engine(model, threads=threads, kv_cache=kind) as engine:
            assert np.array_equal(engine.logits(engine.new_cache(LENGTH), TOKENS), want)
            cache = engine.new_cache(LENGTH)
            for token, row in zip(TOKENS, want, strict=True):
                assert np.array_equal(engine.decode(cache, token), row), (threads, cache.length)


@settings(max_examples=10, deadline=None)
@given(
    cuts=st.lists(st.integers(1, LENGTH - 1), max_size=8, unique=True),
    drafted=st.integers(2, 4),
    variant=st.sampled_from(VARIANTS),
    kind=st.sampled_from(CACHE_KINDS),
)
def test_parts_of_any_length(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    drafted: int,
    variant: str,
    kind: CacheKind,
) -> None:
    """Prompts in pieces, single tokens and drafts in turns, after what was read and cut off."""
    config = tiny_config(**{"vocab_size": 301, **SHAPES["odd"], "context_length": LENGTH})
    model = open_packed(random_packed(tmp_path_factory.mktemp("m") / "m", config, 3))
    with Engine(model, threads=3, kernels=variant, kv_cache=kind) as engine:
        want = engine.logits(engine.new_cache(LENGTH), TOKENS)
        cache = engine.new_cache(LENGTH)
        engine.prefill(cache, [300 - token for token in TOKENS[: LENGTH // 2]])
        cache.truncate(0)
        for turn, end in enumerate([*sorted(cuts), LENGTH]):
            assert np.array_equal(engine.prefill(cache, TOKENS[cache.length : end]), want[end - 1])
            if end + drafted < LENGTH and turn % 2:
                rows = engine.decode_draft(cache, TOKENS[end : end + drafted])
                assert np.array_equal(rows, want[end : end + drafted])
                cache.truncate(end)
