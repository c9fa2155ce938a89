"""The GGUF reader: it agrees with the gguf package on good files and refuses the rest."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_runtime.errors import FormatError, StemError, UnsupportedError
from stem_runtime.formats.gguf import read_gguf

from .files import TYPES, GgufTensor, Typed, encode, gguf_bytes, tiny_gguf
from .tiny import tiny_config

META: dict[str, Any] = {
    "general.architecture": "llama",
    "u32": 7,
    "i64": -3,
    "f64": 0.5,
    "flag": True,
    "u8": Typed(0, b"\xff"),
    "i8": Typed(1, b"\xff"),
    "u16": Typed(2, struct.pack("<H", 65535)),
    "i16": Typed(3, struct.pack("<h", -2)),
    "i32": Typed(5, struct.pack("<i", -5)),
    "f32": Typed(6, struct.pack("<f", 1.5)),
    "u64": Typed(10, struct.pack("<Q", 2**63)),
    "words": ["a", "", "ü"],
    "numbers": [1, 2, 3],
    "flags": [True, False],
    "none": Typed(9, struct.pack("<IQ", 4, 0)),
}
ROWS = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)


def tensor(kind: str = "F32", values: np.ndarray = ROWS, offset: int | None = None) -> GgufTensor:
    return GgufTensor(values.shape, kind, encode(values, kind), offset)


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.unlink(missing_ok=True)  # the old one may still be mapped
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_of_every_type(tmp_path: Path, version: int) -> None:
    metadata = read_gguf(write(tmp_path, gguf_bytes(META, version=version))).metadata
    assert metadata == {
        "general.architecture": "llama",
        "u32": 7,
        "i64": -3,
        "f64": 0.5,
        "flag": True,
        "u8": 255,
        "i8": -1,
        "u16": 65535,
        "i16": -2,
        "i32": -5,
        "f32": 1.5,
        "u64": 2**63,
        "words": ["a", "", "ü"],
        "numbers": [1, 2, 3],
        "flags": [True, False],
        "none": [],
    }
    assert type(metadata["flag"]) is bool
    assert type(metadata["numbers"][0]) is int


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_tensors_agree_with_the_gguf_package(tmp_path: Path, alignment: int) -> None:
    wide = np.linspace(-1, 1, 2 * 512, dtype=np.float32).reshape(2, 512)
    tensors = {kind: tensor(kind, wide if kind.endswith("K") else ROWS) for kind in TYPES}
    tensors["cube"] = tensor("F16", ROWS.reshape(3, 2, 32))
    meta = {"general.architecture": "llama", "general.alignment": alignment}
    path = write(tmp_path, gguf_bytes(meta, tensors, alignment=alignment))
    ours = read_gguf(path).tensors
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert set(ours) == set(theirs) == set(tensors)
    for name, found in theirs.items():
        assert ours[name].kind == found.tensor_type.name
        assert ours[name].shape == tensors[name].shape
        assert ours[name].data.shape[0] == np.prod(tensors[name].shape[:-1])
        assert ours[name].data.tobytes() == np.ascontiguousarray(found.data).tobytes()


def test_a_tensor_without_dimensions_is_a_single_number(tmp_path: Path) -> None:
    scalar = GgufTensor((), "F32", struct.pack("<f", 2.5))
    found = read_gguf(write(tmp_path, gguf_bytes({}, {"s": scalar}))).tensors["s"]
    assert found.shape == ()
    assert found.data.view("<f4") == [[2.5]]


def _many(code: int, count: int) -> Typed:
    return Typed(9, struct.pack("<IQ", code, count))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"GGU", "ends inside magic"),
        (b"PK\x03\x04" + bytes(64), "not a GGUF file"),
        (b"GGUF\x03\x00\x00\x00", "ends inside tensor_count"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "ends inside metadata key"),
        (gguf_bytes([("a", 1), ("a", 2)]), "'a' appears twice"),
        (gguf_bytes({"a": Typed(77, b"")}), "unknown value type 77"),
        (gguf_bytes({"a": Typed(8, struct.pack("<Q", 2**62))}), "string of"),
        (gguf_bytes({"a": Typed(8, struct.pack("<Q", 9000))}), "ends inside metadata 'a'"),
        (gguf_bytes({"a": Typed(8, struct.pack("<Q", 2) + b"\xff\xff")}), "not valid UTF-8"),
        (gguf_bytes({"a": _many(4, 2**62)}), "claims 4611686018427387904 items"),
        (gguf_bytes({"a": _many(0, 2**22 + 1)}), "more than any known model"),
        (gguf_bytes({"a": _many(8, 2**21)}), "ends inside"),
        (gguf_bytes({"general.alignment": 12}), "power of two"),
        (gguf_bytes({"general.alignment": 32.0}), "power of two"),
        (gguf_bytes({"general.alignment": 0}), "power of two"),
        (gguf_bytes({}, [("t", tensor()), ("t", tensor())]), "appears twice"),
        (gguf_bytes({}, {"t": GgufTensor((1,) * 5, "F32", b"")}), "5 dimensions"),
        (gguf_bytes({}, {"t": GgufTensor((0,), "F32", b"")}), "impossible dimensions"),
        (gguf_bytes({}, {"t": GgufTensor((2**63, 2**63), "F32", b"")}), "impossible dimensions"),
        (gguf_bytes({}, {"t": GgufTensor((2, 33), "Q4_0", bytes(99))}), "impossible dimensions"),
        (gguf_bytes({}, {"t": GgufTensor((2, 128), "Q4_K", bytes(999))}), "impossible dimensions"),
        (gguf_bytes({}, {"t": GgufTensor((999,), "F32", bytes(96))}), "truncated"),
        (gguf_bytes({}, {"t": tensor(offset=2**63)}), "truncated"),
        (gguf_bytes({}, {"t": tensor(offset=4)}), "not aligned"),
        (gguf_bytes({}, {"t": tensor(), "u": tensor(offset=32)}), "overlaps"),
        (gguf_bytes({}, {"t": tensor()})[:-1], "truncated"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(FormatError, match=says) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gguf_bytes({}, version=1), "version 1 is not supported; versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (gguf_bytes({"split.count": 3}), "gguf-split --merge"),
        (gguf_bytes({"a": _many(9, 1)}), "array of value type 9"),
        (gguf_bytes({}, {"t": GgufTensor((32,), "IQ2_XXS", bytes(32))}), "supported are F32, F16"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        read_gguf(write(tmp_path, data))


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(FormatError, match="cannot be read"):
        read_gguf(tmp_path)


def test_a_large_claim_over_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    """The file is as large as it says, so only our own bound stands in the way."""
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(gguf_bytes({"a": _many(0, 2**26)})[:-8])
        file.truncate(2**27)
    with pytest.raises(FormatError, match="67108864 items"):
        read_gguf(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    tiny_gguf(path, tiny_config(n_layers=1, d_model=32, ffn_dim=32, vocab_size=260))
    return path.read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 12_000), st.integers(0, 255)), max_size=6),
    st.none() | st.integers(0, 12_000),
)
def test_mutated_files_raise_nothing_but_our_errors(
    tmp_path: Path, whole: bytes, changes: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(whole)
    for place, byte in changes:
        data[place] = byte
    path = write(tmp_path, bytes(data[:cut]))
    try:
        read_gguf(path)
    except StemError as error:
        assert str(path) in str(error)
