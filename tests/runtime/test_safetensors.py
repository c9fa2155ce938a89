"""The Hugging Face folder reader: sharded or not, and what it refuses."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_runtime.errors import FormatError, StemError, UnsupportedError
from stem_runtime.formats.safetensors import read_hf
from stem_runtime.quant.ggml import to_float

from .files import safetensors_bytes, tiny_hf, with_header
from .tiny import tiny_config

U8 = ("U8", [4], bytes(4))
F32 = ("F32", [1, 2], struct.pack("<2f", 1, 2))


def folder_with(tmp_path: Path, weights: bytes) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)  # the old one may still be mapped
    (tmp_path / "model.safetensors").write_bytes(weights)
    return tmp_path


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_floats_of_each_width(tmp_path: Path, dtype: str, shards: int) -> None:
    weights = tiny_hf(tmp_path / "m", tiny_config(), dtype=dtype, shards=shards)
    found = read_hf(tmp_path / "m").tensors
    assert set(found) == set(weights)
    tolerance = {"F32": 0, "F16": 1e-3, "BF16": 1e-2}[dtype]
    for name, values in weights.items():
        assert found[name].shape == values.shape
        read = to_float(found[name].kind, found[name].data).reshape(values.shape)
        assert np.allclose(read, values, rtol=tolerance, atol=1e-6)


def test_files_of_the_safetensors_package(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.array(3, np.float32)}
    data = safetensors.numpy.save(arrays, metadata={"format": "pt"})
    found = read_hf(folder_with(tmp_path, data)).tensors
    assert found["a"].shape == ()
    assert to_float("F32", found["a"].data).item() == 3
    assert to_float("F16", found["b"].data).tolist() == [[0, 1, 2], [3, 4, 5]]


def entry(**changes: Any) -> bytes:
    base = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    return with_header({"t": base | changes}, bytes(8))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"1234567", "too few"),
        (struct.pack("<Q", 2**62) + b"{}", "header claims"),
        (struct.pack("<Q", 3) + b"{}", "header claims"),
        (with_header(b"{", b""), "not valid JSON"),
        (with_header(b"[]", b""), "JSON object"),
        (with_header(b"\xff\xfe\x00", b""), "not valid JSON"),
        (with_header(b"[" * 100_000, b""), "not valid JSON"),
        (with_header(b'{"a":' * 50_000, b""), "not valid JSON"),
        (with_header(b'{"t":' + b"9" * 10_000 + b"}", b""), "not valid JSON"),
        (with_header(b'{"t":1,"t":1}', b""), "twice"),
        (with_header({"t": 1}, b""), "should have dtype"),
        (entry(more=1), "should have dtype"),
        (entry(dtype="F12"), "unknown dtype"),
        (entry(dtype=["F32"]), "unknown dtype"),
        (entry(shape=[-1, -2]), "impossible shape"),
        (entry(shape=[1.0, 2]), "impossible shape"),
        (entry(shape=[True, 2]), "impossible shape"),
        (entry(shape="12"), "impossible shape"),
        (entry(shape=[2**60]), "impossible shape"),
        (entry(shape=[1] * 9), "impossible shape"),
        (entry(data_offsets=[8, 0]), "impossible data_offsets"),
        (entry(data_offsets=[0]), "impossible data_offsets"),
        (entry(data_offsets=[0, 7]), "cannot take 7 bytes"),
        (entry(data_offsets=[8, 16]), "truncated"),
        (entry(shape=[0], data_offsets=[0, 0]), "is empty"),
        (
            with_header(
                {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(8)
            ),
            "overlaps",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    folder = folder_with(tmp_path, data)
    with pytest.raises(FormatError, match=says) as caught:
        read_hf(folder)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="dtype U8; supported are F32, F16, BF16"):
        read_hf(folder_with(tmp_path, safetensors_bytes({"t": U8})))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="only safetensors"):
        read_hf(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/outside.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        "model.bin",
        ".safetensors",
        "a\x00.safetensors",
        7,
    ],
)
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: Any) -> None:
    (tmp_path / "outside.safetensors").write_bytes(safetensors_bytes({"t": F32}))
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(FormatError, match="not a file of this folder"):
        read_hf(folder)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[", "nul"])
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FormatError, match=r"index\.json"):
        read_hf(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(safetensors_bytes({"t": F32}))
    table = {"weight_map": {"t": "a.safetensors", "u": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(FormatError, match="another shard"):
        read_hf(tmp_path)


def test_a_missing_shard_or_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        read_hf(tmp_path)
    tiny_hf(tmp_path / "m", tiny_config(), shards=2)
    (tmp_path / "m" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match="00002-of-00002"):
        read_hf(tmp_path / "m")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.none() | st.integers(0, 500),
)
def test_mutated_files_raise_nothing_but_our_errors(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(safetensors_bytes({f"tensor{i}": F32 for i in range(6)}))
    for place, byte in changes:
        data[place] = byte
    folder = folder_with(tmp_path, bytes(data[:cut]))
    try:
        read_hf(folder)
    except StemError as error:
        assert str(folder) in str(error)
