"""The two engines of a comparison behind the same four calls, and the files they run on."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from llama_client import Llama

from stem_local import load
from stem_local.calibration import calibrate
from stem_runtime.cache_kinds import CacheKind
from stem_runtime.engine import Engine, KVCache
from stem_runtime.errors import FormatError
from stem_runtime.formats.convert import convert
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.sparsity.profile import FILE as PROFILE

BATCH = 512


class Side(Protocol):
    """An engine with one model open and one cache of `context` tokens. Times in seconds."""

    def open(self, gguf: Path, context: int) -> None: ...

    def prefill(self, tokens: list[int]) -> float:
        """Read `tokens` into an empty cache, up to the logits of the last one."""

    def decode(self, tokens: list[int], at: int) -> float:
        """Take `tokens` one by one after the first `at` of the cache, with the logits of each."""

    def close(self) -> None: ...


class LlamaSide:
    def __init__(self, llama: Llama, threads: int) -> None:
        self._llama = llama
        self._threads = threads

    def open(self, gguf: Path, context: int) -> None:
        self._llama.call(
            "open", model=str(gguf), threads=self._threads, context=context, batch=BATCH
        )

    def prefill(self, tokens: list[int]) -> float:
        return float(self._llama.call("prefill", tokens=tokens)["seconds"])

    def decode(self, tokens: list[int], at: int) -> float:
        return float(self._llama.call("decode", tokens=tokens, at=at)["seconds"])

    def close(self) -> None:
        self._llama.call("close")


class StemSide:
    """Dense, unless it is `CalibratedSide`."""

    engine: Engine
    cache: KVCache
    model: PackedModel
    how: Mapping[str, bool] = MappingProxyType({})

    def __init__(self, threads: int, kv_cache: CacheKind = "fp16") -> None:
        self._threads, self._kv_cache = threads, kv_cache

    def open(self, gguf: Path, context: int) -> None:
        self.model = open_packed(packed_copy(gguf))
        self.engine = Engine(self.model, threads=self._threads, kv_cache=self._kv_cache)
        self.cache = self.engine.new_cache(context)

    def prefill(self, tokens: list[int]) -> float:
        self.cache.truncate(0)
        start = time.perf_counter()
        self.engine.prefill(self.cache, tokens)
        return time.perf_counter() - start

    def decode(self, tokens: list[int], at: int) -> float:
        self.cache.truncate(at)
        start = time.perf_counter()
        for token in tokens:
            self.engine.decode(self.cache, token, **self.how)
        return time.perf_counter() - start

    def close(self) -> None:
        self.engine.close()


class CalibratedSide(StemSide):
    """What answers a user once a model is calibrated, which the first call does."""

    def open(self, gguf: Path, context: int) -> None:
        folder = packed_copy(gguf, ".calibrated")
        if not (folder / PROFILE).exists():
            print(f"Calibrating {folder.name}, which takes minutes.", file=sys.stderr)
            calibrate(folder, threads=self._threads, device="cpu")
        self.loaded = load(folder, threads=self._threads, context=context, device="cpu")
        self.model, self.engine = self.loaded.packed, self.loaded.engine
        self.cache = self.engine.new_cache(context)
        choice = self.loaded.choose()
        if choice.plan is not None:
            self.engine.set_plan(choice.plan)
        self.how = {"look": choice.look, "sparse": choice.plan is not None}
        self.reason = choice.reason

    def close(self) -> None:
        self.loaded.close()


def packed_copy(gguf: Path, suffix: str = ".packed") -> Path:
    """Folder of `gguf` in our format, beside it; made anew when the file or the format is newer."""
    folder = gguf.with_suffix(suffix)
    if not _current(folder, gguf):
        shutil.rmtree(folder, ignore_errors=True)
        convert(gguf, folder, name=gguf.stem, origin={"file": gguf.name})
    return folder


def _current(folder: Path, gguf: Path) -> bool:
    if not folder.exists() or folder.stat().st_mtime < gguf.stat().st_mtime:
        return False
    try:
        open_packed(folder)
    except FormatError:
        return False
    return True
