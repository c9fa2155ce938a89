"""Whether the files of a packed model still hold what was written, which no start reads whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import FormatError
from .formats.packed import WEIGHTS, PackedModel
from .sparsity.profile import FILE, read_profile

_CHUNK = 1 << 22

Progress = Callable[[int, int], None]


def verify(model: PackedModel, progress: Progress) -> list[str]:
    """Read a model's files and compare them with their hashes; returns the names of the files.

    These are the weights, the tokenizer (but of a model that was packed before its hash was kept)
    and the profile where there is one. `progress` receives (bytes read, all bytes) of the weights.
    Raises FormatError for the first file that is damaged or cannot be read.
    """
    folder, info = model.folder, model.info
    hashes = {WEIGHTS: info["weights_sha256"], "tokenizer.json": info.get("tokenizer_sha256")}
    intact = []
    for name, wanted in hashes.items():
        if wanted is not None:
            found = _sha256(folder / name, progress if name == WEIGHTS else None)
            if found != wanted:
                raise FormatError(
                    f"{folder / name}: the bytes are not those that were written; see whether the "
                    f"disk is failing, and {_again(info)}."
                )
            intact.append(name)
    if read_profile(folder, model.config, info["weights_sha256"], whole=True) is not None:
        intact.append(FILE)
    return intact


def _sha256(path: Path, progress: Progress | None) -> str:
    digest, done = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            total = path.stat().st_size
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}).") from None
    return digest.hexdigest()


def _again(info: Mapping[str, Any]) -> str:
    if spec := info["source"].get("spec"):
        return f"get the model again: stem-local pull {spec} --name {info['name']} --force"
    return "convert the model again"
