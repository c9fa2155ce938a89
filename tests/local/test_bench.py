from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stem_local import api, benchmark
from stem_local.commands import bench
from stem_local.model import Model
from stem_runtime import bandwidth
from stem_runtime.errors import StemError
from tests.local.fakes import FakeEngine, fake_model
from tests.runtime.tiny import random_packed, tiny_config


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, FakeEngine]:
    model, engine = fake_model(tmp_path, reply=None)
    monkeypatch.setattr(api, "load", lambda *_, **__: model)
    monkeypatch.setattr(bandwidth, "MIN_BUFFER", 1 << 20)
    return model, engine


def bench_json(*args: str) -> dict[str, Any]:
    result = CliRunner().invoke(bench.command, ["tiny", "--json", *args])
    assert result.exception is None
    report = json.loads(result.stdout)
    assert isinstance(report, dict)
    return report


def test_json(made: tuple[Model, FakeEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "time_starts", lambda *_: {"cold": 3.0, "warm": 0.5})
    report = bench_json("--contexts=16,32", "--tokens=4", "--repeats=2")
    assert report["model"]["name"] == "tiny"
    # the tiny model's context is 256, so that 512 tokens cannot be read into it
    assert [row["tokens"] for row in report["prefill"]] == [128]
    assert [row["context"] for row in report["decode"]] == [16, 32]
    for row in report["decode"]:
        bytes_each = 1000 + row["context"] + 2
        assert row["gb_per_second"] == pytest.approx(row["tokens_per_second"] * bytes_each / 1e9)
        share = row["gb_per_second"] / report["memory_gb_per_second"]
        assert row["bandwidth_share"] == pytest.approx(share)
    assert report["peak_memory_bytes"] > 10e6
    assert report["first_token_seconds"] == {"cold": 3.0, "warm": 0.5}
    assert made[1].closed


def test_the_table_has_every_figure(made: tuple[Model, FakeEngine]) -> None:
    del made
    args = ["tiny", "--contexts=16,32", "--tokens=4", "--repeats=1", "--no-start"]
    result = CliRunner().invoke(bench.command, args)
    words = ("prefill     128 tokens", "at     16 ctx", "at     32 ctx", "GB/s", "peak memory")
    for word in words:
        assert word in result.stdout
    assert "first token" not in result.stdout
    report = {
        "model": {"name": "m", "parameters": 1e6, "quant": "q4_0", "nbytes": 1e6}
        | {"kernels": "k", "threads": 2, "kv_cache": "int8"},
        "prefill": [],
        "decode": [],
        "sparsity": "dense: why",
        "memory_gb_per_second": 10.0,
        "peak_memory_bytes": None,
        "first_token_seconds": {"cold": 3.0, "warm": 0.5},
    }
    assert "first token, cold            3.00 s" in bench.speeds(report)
    assert "peak" not in bench.speeds(report)
    assert "int8 KV cache" in bench.speeds(report)


@pytest.mark.parametrize("contexts", ["", "a", "0", "1,,2", "300"])
def test_bad_contexts_are_refused(made: tuple[Model, FakeEngine], contexts: str) -> None:
    del made
    result = CliRunner().invoke(bench.command, ["tiny", f"--contexts={contexts}", "--no-start"])
    assert "contexts" in str(result.exception) or "context of 256" in str(result.exception)


def test_fresh_starts_are_timed_cold_and_warm(tmp_path: Path) -> None:
    folder = random_packed(tmp_path / "tiny", tiny_config())
    times = benchmark.time_starts(folder, 1, None)
    assert set(times) == {"cold", "warm"}
    assert min(times.values()) > 0


def test_a_start_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(StemError, match=r"exit code 10: error: .*nothing"):
        benchmark.first_token(tmp_path / "nothing", [], str(tmp_path))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bandwidth_reads_the_whole_buffer(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(bandwidth, "MIN_BUFFER", 1 << 20)
    monkeypatch.setattr(bandwidth, "MAX_BUFFER", 4 << 20)
    for asked, used in ((0, 1 << 20), (2 << 20, 2 << 20), (1 << 40, 4 << 20)):
        found = bandwidth.measure(threads, asked, read_bytes=0)
        assert (found.buffer_bytes, found.threads) == (used, threads)
        assert np.isfinite(found.gb_per_second) and found.gb_per_second > 0


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 5000])
def test_reading_memory_adds_every_word(size: int) -> None:
    words = np.random.default_rng(size).integers(-(2**62), 2**62, size + 1)[1:]
    assert bandwidth.read_sum(words) == np.add.reduce(words)


def test_peak_memory_is_in_bytes() -> None:
    held = np.ones(32 << 20, np.uint8)
    peak = benchmark.peak_memory()
    assert sys.platform == "win32" or peak is not None
    assert peak is None or peak > held.nbytes
