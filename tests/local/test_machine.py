"""Memory that there is and that models need, and the list of all models."""

from __future__ import annotations

from pathlib import Path

import pytest

from stem_local import catalog, library, machine, store
from stem_local.api import DEFAULT_CONTEXT
from stem_runtime.cache_kinds import CACHE_KINDS, CacheKind
from stem_runtime.formats.packed import open_packed
from stem_runtime.kernels import choose
from stem_runtime.kv_cache import KVCache
from stem_runtime.sparsity.profile import FILE

from ..runtime.looks import add_profile
from ..runtime.tiny import tiny_config
from .installing import install


def test_this_machine_has_memory() -> None:
    memory = machine.memory_bytes()
    assert memory is not None
    assert memory > 1 << 28


def test_a_container_has_what_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_posix", lambda: 8 << 30)
    monkeypatch.setattr(machine, "_windows", lambda: 8 << 30)
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUP", (str(tmp_path / "none"), str(limit)))
    for text, memory in (("max\n", 8 << 30), ("1073741824\n", 1 << 30), (f"{1 << 62}\n", 8 << 30)):
        limit.write_text(text)
        assert machine.memory_bytes() == memory
    limit.unlink()
    assert machine.memory_bytes() == 8 << 30
    monkeypatch.setattr(machine, "_posix", lambda: None)
    monkeypatch.setattr(machine, "_windows", lambda: None)
    assert machine.memory_bytes() is None


@pytest.mark.parametrize(
    ("needed", "fit"), [(1, "fits"), (60, "fits"), (61, "tight"), (90, "tight"), (91, "too big")]
)
def test_how_a_model_fits(needed: int, fit: str) -> None:
    assert machine.fit(needed, 100) == fit


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("head_dim", [16, 24, 64])
def test_keys_and_values_are_counted_as_the_cache_lays_them_out(
    head_dim: int, kind: CacheKind
) -> None:
    config = tiny_config(head_dim=head_dim)
    cache = KVCache(config, 256, kind)
    counted = machine.kv_bytes(config.to_dict(), kind) * 256
    assert counted == cache.keys.nbytes + cache.values.nbytes
    assert machine.needed_bytes(1000, counted, 3) == 1000 + 3 * counted + machine.PROGRAM


def test_the_catalogue_knows_what_models_need() -> None:
    for entry in catalog.entries().values():
        # 4.5 bits a weight at least, and 8.5 where all of it is vocabulary
        assert 0.56 < entry.packed / entry.parameters < 1.07
        assert entry.packed < entry.download
        assert entry.kv_bytes % 4 == 0
        assert entry.context >= 2048


def test_installed_models_come_first_and_know_themselves() -> None:
    assert [model.name for model in library.choosable()] == list(catalog.entries())
    for name in ("zebra", "qwen3-0.6b"):
        install(name)
    models = library.choosable()
    names = [model.name for model in models]
    assert names[:3] == ["qwen3-0.6b", "zebra", "smollm2-135m"]
    assert sorted(names[1:]) == sorted({*catalog.entries(), "zebra"} - {"qwen3-0.6b"})
    zebra, smol = models[1], models[2]
    assert (zebra.usable, zebra.entry, zebra.sparsity) == (True, None, None)
    assert zebra.parameters == open_packed(store.resolve("zebra")).parameters
    assert zebra.size > zebra.needed - machine.PROGRAM - 64 * DEFAULT_CONTEXT * 100
    assert (smol.usable, smol.installed, smol.size) == (False, None, 273_000_000)
    assert smol.needed == 97_000_000 + 23_040 * DEFAULT_CONTEXT + machine.PROGRAM
    narrow = library.choosable("int8")[2]
    assert narrow.needed == 97_000_000 + 12_240 * DEFAULT_CONTEXT + machine.PROGRAM


def test_a_context_is_counted_no_longer_than_the_model_allows() -> None:
    entry = catalog.entries()["minicpm-s-1b"]
    model = next(model for model in library.choosable() if model.name == entry.name)
    assert entry.context < DEFAULT_CONTEXT
    assert model.needed == entry.packed + entry.kv_bytes * entry.context + machine.PROGRAM


def test_a_damaged_model_is_listed_as_what_it_was() -> None:
    for name in ("smollm2-360m", "mine"):
        (install(name).folder / "stem.json").write_text("{")
    mine, known = library.choosable()[:2]
    assert (mine.usable, mine.parameters, mine.needed, mine.activation) == (False, 0, 0, "")
    assert (known.usable, known.parameters, known.license) == (False, 361_821_120, "apache-2.0")


def test_what_a_calibrated_model_leaves_out() -> None:
    model = install("tiny")
    assert not library.choosable()[0].calibrated
    assert "not calibrated" in library.decoding(model)
    add_profile(model.folder, kernels=choose().name)
    assert library.choosable()[0].calibrated
    assert library.decoding(model).startswith("sparse head: 32 axes")
    (model.folder / FILE).write_bytes(b"nothing")
    assert "profile.safetensors" in library.decoding(model)
    store.remove("tiny")
    assert library.decoding(model)
