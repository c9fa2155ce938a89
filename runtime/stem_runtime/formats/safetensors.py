"""Reading Hugging Face model folders: config.json with one or more safetensors files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..quant.ggml import FLOATS
from .header import TensorEntry, map_file, read_header, read_json
from .raw import RawTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_MAX_SHARDS = 1000


@dataclass(frozen=True, slots=True)
class HfFolder:
    """`config` as read from config.json; tensors by name, over the mapped files."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, RawTensor]


def read_hf(folder: Path) -> HfFolder:
    """Read config.json and the tensor tables of a model folder, and map the tensors.

    Raises FormatError for damaged files and UnsupportedError for weights in another format or a
    dtype other than F32, F16 and BF16.
    """
    config = read_json(folder / "config.json")
    tensors: dict[str, RawTensor] = {}
    for name in _shards(folder):
        path = folder / name
        for tensor in _read_file(path):
            if tensor.name in tensors:
                raise FormatError(f"{path}: tensor {tensor.name!r:.80} is in another shard too.")
            tensors[tensor.name] = tensor
    return HfFolder(folder, config, tensors)


def _shards(folder: Path) -> list[str]:
    """File names of the weights, in a fixed order; an index may name only plain names."""
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return [SINGLE]
        raise UnsupportedError(
            f"{folder}: no {SINGLE} and no {INDEX}; only safetensors weights are read, "
            "pickled .bin files never are."
        )
    path = folder / INDEX
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict):
        raise FormatError(f"{path}: field 'weight_map' should be an object.")
    names: set[str] = set()
    for name in table.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise FormatError(f"{path}: weight_map names {name!r:.80}, not a file of this folder.")
        names.add(name)
    if not 0 < len(names) <= _MAX_SHARDS:
        raise FormatError(f"{path}: weight_map names {len(names)} files.")
    return sorted(names)


def _read_file(path: Path) -> list[RawTensor]:
    data = map_file(path)
    tensors = []
    for name, entry in read_header(data, str(path)).items():
        if entry.nbytes == 0:
            raise FormatError(f"{path}: tensor {name!r:.80} is empty.")
        raw = np.frombuffer(data, np.uint8, entry.nbytes, entry.start)
        tensors.append(_raw_tensor(path, name, entry, raw))
    return tensors


def _raw_tensor(path: Path, name: str, entry: TensorEntry, raw: np.ndarray[Any, Any]) -> RawTensor:
    for kind in FLOATS:
        if kind == entry.dtype:
            rows = math.prod(entry.shape[:-1])
            return RawTensor(name, kind, entry.shape, raw.reshape(rows, -1))
    raise UnsupportedError(
        f"{path}: tensor {name!r:.80} has the dtype {entry.dtype}; "
        f"supported are {', '.join(FLOATS)}."
    )
