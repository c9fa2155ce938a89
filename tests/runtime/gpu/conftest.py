"""The GPU backend's tests: skipped without torch, interpreted where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import pytest

MISSING = ""
try:
    import torch

    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if DEVICE == "cpu":
        # Triton reads it when a kernel is defined, its own ones when it is imported
        os.environ["TRITON_INTERPRET"] = "1"
    import_module("triton")
except ImportError as error:
    MISSING = f"the GPU backend needs torch and triton: {error}"
    DEVICE = "none"


class SkippedModule(pytest.Module):
    """A test module that is not even imported."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> object:
    return SkippedModule.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE
