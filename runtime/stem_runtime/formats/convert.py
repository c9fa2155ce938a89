"""From a GGUF file or a Hugging Face folder to a packed folder, a block of rows at a time.

What a matrix becomes:

- Q4_0, Q4_1, Q5_0, Q8_0 and Q4_K keep their quants (see quant/ggml.py), whatever `quant` says of
  float weights; Q5_1, Q5_K and Q6_K are rounded anew to int8.
- float weights become int4, and int8 for the embedding and the head, or int8 throughout with
  quant="int8".
- quant="int4" also rounds the body's matrices of more than four bits, since keeping them would
  make the name a lie. quant="int8" never widens four bits: there is nothing to gain.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import FormatError, UsageError
from ..families import TensorSpec, check_tensors
from ..quant import TILE, Kind, PlainMatrix, pack
from ..quant.ggml import FLOATS, KEPT_AS, BlockType, keep, to_float
from ..quant.rounding import quantize
from ..tokenizer import Tokenizer
from .packed import INFO, PARTIAL, WEIGHTS, PackedWriter
from .raw import RawTensor
from .source import CHAT_TEMPLATE, Source, open_source

QUANTS = ("int4", "int8")

_BLOCK = 1 << 22  # weights worked on at once: 16 MiB of float32

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Step:
    spec: TensorSpec
    raw: RawTensor
    kind: Kind | None  # None for vectors


def convert(
    source: Path,
    out: Path,
    *,
    quant: str | None = None,
    name: str,
    origin: Mapping[str, Any],
    progress: Progress | None = None,
) -> None:
    """Convert `source`, a .gguf file or a folder with config.json, into the new folder `out`.

    `origin` is kept as the `source` of stem.json. `progress(done, total)` counts source bytes. A
    failure removes `out`; what a killed conversion left there is replaced. Raises UsageError for
    arguments, FormatError for damaged files, UnsupportedError for what cannot be run and OSError
    for a full disk.
    """
    if quant not in (None, *QUANTS):
        raise UsageError(f"quant {quant!r:.40} is not supported; choose {' or '.join(QUANTS)}.")
    opened = open_source(source)
    steps = _plan(opened, quant)
    _make_folder(out)
    try:
        kinds = {step.spec.name: step.kind for step in steps if step.kind}
        with PackedWriter(out, opened.config, kinds) as writer:
            _write_tensors(writer, opened, steps, progress)
            tokenizer = opened.tokenizer()
            _check_ids(opened, tokenizer)
            tokenizer_file = tokenizer.save(out)
            if opened.chat_template is not None:
                path = out / CHAT_TEMPLATE
                path.write_text(opened.chat_template, encoding="utf-8", newline="")
            writer.finish(
                {
                    "name": name,
                    "quant": _label(steps),
                    "tokenizer": tokenizer.info,
                    "tokenizer_sha256": hashlib.sha256(tokenizer_file.read_bytes()).hexdigest(),
                    "source": dict(origin),
                    "license": opened.license or origin.get("license"),
                }
            )
        _sync(out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _plan(source: Source, quant: str | None) -> list[_Step]:
    check_tensors(source.tensors, source.specs, source.where)
    steps = []
    for spec in source.specs:
        raw = source.tensors.get(spec.source)
        if raw is None:
            continue
        if raw.shape != spec.shape:
            raise FormatError(
                f"{source.where}: tensor {spec.source!r} has the shape {raw.shape} where the "
                f"settings ask for {spec.shape}; get the file again from its source."
            )
        kind = _kind(spec.name, raw.kind, quant) if len(spec.shape) == 2 else None
        steps.append(_Step(spec, raw, kind))
    return steps


def _kind(name: str, source: BlockType, quant: str | None) -> Kind:
    kept = KEPT_AS.get(source)
    if kept in ("int4", "int4m"):
        return kept
    wide = name in ("embed", "head") or quant == "int8"
    if source in FLOATS or quant == "int4":
        return "int8" if wide else "int4"
    return "int8"


def _label(steps: list[_Step]) -> str:
    """What most of the body's weights are: the type they kept, or the one they were rounded to."""
    sizes: dict[str, int] = {}
    for step in steps:
        if step.kind and step.spec.name not in ("embed", "head"):
            kept = KEPT_AS.get(step.raw.kind) == step.kind
            label = step.raw.kind.lower() if kept else step.kind
            rows, cols = step.spec.shape
            sizes[label] = sizes.get(label, 0) + rows * cols
    return max(sizes, key=lambda label: sizes[label])


def _check_ids(source: Source, tokenizer: Tokenizer) -> None:
    """Raises FormatError where texts have ids without weights; added tokens may, as paddings do."""
    last, rows = tokenizer.last_id, source.config.vocab_size
    if last >= rows:
        raise FormatError(
            f"{source.where}: the tokenizer has ids up to {last} and the weights are for {rows} "
            "tokens; one of them belongs to another model, get both from the same source."
        )


def _write_tensors(
    writer: PackedWriter, source: Source, steps: list[_Step], progress: Progress | None
) -> None:
    total = sum(step.raw.data.nbytes for step in steps)
    done = 0
    for step in steps:
        try:
            for nbytes in _write_tensor(writer, source.config, step):
                done += nbytes
                if progress:
                    progress(done, total)
        except FormatError as error:
            raise FormatError(f"{source.where}: tensor {step.spec.source!r}: {error}") from None


def _write_tensor(writer: PackedWriter, config: ModelConfig, step: _Step) -> Iterator[int]:
    """Write one tensor, yielding the source bytes of each block done."""
    spec, raw = step.spec, step.raw
    order = _row_order(spec, config)
    if step.kind is None:
        values = to_float(raw.kind, raw.data).reshape(-1).astype(np.float32)
        if not np.isfinite(values).all():
            raise FormatError("a value is not a finite number; get the file again from its source.")
        values = values if order is None else values[order]
        writer.vector(spec.name, values + np.float32(spec.transform == "plus_one"))
        yield raw.data.nbytes
        return
    rows, cols = spec.shape
    block = max(TILE, _BLOCK // cols // TILE * TILE)
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        data = raw.data[start:stop] if order is None else raw.data[order[start:stop]]
        plain = _round(raw.kind, step.kind, data)
        writer.matrix(spec.name, pack(plain, spec.name, cols), start)
        yield data.nbytes


def _round(source: BlockType, kind: Kind, data: NDArray[np.uint8]) -> PlainMatrix:
    if KEPT_AS.get(source) != kind:
        return quantize(to_float(source, data), kind)
    plain = keep(source, data)
    finite = np.isfinite(plain.scales).all()
    if not finite or not (plain.minima is None or np.isfinite(plain.minima).all()):
        raise FormatError("a scale is not a finite number; get the file again from its source.")
    return plain


def _row_order(spec: TensorSpec, config: ModelConfig) -> NDArray[np.intp] | None:
    """Source rows in the order they are packed; None where they stay (see TensorSpec)."""
    if spec.transform not in ("unpermute_q", "unpermute_k"):
        return None
    heads = config.n_heads if spec.transform == "unpermute_q" else config.kv_heads
    rows = np.arange(heads * config.head_dim).reshape(heads, config.head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def _make_folder(out: Path) -> None:
    unfinished = any((out / (name + PARTIAL)).is_file() for name in (WEIGHTS, INFO))
    if unfinished and not (out / INFO).exists():
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(f"{out} exists already; choose a folder that does not.") from None


def _sync(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, where the system can be asked to."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
