"""The packed model folder: written tensor by tensor, opened by mapping it into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import FormatError, UsageError
from ..families.common import validate
from ..quant import GROUP_BYTES, TILE, Kind, PackedMatrix, tiles_shape
from ..renaming import rename
from .header import TensorEntry, map_file, read_header, read_json, view

FORMAT = 1
WEIGHTS = "model.safetensors"
INFO = "stem.json"
PARTIAL = ".partial"
"""Suffix of files being written: a folder with one and without stem.json was never finished."""
ALIGNMENT = 64

_TILES = ".tiles"
_FIELDS = {
    "name": str, "quant": str, "weights_sha256": str, "parameters": int,
    "config": dict, "tokenizer": dict, "source": dict,
}  # fmt: skip

Shape = tuple[int, ...]


def expected_tensors(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of all a model has, in file order: (rows, cols) or (n,) for vectors."""
    d, ffn = config.d_model, config.ffn_dim
    q_rows, kv_rows = config.n_heads * config.head_dim, config.kv_heads * config.head_dim
    layer: list[tuple[str, Shape]] = [
        ("attn_norm", (d,)),
        ("q", (q_rows, d)),
        ("k", (kv_rows, d)),
        ("v", (kv_rows, d)),
        ("o", (d, q_rows)),
        ("ffn_norm", (d,)),
        ("gate", (ffn, d)),
        ("up", (ffn, d)),
        ("down", (d, ffn)),
    ]
    if config.qkv_bias:
        layer += [("q_bias", (q_rows,)), ("k_bias", (kv_rows,)), ("v_bias", (kv_rows,))]
    if config.qk_norm:
        layer += [("q_norm", (config.head_dim,)), ("k_norm", (config.head_dim,))]
    if config.post_norms:
        layer += [("attn_post_norm", (d,)), ("ffn_post_norm", (d,))]
    yield "embed", (config.vocab_size, d)
    for index in range(config.n_layers):
        for name, shape in layer:
            yield f"layers.{index}.{name}", shape
    yield "norm", (d,)
    if not config.tied_head:
        yield "head", (config.vocab_size, d)


def count_parameters(config: ModelConfig) -> int:
    return sum(math.prod(shape) for _, shape in expected_tensors(config))


@dataclass(frozen=True, slots=True)
class PackedModel:
    """An opened packed folder. Arrays are read-only views of the mapped file.

    `info` is stem.json as read; `nbytes` counts the weights, `parameters` the numbers they hold.
    """

    folder: Path
    config: ModelConfig
    info: dict[str, Any]
    nbytes: int
    parameters: int
    _matrices: Mapping[str, PackedMatrix]
    _vectors: Mapping[str, NDArray[np.float32]]

    def has(self, name: str) -> bool:
        return name in self._matrices or name in self._vectors

    def matrix(self, name: str) -> PackedMatrix:
        """The quantized matrix `name`; KeyError where the model has none."""
        return self._matrices[name]

    def vector(self, name: str) -> NDArray[np.float32]:
        """The float32 vector `name`; KeyError where the model has none."""
        return self._vectors[name]

    def first_layers(self, count: int) -> PackedModel:
        """The same model up to its layer `count`, with all that does not belong to a layer.

        A view: its arrays are this model's, and keep the file mapped for as long as they are held.
        `info` still tells of the whole file. Raises UsageError for other counts than 1 to n_layers.
        """
        layers = self.config.n_layers
        if not 1 <= count <= layers:
            raise UsageError(f"The first {count} of {layers} layers cannot be taken.")
        windows = self.config.layer_windows[:count]
        config = dataclasses.replace(self.config, n_layers=count, layer_windows=windows)
        names = {name for name, _ in expected_tensors(config)}
        matrices = {name: m for name, m in self._matrices.items() if name in names}
        vectors = {name: v for name, v in self._vectors.items() if name in names}
        return dataclasses.replace(
            self,
            config=config,
            nbytes=_nbytes(matrices, vectors),
            parameters=count_parameters(config),
            _matrices=matrices,
            _vectors=vectors,
        )


