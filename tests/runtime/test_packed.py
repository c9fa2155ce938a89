"""The packed folder: what is written opens, and nothing else does."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_runtime.errors import FormatError, StemError, UsageError
from stem_runtime.formats.packed import (
    PackedWriter,
    count_parameters,
    expected_tensors,
    open_packed,
)
from stem_runtime.quant import unpack

from .tiny import random_matrix, random_packed, tiny_config

INFO: dict[str, Any] = {
    "name": "x",
    "quant": "int4",
    "tokenizer": {},
    "source": {},
    "license": None,
}


def split(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of the weights."""
    data = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(folder: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "minicpm"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_opens(tmp_path: Path, family: str, tied: bool) -> None:
    config = tiny_config(family, tied_head=tied, d_model=80, vocab_size=301)
    folder = random_packed(tmp_path / "m", config, kinds={"q": "int4m", "down": "int8"})
    model = open_packed(folder)
    assert model.config == config
    assert model.parameters == count_parameters(config) == model.info["parameters"]
    assert model.matrix("layers.1.q").kind == "int4m"
    assert model.has("head") is not tied
    assert not model.matrix("embed").quants.flags.writeable
    assert not model.vector("norm").flags.writeable
    for name, shape in expected_tensors(config):
        found = model.vector(name) if len(shape) == 1 else unpack(model.matrix(name))
        assert found.shape == shape
        assert found.dtype == np.float32


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_layers_are_a_view(tmp_path: Path, tied: bool) -> None:
    config = tiny_config("gemma3", tied_head=tied)
    model = open_packed(random_packed(tmp_path / "m", config))
    view = model.first_layers(1)
    assert view.config == dataclasses.replace(config, n_layers=1, layer_windows=(8,))
    assert view.parameters == count_parameters(view.config)
    shapes = dict(expected_tensors(view.config))
    assert not view.has("layers.1.q")
    assert not view.has("layers.1.attn_norm")
    nbytes = 0
    for name, shape in shapes.items():
        if len(shape) == 1:
            assert view.vector(name) is model.vector(name)
            nbytes += view.vector(name).nbytes
        else:
            assert view.matrix(name) is model.matrix(name)
            nbytes += view.matrix(name).nbytes
    assert view.nbytes == nbytes < model.nbytes
    assert model.first_layers(2) == model
    for count in (0, 3, -1):
        with pytest.raises(UsageError, match=f"first {count} of 2"):
            model.first_layers(count)
    last = model.matrix("layers.1.down").quants.copy()
    del view
    gc.collect()
    assert np.array_equal(model.matrix("layers.1.down").quants, last)


def test_every_array_is_aligned_and_any_safetensors_reader_can_read_it(tmp_path: Path) -> None:
    folder = random_packed(tmp_path, tiny_config("qwen3", d_model=72, ffn_dim=40))
    model = open_packed(folder)
    loaded = safetensors.numpy.load_file(folder / "model.safetensors")
    assert np.array_equal(loaded["layers.0.q.tiles"], model.matrix("layers.0.q").joined())
    for place, name in enumerate(("gate", "up")):
        matrix = model.matrix(f"layers.0.{name}")
        assert np.array_equal(loaded["layers.0.gate_up.tiles"][:, place], matrix.joined())
    assert np.array_equal(loaded["norm"], model.vector("norm"))
    for name, shape in expected_tensors(model.config):
        if not name.endswith("up"):  # its tiles follow those of gate
            array = model.vector(name) if len(shape) == 1 else model.matrix(name).scales
            assert array.ctypes.data % 64 == 0


def test_stem_json_holds_the_hash_of_the_weights(tmp_path: Path) -> None:
    folder = random_packed(tmp_path, tiny_config())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert open_packed(folder).info["weights_sha256"] == digest


def test_blocks_of_rows_may_come_in_any_order(tmp_path: Path) -> None:
    config = tiny_config(n_layers=1, ffn_dim=70)
    whole = open_packed(random_packed(tmp_path / "a", config, kinds="int4m"))
    with PackedWriter(
        tmp_path / "b", config, {n: "int4m" for n, s in expected_tensors(config) if len(s) == 2}
    ) as writer:
        rng = np.random.default_rng(0)
        for name, shape in expected_tensors(config):
            if len(shape) == 1:
                writer.vector(name, whole.vector(name))
                continue
            for first in reversed(range(0, shape[0], 32)):
                rows = min(32, shape[0] - first)
                writer.matrix(name, random_matrix(rng, rows, shape[1], "int4m"), first)
        writer.finish(INFO)
    matrix = open_packed(tmp_path / "b").matrix("layers.0.gate")
    assert not matrix.scales[-1, :, 70 % 16 :].any()
    assert matrix.scales[:4].all()


def test_nothing_is_a_model_before_it_is_finished(tmp_path: Path) -> None:
    config = tiny_config(n_layers=1)
    kinds = {name: "int8" for name, shape in expected_tensors(config) if len(shape) == 2}
    with PackedWriter(tmp_path, config, kinds) as writer:  # type: ignore[arg-type]
        writer.vector("norm", np.ones(64, np.float32))
        with pytest.raises(ValueError, match="embed was not written whole"):
            writer.finish(INFO)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors.partial"]
    with pytest.raises(FormatError, match=r"stem\.json"):
        open_packed(tmp_path)


def test_the_writer_takes_only_what_was_announced(tmp_path: Path) -> None:
    config = tiny_config(n_layers=1)
    kinds = {name: "int8" for name, shape in expected_tensors(config) if len(shape) == 2}
    rng = np.random.default_rng(0)
    with PackedWriter(tmp_path, config, kinds) as writer:  # type: ignore[arg-type]
        for matrix, first in [
            (random_matrix(rng, 64, 64, "int4"), 0),
            (random_matrix(rng, 64, 32, "int8"), 0),
            (random_matrix(rng, 64, 64, "int8"), 16),
            (random_matrix(rng, 16, 64, "int8"), 8),
            (random_matrix(rng, 8, 64, "int8"), 16),
        ]:
            with pytest.raises(ValueError, match=r"layers\.0\.q"):
                writer.matrix("layers.0.q", matrix, first)
        with pytest.raises(ValueError, match="norm"):
            writer.vector("norm", np.ones(63, np.float32))


Header = dict[str, Any]


def _missing(header: Header) -> None:
    del header["layers.1.gate_up.tiles"]


def _dtype(header: Header) -> None:
    header["layers.1.gate_up.tiles"]["dtype"] = "BF16"


def _shape(header: Header) -> None:
    header["layers.1.gate_up.tiles"]["shape"].reverse()


def _misaligned(header: Header) -> None:
    entry = header["norm"]
    entry["data_offsets"] = [entry["data_offsets"][0] - 4, entry["data_offsets"][1] - 4]


def _extra(header: Header) -> None:
    end = max(entry["data_offsets"][1] for entry in header.values())
    header["surprise"] = {"dtype": "U8", "shape": [0], "data_offsets": [end, end]}


def _overlap(header: Header) -> None:
    header["layers.1.k.tiles"] = header["layers.1.v.tiles"]


@pytest.mark.parametrize("bend", [_missing, _dtype, _shape, _misaligned, _extra, _overlap])
def test_weights_that_do_not_fit_the_config_are_refused(
    tmp_path: Path, bend: Callable[[Header], None]
) -> None:
    folder = random_packed(tmp_path, tiny_config(d_model=80))
    header, data = split(folder)
    for name in [name for name in header if name.startswith("pad.")]:
        del header[name]
    join(folder, header, data)
    open_packed(folder)  # holes are no harm
    bend(header)
    join(folder, header, data)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        open_packed(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layers", 3),
        ("n_layers", 10**12),
        ("d_model", 65),
        ("vocab_size", -1),
        ("kv_heads", 3),
        ("head_dim", 2**40),
        ("activation", "swish"),
        ("norm_eps", float("inf")),
        ("attn_scale", 10**400),
        ("layer_windows", [0]),
        ("rope_inv_freq", [1.0]),
        ("tied_head", False),
        ("qkv_bias", True),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    folder = random_packed(tmp_path, tiny_config())
    info = json.loads((folder / "stem.json").read_text())
    info["config"][field] = value
    (folder / "stem.json").write_text(json.dumps(info))
    with pytest.raises(FormatError):
        open_packed(folder)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"config": 3}, {"tokenizer": None}, {"quant": 4}, {"parameters": "1"}]
)
def test_stem_json_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = random_packed(tmp_path, tiny_config())
    info = json.loads((folder / "stem.json").read_text()) | change
    (folder / "stem.json").write_text(json.dumps(info))
    with pytest.raises(FormatError, match=r"stem\.json"):
        open_packed(folder)


