"""What calibration learned of a model, kept beside its weights as `profile.safetensors`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import FormatError
from ..formats.header import TensorEntry, map_file, parse_json, read_header, view
from ..formats.packed import ALIGNMENT, PARTIAL
from ..kernels.cpu.layout import ROW_GROUP_BYTES
from ..quant import GROUP, PackedMatrix, groups_of, tiles_shape
from .head import HeadLook

FILE = "profile.safetensors"
FORMAT = 1

MAX_MISS_RATE = 0.001
"""Most positions at which the full head's winner may be left out."""

MIN_MASS = 0.999
"""Least share of the probability that sampling would draw from and that must be kept."""

_TABLE = "profile.json"
_MAX_TABLE = 1 << 20
_ROTATION, _LOOK, _ROWS = "head.rotation.tiles", "head.look.tiles", "head.rows"


@dataclass(frozen=True, slots=True)
class HeadSetting:
    """A sparse output head as calibration measured it, on positions that it was not fitted to.

    `misses` of `positions` had the full head's winner left out. `mean_rows` rows per token are
    computed in full, the whole head's where the look was unsure. `default_mass` is the share kept
    of the probability that the default sampling settings draw from, `warm_mass` the same at
    temperature 1. `head_bytes` are read per token, of the full head's
    `dense_head_bytes`. Speeds are tokens per second of whole decode steps, medians of runs that
    took turns, with `threads` threads of the `kernels` variant.
    """

    dims: int
    margin: float
    limit: int
    positions: int
    misses: int
    mean_rows: float
    default_mass: float
    warm_mass: float
    head_bytes: int
    dense_head_bytes: int
    kernels: str
    threads: int
    dense_tokens_per_second: float
    tokens_per_second: float

    @property
    def miss_rate(self) -> float:
        return self.misses / self.positions

    @property
    def good(self) -> bool:
        """Whether the quality rule holds."""
        kept = min(self.default_mass, self.warm_mass)
        return self.miss_rate <= MAX_MISS_RATE and kept >= MIN_MASS

    @property
    def faster(self) -> bool:
        return self.tokens_per_second > self.dense_tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "miss_rate": self.miss_rate}


@dataclass(frozen=True, slots=True)
class Profile:
    """A model's calibration. `weights_sha256` says which weights it belongs to."""

    weights_sha256: str
    setting: HeadSetting
    head: HeadLook


def write_profile(folder: Path, profile: Profile) -> Path:
    """Put the profile into a model's folder, whole or not at all. Returns its path."""
    table = {
        "format": FORMAT,
        "weights_sha256": profile.weights_sha256,
        "head": dataclasses.asdict(profile.setting),
    }
    arrays: dict[str, NDArray[np.uint8]] = {
        _TABLE: np.frombuffer(json.dumps(table, allow_nan=False).encode(), np.uint8),
        _ROTATION: profile.head.rotation.joined(),
        _LOOK: profile.head.look.joined(),
        _ROWS: profile.head.rows,
    }
    path = folder / FILE
    partial = folder / f"{FILE}.{os.getpid()}{PARTIAL}"
    try:
        with partial.open("wb") as file:
            for part in _laid_out(arrays):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_profile(folder: Path, config: ModelConfig, weights_sha256: str) -> Profile | None:
    """The profile of a model's folder, mapped into memory; None where there is none.

    Raises FormatError for a damaged one and for one of other weights.
    """
    path = folder / FILE
    if not path.exists():
        return None
    data = map_file(path)
    entries = read_header(data, str(path))
    table = _read_table(path, data, entries)
    if table["weights_sha256"] != weights_sha256:
        raise FormatError(f"{path} belongs to other weights than this model's; calibrate it again.")
    setting = _setting(table["head"], config, path)
    vocab, d, dims = config.vocab_size, config.d_model, setting.dims

    def array(name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        entry = entries.get(name)
        if entry is None or (entry.dtype, entry.shape) != ("U8", shape) or entry.start % ALIGNMENT:
            raise FormatError(f"{path}: tensor {name!r} is not U8 {shape}; calibrate again.")
        return view(data, entry, "u1")

    def matrix(name: str, rows: int, cols: int) -> PackedMatrix:
        tiles = array(name, tiles_shape(rows, cols, "int8"))
        found = PackedMatrix.of_tiles(name, rows, cols, "int8", tiles)
        if not np.isfinite(found.scales).all():
            raise FormatError(f"{path}: tensor {name!r} has scales that are no numbers.")
        return found

    look = HeadLook(
        matrix(_ROTATION, dims, d),
        matrix(_LOOK, vocab, dims),
        array(_ROWS, (vocab, groups_of(d), ROW_GROUP_BYTES)),
        setting.margin,
        setting.limit,
    )
    return Profile(weights_sha256, setting, look)


def _laid_out(arrays: dict[str, NDArray[np.uint8]]) -> list[bytes | memoryview]:
    """The parts of a safetensors file whose tensors start at multiples of 64 bytes."""
    table: dict[str, Any] = {}
    parts: list[bytes | memoryview] = []
    end = 0
    for name, array in arrays.items():
        if gap := -end % ALIGNMENT:
            table[f"pad.{len(table)}"] = _entry((gap,), end, gap)
            parts.append(bytes(gap))
            end += gap
        table[name] = _entry(array.shape, end, array.nbytes)
        parts.append(np.ascontiguousarray(array).data)
        end += array.nbytes
    text = json.dumps(table).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return [len(text).to_bytes(8, "little"), text, *parts]


def _entry(shape: tuple[int, ...], start: int, nbytes: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": list(shape), "data_offsets": [start, start + nbytes]}


def _read_table(path: Path, data: Any, entries: dict[str, TensorEntry]) -> dict[str, Any]:
    entry = entries.get(_TABLE)
    if entry is None or entry.dtype != "U8" or entry.nbytes > _MAX_TABLE:
        raise FormatError(f"{path}: the table of settings is missing or too large.")
    where = f"{path}: {_TABLE}"
    table = parse_json(view(data, entry, "u1").tobytes(), where)
    if table.get("format") != FORMAT:
        raise FormatError(f"{where}: not of format {FORMAT}; calibrate the model again.")
    if not isinstance(table.get("head"), dict) or not isinstance(table.get("weights_sha256"), str):
        raise FormatError(f"{where}: head or weights_sha256 is missing; calibrate again.")
    return table


def _setting(values: dict[str, Any], config: ModelConfig, path: Path) -> HeadSetting:
    """The table's numbers, each of its type and within what a model of this shape allows."""
    kinds = {field.name: str(field.type) for field in dataclasses.fields(HeadSetting)}
    if set(values) != set(kinds):
        raise FormatError(f"{path}: the head's settings are not those of format {FORMAT}.")
    for name, kind in kinds.items():
        value = values[name]
        if kind == "str":
            fits = isinstance(value, str)
        else:
            number = type(value) is int or (kind == "float" and type(value) is float)
            fits = number and 0 <= value < 2**53 and math.isfinite(value)
        if not fits:
            raise FormatError(f"{path}: {name} of the head cannot be {value!r:.40}.")
    setting = HeadSetting(**values)
    dims_fit = setting.dims % GROUP == 0 and 0 < setting.dims <= config.d_model
    if not dims_fit or not 0 < setting.limit <= config.vocab_size or setting.positions < 1:
        raise FormatError(f"{path}: the head's settings do not fit this model; calibrate again.")
    return setting