def open_packed(folder: Path) -> PackedModel:
    """Open a packed model folder without reading its weights.

    Raises FormatError when stem.json or any tensor's dtype, shape, place or size is not what the
    config asks for.
    """
    info = _read_info(folder / INFO)
    config = ModelConfig.from_dict(info["config"], str(folder / INFO))
    validate(config, str(folder / INFO))
    path = folder / WEIGHTS
    data = map_file(path)
    entries = read_header(data, str(path))
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    parameters = 0
    for name, shape in expected_tensors(config):
        parameters += math.prod(shape)
        if len(shape) == 1:
            vectors[name] = view(data, _take(entries, name, "F32", shape, path), "<f4")
        else:
            matrices[name] = _matrix(data, entries, name, shape, path)
    if extra := next((name for name in entries if not name.startswith("pad.")), None):
        raise FormatError(f"{path}: unexpected tensor {extra!r:.80}.")
    nbytes = _nbytes(matrices, vectors)
    return PackedModel(folder, config, info, nbytes, parameters, matrices, vectors)


def _nbytes(
    matrices: Mapping[str, PackedMatrix], vectors: Mapping[str, NDArray[np.float32]]
) -> int:
    return sum(m.nbytes for m in matrices.values()) + sum(v.nbytes for v in vectors.values())


def _read_info(path: Path) -> dict[str, Any]:
    info = read_json(path)
    if info.get("format") != FORMAT:
        raise FormatError(
            f"{path}: format {info.get('format')!r:.40} is not the supported {FORMAT}; "
            "convert or pull the model again."
        )
    for key, kind in _FIELDS.items():
        if not isinstance(info.get(key), kind):
            raise FormatError(f"{path}: field {key!r} is missing or no {kind.__name__}.")
    return info


def _take(
    entries: dict[str, TensorEntry], name: str, dtype: str, shape: Shape, path: Path
) -> TensorEntry:
    entry = entries.pop(name, None)
    if entry is None:
        raise FormatError(f"{path}: tensor {name!r} is missing; convert or pull the model again.")
    if (entry.dtype, entry.shape) != (dtype, shape):
        raise FormatError(
            f"{path}: tensor {name!r} should be {dtype} {shape}, found {entry.dtype} {entry.shape}."
        )
    if entry.start % ALIGNMENT:
        raise FormatError(f"{path}: tensor {name!r} is not aligned to {ALIGNMENT} bytes.")
    return entry


def _matrix(
    data: mmap.mmap, entries: dict[str, TensorEntry], name: str, shape: Shape, path: Path
) -> PackedMatrix:
    """The matrix `name`, stored alone or together with its twin (see `_stored`)."""
    rows, cols = shape
    stored, place = name + _TILES, None
    if stored not in entries and (pair := _pair(name)):
        stored, place = pair + _TILES, int(name.endswith("up"))
    found = entries.get(stored)
    size = found.shape[-1] if found is not None and found.shape else 0
    kind: Kind = next((k for k, nbytes in GROUP_BYTES.items() if nbytes == size), "int4")
    tiles, groups, nbytes = tiles_shape(rows, cols, kind)
    wanted = (tiles, groups, nbytes) if place is None else (tiles, 2, groups, nbytes)
    # the second of a pair finds the entry that the first one took
    entry = _take(entries, stored, "U8", wanted, path)
    if place == 0:
        entries[stored] = entry
    array = view(data, entry, "u1")
    return PackedMatrix.of_tiles(
        name, rows, cols, kind, array if place is None else array[:, place]
    )


def _pair(name: str) -> str | None:
    """The tensor that holds gate and up of a layer, for the names of these two."""
    layer, _, last = name.rpartition(".")
    return f"{layer}.gate_up" if last in ("gate", "up") else None