def test_numbers_of_thousands_of_digits_are_refused_in_plain_words(tmp_path: Path) -> None:
    folder = random_packed(tmp_path, tiny_config())
    text = (folder / "stem.json").read_text()
    (folder / "stem.json").write_text(text.replace('"format": 1', f'"format": {"1" * 5000}'))
    with pytest.raises(FormatError, match=r"value has 5000 digits\)\.$"):
        open_packed(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["model.safetensors", "stem.json"]),
    st.lists(st.tuples(st.integers(0, 7000), st.integers(0, 255)), max_size=4),
    st.none() | st.integers(0, 7000),
)
def test_damaged_folders_raise_nothing_but_our_errors(
    tmp_path: Path, name: str, changes: list[tuple[int, int]], cut: int | None
) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        random_packed(folder, tiny_config(), kinds="int4m")
        for file in ("model.safetensors", "stem.json"):
            (folder / file).rename(folder / f"{file}.whole")
    for file in ("model.safetensors", "stem.json"):
        data = bytearray((folder / f"{file}.whole").read_bytes())
        if file == name:
            for place, byte in changes:
                data[place % len(data)] = byte
            data = data[:cut]
        (folder / file).unlink(missing_ok=True)  # the old one may still be mapped
        (folder / file).write_bytes(data)
    try:
        open_packed(folder)
    except StemError as error:
        assert str(folder) in str(error)
