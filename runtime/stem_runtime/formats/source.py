"""A model to convert, whichever format it comes in: settings, tensors, tokenizer and licence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import ModelConfig
from ..errors import FormatError, UnsupportedError, UsageError
from ..families import TensorSpec, for_gguf, for_hf
from ..quant.ggml import FLOATS, to_float
from ..tokenizer import Tokenizer
from .gguf import GgufFile, read_gguf
from .header import read_json, read_text
from .raw import RawTensor
from .safetensors import read_hf

CHAT_TEMPLATE = "chat_template.jinja"

_ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """`where` names it in errors; `tokenizer` is built only when called, since that takes long."""

    where: str
    config: ModelConfig
    specs: list[TensorSpec]
    tensors: dict[str, RawTensor]
    license: str | None
    tokenizer: Callable[[], Tokenizer]
    chat_template: str | None


def open_source(path: Path) -> Source:
    """Open a .gguf file or a folder with config.json and safetensors.

    Raises UsageError for anything else, FormatError and UnsupportedError from the readers.
    """
    if path.is_dir():
        return _open_hf(path)
    if path.suffix.lower() == ".gguf":
        return _open_gguf(read_gguf(path))
    raise UsageError(
        f"{path} cannot be converted; give a .gguf file, or a folder with config.json, "
        "safetensors weights and tokenizer.json."
    )


def _open_gguf(file: GgufFile) -> Source:
    where, meta = str(file.path), file.metadata
    family = for_gguf(meta, where)
    config = family.config_from_gguf(
        meta, where, tensors=file.tensors, rope_freqs=_rope_freqs(file)
    )
    stated = meta.get("general.license")
    template = meta.get("tokenizer.chat_template")

    return Source(
        where,
        config,
        family.tensors_gguf(config),
        file.tensors,
        stated if isinstance(stated, str) else None,
        lambda: _gguf_tokenizer(file),
        template if isinstance(template, str) else None,
    )


def _gguf_tokenizer(file: GgufFile) -> Tokenizer:
    try:
        return Tokenizer.from_gguf(file.metadata)
    except (FormatError, UnsupportedError) as error:  # it knows no file to name
        raise type(error)(f"{file.path}: {error}") from None


def _rope_freqs(file: GgufFile) -> list[float] | None:
    tensor = file.tensors.get(_ROPE_FREQS)
    if tensor is None:
        return None
    if tensor.kind not in FLOATS or tensor.data.nbytes > 1 << 16:
        raise FormatError(f"{file.path}: tensor {_ROPE_FREQS!r} should be a short float vector.")
    values: list[float] = to_float(tensor.kind, tensor.data).reshape(-1).tolist()
    return values


def _open_hf(path: Path) -> Source:
    folder = read_hf(path)
    where = str(path / "config.json")
    family = for_hf(folder.config, where)
    config = family.config_from_hf(folder.config, where)
    return Source(
        str(path),
        config,
        family.tensors_hf(config),
        folder.tensors,
        None,
        lambda: Tokenizer.from_hf(path),
        _hf_template(path),
    )


def _hf_template(folder: Path) -> str | None:
    """The chat template: its own file, or in older folders a string or list of the config."""
    path = folder / CHAT_TEMPLATE
    if path.exists():
        return read_text(path)
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.exists() else None
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
