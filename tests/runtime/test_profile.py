"""The profile file: what is written is read, and nothing else is."""

from __future__ import annotations

import dataclasses
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

from stem_runtime.errors import FormatError, StemError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.sparsity import container
from stem_runtime.sparsity.profile import (
    FILE,
    HeadProfile,
    Profile,
    read_profile,
    write_profile,
)
from stem_runtime.verify import verify

from .looks import SETTING, add_profile
from .tiny import random_packed, tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_packed(tmp_path / "m", tiny_config())


def read(folder: Path) -> Profile | None:
    model: PackedModel = open_packed(folder)
    return read_profile(folder, model.config, model.info["weights_sha256"])


def split(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / FILE).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    return header, data[8 + size :]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the table of settings, and leave the rest as it is."""
    arrays = safetensors.numpy.load_file(folder / FILE)
    table = json.loads(arrays["profile.json"].tobytes())
    change(table)
    arrays["profile.json"] = np.frombuffer(json.dumps(table).encode(), np.uint8)
    kept = {name: array for name, array in arrays.items() if not name.startswith("pad.")}
    parts = container.laid_out(kept)
    (folder / FILE).write_bytes(b"".join(bytes(part) for part in parts))


def test_what_is_written_is_read(folder: Path) -> None:
    assert read(folder) is None
    written = add_profile(folder, misses=2)
    found = read(folder)
    assert found is not None
    assert found.head is not None
    assert written.head is not None
    assert found.head.setting == written.head.setting
    assert found.head.setting.miss_rate == 0.001
    for name in ("rotation", "look", "mean"):
        left, right = getattr(found.head.look, name), getattr(written.head.look, name)
        assert np.array_equal(left.joined(), right.joined())
        assert not left.quants.flags.writeable
    assert np.array_equal(found.head.look.rows, written.head.look.rows)
    header, _ = split(folder)
    base = (folder / FILE).stat().st_size - max(e["data_offsets"][1] for e in header.values())
    starts = [e["data_offsets"][0] for n, e in header.items() if not n.startswith("pad.")]
    assert all((base + start) % 64 == 0 for start in starts)
    assert [path.name for path in folder.glob("profile*")] == [FILE]


def test_looks_of_before_they_had_a_mean_row_are_read(folder: Path) -> None:
    written = add_profile(folder)
    assert written.head is not None
    look = dataclasses.replace(written.head.look, mean=None)
    older = dataclasses.replace(written, head=dataclasses.replace(written.head, look=look))
    write_profile(folder, older)
    found = read(folder)
    assert found is not None
    assert found.head is not None
    assert found.head.look.mean is None


def test_one_in_use_can_be_replaced_on_windows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_MAPS", False)
    written = add_profile(folder).head
    found = read(folder)
    # what Windows forbids, and what a map would show
    with (folder / FILE).open("r+b") as file:
        file.write(bytes((folder / FILE).stat().st_size))
    assert found is not None
    assert found.head is not None
    assert written is not None
    assert np.array_equal(found.head.look.rows, written.look.rows)
    assert found.head.look.rows.ctypes.data % container.ALIGNMENT == 0
    assert not found.head.look.rows.flags.writeable


def test_a_profile_of_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    add_profile(folder)
    other = random_packed(tmp_path / "other", tiny_config(), seed=1)
    (other / FILE).write_bytes((folder / FILE).read_bytes())
    with pytest.raises(FormatError, match="other weights"):
        read(other)


def test_a_write_that_fails_leaves_the_old_profile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_profile(folder, misses=1)

    def fails(number: int) -> None:
        raise OSError(number, "no space")

    monkeypatch.setattr(container.os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        add_profile(folder, misses=0)
    found = read(folder)
    assert found is not None
    assert found.head is not None
    assert found.head.setting.misses == 1
    assert [path.name for path in folder.glob("profile*")] == [FILE]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dims", 33),
        ("dims", 0),
        ("dims", 96),
        ("dims", 64),
        ("dims", True),
        ("margin", float("nan")),
        ("margin", -1),
        ("margin", "wide"),
        ("limit", 0),
        ("limit", 321),
        ("limit", 10**30),
        ("positions", 0),
        ("mean_rows", float("inf")),
        ("kernels", 7),
        ("surprise", 1),
    ],
)
def test_settings_that_cannot_be_are_refused(folder: Path, name: str, value: object) -> None:
    add_profile(folder)
    rewrite(folder, lambda table: table["head"].update({name: value}))
    with pytest.raises(FormatError, match=r"profile\.safetensors"):
        read(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.pop("head"),
        lambda table: table.update(format=1),
        lambda table: table.update(weights_sha256=None),
        lambda table: table["head"].pop("margin"),
    ],
)
def test_a_table_without_its_fields_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    add_profile(folder)
    rewrite(folder, change)
    with pytest.raises(FormatError):
        read(folder)


def flip(path: Path, place: int) -> None:
    """Turn a bit of a byte around, as a failing disk does."""
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("profile.json", False),
        ("head.rotation.tiles", False),
        ("head.look.tiles", False),
        ("head.mean.tiles", False),
        ("head.rows", True),
    ],
)
def test_flipped_bits_are_noticed(folder: Path, name: str, copied: bool) -> None:
    """Those of what was learned at once, those of copied weights where all is to be read."""
    add_profile(folder)
    model = open_packed(folder)
    header, data = split(folder)
    first, last = header[name]["data_offsets"]
    place = (first + last) // 2
    if name == "profile.json":
        place = data.index(b'"positions": ') + 13  # a digit that becomes another one
    flip(folder / FILE, (folder / FILE).stat().st_size - len(data) + place)
    if copied:
        assert read(folder) is not None
    else:
        with pytest.raises(FormatError, match=f"tensor '{name}' are not those that were written"):
            read(folder)
    with pytest.raises(FormatError, match=rf"{name}.*calibrate the model again\.$"):
        verify(model, lambda *_: None)


def test_a_profile_without_checksums_is_refused(folder: Path) -> None:
    add_profile(folder)
    kept = safetensors.numpy.load_file(folder / FILE)
    safetensors.numpy.save_file(kept, folder / FILE)
    with pytest.raises(FormatError, match="calibrate the model again"):
        read(folder)


def test_all_files_are_verified(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    model = open_packed(folder)
    assert verify(model, lambda *step: told.append(step)) == ["model.safetensors"]
    size = (folder / "model.safetensors").stat().st_size
    assert told[-1] == (size, size)
    add_profile(folder)
    (folder / "tokenizer.json").write_bytes(b"{}")
    model.info["tokenizer_sha256"] = hashlib.sha256(b"{}").hexdigest()
    assert verify(model, lambda *_: None) == ["model.safetensors", "tokenizer.json", FILE]
    for name in ("tokenizer.json", "model.safetensors"):
        flip(folder / name, -1)
        with pytest.raises(FormatError, match=rf"{name}: .* and convert the model again\.$"):
            verify(model, lambda *_: None)
    model.info["source"]["spec"] = "hf:a/b"
    with pytest.raises(FormatError, match=r"stem-local pull hf:a/b --name .* --force"):
        verify(model, lambda *_: None)


def test_scales_that_are_no_numbers_are_refused(folder: Path) -> None:
    model = open_packed(folder)
    profile = add_profile(folder)
    assert profile.head is not None
    whole = profile.head.look
    tiles = whole.look.joined()
    tiles[3, 0, :2] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)
    scales = tiles[:, :, :32].view("<f2")
    look = dataclasses.replace(whole, look=dataclasses.replace(whole.look, scales=scales))
    head = HeadProfile(SETTING, look)
    write_profile(folder, Profile(model.info["weights_sha256"], head, None))
    with pytest.raises(FormatError, match="no numbers"):
        read(folder)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_is_refused_or_harmless(folder: Path, data: st.DataObject) -> None:
    if not (folder / FILE).exists():
        add_profile(folder)
        (folder / "whole").write_bytes((folder / FILE).read_bytes())
    whole = (folder / "whole").read_bytes()
    if data.draw(st.booleans(), "cut"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1), "length")]
    else:
        place = data.draw(st.integers(0, 1400), "place")
        more = data.draw(st.binary(min_size=1, max_size=8), "bytes")
        damaged = whole[:place] + more + whole[place + len(more) :]
    (folder / FILE).write_bytes(damaged)
    try:
        found = read(folder)
    except StemError:
        return
    assert found is not None
    assert found.head is None or found.head.look.rows.shape == (320, 2, 34)
