"""An engine on an int8 KV cache: against the oracle, against itself, beside a float16 one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stem_runtime import workspace
from stem_runtime.cache_kinds import CACHE_KINDS, bytes_per_position
from stem_runtime.engine import Engine
from stem_runtime.errors import UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.kernels import available, oracle
from stem_runtime.kv_cache import KVCache

from .tiny import random_packed, tiny_config

VARIANTS = [name for name, lacks in available().items() if not lacks]
CHUNK = 32
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "odd": {"d_model": 72, "head_dim": 20, "n_heads": 3, "kv_heads": 1, "ffn_dim": 104},
    "wide": {"d_model": 96, "head_dim": 80, "n_heads": 6, "kv_heads": 1, "ffn_dim": 33},
    "window": {"layer_windows": (7, 40), "head_dim": 48},
    "gemma3": {"family": "gemma3", "layer_windows": (5, 0)},
}
TOKENS = np.random.default_rng(9).integers(0, 301, 2 * CHUNK + 7).tolist()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PackedModel]:
    made: dict[str, PackedModel] = {}

    def model(name: str) -> PackedModel:
        if name not in made:
            config = tiny_config(**{"vocab_size": 301, **SHAPES[name]})
            folder = tmp_path_factory.mktemp("model") / "packed"
            made[name] = open_packed(random_packed(folder, config, 3))
        return made[name]

    return model


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_CHUNK", CHUNK)


def assert_near(got: NDArray[np.float32], want: NDArray[np.float32], share: float = 0.02) -> None:
    """Equal but for what rounds to the other integer, `share` of the spread in the mean.

    More is rounded than with a float16 cache: queries, keys and values, too.
    """
    assert got.shape == want.shape
    assert np.sqrt(np.mean((got - want) ** 2)) < share * want.std()


def by_steps(engine: Engine, cache: KVCache, tokens: list[int]) -> NDArray[np.float32]:
    return np.stack([engine.decode(cache, token).copy() for token in tokens])


@pytest.mark.parametrize("name", SHAPES)
def test_engine_equals_the_oracle(models: Callable[[str], PackedModel], name: str) -> None:
    model = models(name)
    want = oracle.forward_packed(model, TOKENS, cache_type=np.int8)
    for variant in VARIANTS:
        with Engine(model, threads=2, kernels=variant) as engine:
            caches = [engine.new_cache(len(TOKENS), "int8") for _ in range(3)]
            assert_near(engine.logits(caches[0], TOKENS), want)
            assert_near(by_steps(engine, caches[1], TOKENS), want)
            begun = engine.logits(caches[2], TOKENS[: CHUNK + 5])
            after = by_steps(engine, caches[2], TOKENS[CHUNK + 5 :])
            assert_near(np.concatenate([begun, after]), want)


def test_the_number_of_threads_does_not_show(models: Callable[[str], PackedModel]) -> None:
    model = models("odd")
    want = oracle.forward_packed(model, TOKENS, cache_type=np.int8)
    for threads in (1, 3, 5):
        with Engine(model, threads=threads) as engine:
            cache = engine.new_cache(len(TOKENS), "int8")
            assert_near(by_steps(engine, cache, TOKENS), want)


def test_an_engine_serves_both_kinds_in_turns(models: Callable[[str], PackedModel]) -> None:
    """Each call does as its cache is, whatever the one before read."""
    model = models("odd")  # whose padding is not the same in both
    with Engine(model, threads=2) as engine:
        caches = {kind: engine.new_cache(len(TOKENS), kind) for kind in CACHE_KINDS}
        alone = {kind: by_steps(engine, caches[kind], TOKENS) for kind in CACHE_KINDS}
        assert not np.array_equal(alone["int8"], alone["fp16"])
        assert_near(alone["int8"], alone["fp16"], 0.05)
        for cache in caches.values():
            cache.truncate(0)
        for at, token in enumerate(TOKENS):
            for kind, cache in caches.items():
                assert np.array_equal(engine.decode(cache, token), alone[kind][at])


def test_a_prefix_is_used_again(models: Callable[[str], PackedModel]) -> None:
    model = models("llama")
    with Engine(model, threads=2) as engine:
        cache = engine.new_cache(len(TOKENS), "int8")
        want = by_steps(engine, cache, TOKENS)[-1]
        for kept in (50, 33, 16, 15, 0):
            cache.truncate(kept)
            engine.prefill(cache, [300 - t for t in TOKENS[kept : kept + 9]])
            cache.truncate(kept)
            by_steps(engine, cache, TOKENS[kept:-1])
            assert np.array_equal(engine.decode(cache, TOKENS[-1]), want)


@pytest.mark.parametrize("head_dim", [16, 48, 64, 80])
def test_an_int8_cache_takes_little_more_than_half(head_dim: int) -> None:
    config = tiny_config(head_dim=head_dim, kv_heads=2)
    cache = KVCache(config, 300, "int8")
    cache.tokens.extend([1] * 256)
    pad = -(-head_dim // 32) * 32
    each = 2 * 2 * pad * 17 // 16  # keys and values, heads, a scale of 2 bytes for 32
    assert bytes_per_position(head_dim, 2, "int8") == each
    assert cache.nbytes == 256 * config.n_layers * each
    assert cache.keys.nbytes == cache.values.nbytes == cache.nbytes


def test_an_engine_makes_the_kind_it_was_told(models: Callable[[str], PackedModel]) -> None:
    for kind in CACHE_KINDS:
        with Engine(models("window"), threads=1, kv_cache=kind) as engine:
            assert engine.new_cache(16).kind == kind
            read = engine.weight_bytes_per_token(200) - engine.weight_bytes_per_token(0)
            assert read == (7 + 40) * bytes_per_position(48, 2, kind)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="kv_cache is fp16 or int8, not 'int4'"):
        KVCache(tiny_config(), 16, "int4")  # type: ignore[arg-type]