class PackedWriter:
    """Writes model.safetensors and stem.json into `folder`, a block of rows at a time.

    `kinds` names the kind of every matrix of `expected_tensors(config)`: with the shapes known,
    the header goes first and each part is written at its place, in any order. As a context
    manager it closes the file; only `finish` makes the folder a model, with stem.json last.
    """

    def __init__(self, folder: Path, config: ModelConfig, kinds: Mapping[str, Kind]) -> None:
        validate(config, str(folder))
        self._folder, self._config = folder, config
        self._shapes = dict(expected_tensors(config))
        self._kinds = dict(kinds)
        header, self._places = _layout(self._shapes, self._kinds)
        self._due = {name: shape[0] for name, shape in self._shapes.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _partial(folder / WEIGHTS).open("w+b")
        self._file.write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def matrix(self, name: str, matrix: PackedMatrix, first_row: int = 0) -> None:
        """Write the rows of `matrix` as rows `first_row` and on of `name`.

        `first_row` is a multiple of 16; a block shorter than that multiple must be the last.
        """
        rows, cols = self._shapes[name]
        ragged = matrix.rows % TILE and first_row + matrix.rows != rows
        if first_row % TILE or ragged or first_row + matrix.rows > rows:
            raise ValueError(f"{name}: rows {first_row} + {matrix.rows} of {rows} do not tile")
        if (matrix.cols, matrix.kind) != (cols, self._kinds[name]):
            raise ValueError(f"{name}: {matrix.kind} of {matrix.cols} columns was not announced")
        place = self._places[name]
        for tile, chunk in enumerate(matrix.joined(), first_row // TILE):
            self._write(place.start + tile * place.step, chunk)
        self._due[name] -= matrix.rows

    def vector(self, name: str, values: NDArray[np.float32]) -> None:
        """Write the float32 vector `name`."""
        if values.shape != self._shapes[name]:
            raise ValueError(f"{name}: {values.shape} should be {self._shapes[name]}")
        self._write(self._places[name].start, values.astype("<f4", copy=False))
        self._due[name] -= len(values)

    def finish(self, info: Mapping[str, Any]) -> None:
        """Flush the weights to disk and write stem.json, its computed fields added to `info`.

        `info` has name, quant, tokenizer, source and license. Raises ValueError when a tensor was
        not written whole.
        """
        if missing := [name for name, due in self._due.items() if due]:
            raise ValueError(f"tensor {missing[0]} was not written whole")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        computed = {
            "format": FORMAT,
            "config": self._config.to_dict(),
            "weights_sha256": hashlib.file_digest(self._file, "sha256").hexdigest(),
            "parameters": count_parameters(self._config),
        }
        text = json.dumps({**info, **computed}, indent=1, ensure_ascii=False, allow_nan=False)
        with _partial(self._folder / INFO).open("w", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        for name in (WEIGHTS, INFO):
            rename(_partial(self._folder / name), self._folder / name)

    def _write(self, place: int, array: NDArray[Any]) -> None:
        self._file.seek(place)
        self._file.write(np.ascontiguousarray(array).data)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


class _Place(NamedTuple):
    """Where a tensor's first tile (or value) goes in the file, and how far on the next one."""

    start: int
    step: int


def _layout(
    shapes: Mapping[str, Shape], kinds: Mapping[str, Kind]
) -> tuple[bytes, dict[str, _Place]]:
    """The file's head up to the first tensor, and the place of every tensor in the file.

    safetensors allows no holes, so what alignment skips becomes uint8 tensors named pad.N.
    """
    table: dict[str, dict[str, Any]] = {}
    places: dict[str, _Place] = {}
    end = 0
    for stored, shape, members in _stored(shapes, kinds):
        if gap := -end % ALIGNMENT:
            pad = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            table[f"pad.{len(table)}"] = pad
            end += gap
        dtype, size = ("U8", 1) if stored.endswith(_TILES) else ("F32", 4)
        nbytes = math.prod(shape) * size
        table[stored] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        step = nbytes // shape[0]
        for index, name in enumerate(members):
            places[name] = _Place(end + index * step // len(members), step)
        end += nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    base = 8 + len(text)
    placed = {name: _Place(base + place.start, place.step) for name, place in places.items()}
    return len(text).to_bytes(8, "little") + text, placed


def _stored(
    shapes: Mapping[str, Shape], kinds: Mapping[str, Kind]
) -> Iterator[tuple[str, Shape, tuple[str, ...]]]:
    """Tensors of the file in order: name, shape, and which of a model's tensors each holds.

    Gate and up of a layer are read together, tile by tile. Where they are of one kind they are
    stored so too, since memory is fastest when every thread reads a single stream.
    """
    for name, shape in shapes.items():
        if len(shape) == 1:
            yield name, shape, (name,)
            continue
        tiles = tiles_shape(shape[0], shape[1], kinds[name])
        pair, twin = _pair(name), _twin(name)
        if pair is None or kinds[name] != kinds[twin]:
            yield name + _TILES, tiles, (name,)
        elif name.endswith("gate"):
            yield pair + _TILES, (tiles[0], 2, *tiles[1:]), (name, twin)


def _twin(name: str) -> str:
    """gate for up and up for gate."""
    layer, _, last = name.rpartition(".")
    return f"{layer}.{'up' if last == 'gate' else 'gate'}"
