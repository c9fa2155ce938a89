"""What every test stands on: a home of its own, no network by chance, and the real model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from stem_local import learning
from stem_runtime import paths

from .real_model import fetch

USER_CACHE = paths.cache_dir()
"""The user's own cache, as it was before tests move it: compiled kernels and the real model."""

USER_INDEX = os.environ.get("PIP_INDEX_URL")
"""Where the user's pip finds packages, as it was before tests point it nowhere."""

NOWHERE = "http://127.0.0.1:9"

# The Hub's library reads these once, when it is first imported.
os.environ["HF_ENDPOINT"] = NOWHERE
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.pop("HF_TOKEN", None)

# How long an example takes depends on what else the machine does, as in CI, where Hypothesis has
# no deadline of its own; all else stays as it is there or here.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty STEM_HOME for each test; compiled kernels are shared, since they take seconds."""
    folder = tmp_path_factory.mktemp("home")
    kernels = USER_CACHE / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "cache").mkdir()
    # Windows allows links to few; tests are then slower, not different.
    with contextlib.suppress(OSError):
        (folder / "cache" / "kernels").symlink_to(kernels, target_is_directory=True)
    monkeypatch.setenv("STEM_HOME", str(folder))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.delenv("STEM_DEBUG", raising=False)
    return folder


@pytest.fixture(autouse=True)
def unlearned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pulls do not calibrate what they installed; returns what would have."""
    learn = learning.learn
    monkeypatch.setattr(learning, "learn", lambda *_: None)
    return learn


@pytest.fixture(scope="session")
def real_model_gguf() -> Path:
    """SmolLM2-135M-Instruct in Q4_1: the file STEM_TEST_GGUF names, or fetched once and kept."""
    return fetch(USER_CACHE)


@pytest.fixture(scope="session")
def real_model(real_model_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model as a packed folder."""
    from stem_runtime.formats.convert import convert

    folder = tmp_path_factory.mktemp("real") / "smollm2-135m"
    convert(real_model_gguf, folder, name="smollm2-135m", origin={"file": real_model_gguf.name})
    return folder
