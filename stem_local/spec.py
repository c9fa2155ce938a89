"""What a user may name as the source of a model, and the name it gets when installed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from stem_runtime.errors import UsageError
from stem_runtime.paths import expand

from . import catalog
from .catalog import CatalogEntry

_HUB = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@\s]+))?(?::(?P<file>[^:\\\s]+\.gguf))?"
)


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed source: a local `path`, or a Hub `repo` with an optional revision and GGUF file.

    `text` is the spec in its one canonical form, `name` the name it is installed under unless the
    user says otherwise, `entry` the catalogue's knowledge of it if it came by name.
    """

    text: str
    name: str
    path: Path | None = None
    repo: str = ""
    revision: str | None = None
    file: str | None = None
    entry: CatalogEntry | None = None


def parse(text: str) -> Spec:
    """A catalogue name, `hf:owner/repo[@revision][:file.gguf]`, or a path. Raises UsageError."""
    if entry := catalog.find(text):
        return Spec(text=entry.name, name=entry.name, repo=entry.repo, entry=entry)
    if text.startswith("hf:"):
        return _hub_spec(text)
    path = expand(text)
    if text and path.exists():
        return _path_spec(path.resolve())
    if path.suffix == ".gguf" or text.startswith((".", "~", os.sep)):
        raise UsageError(f"{path} does not exist; give a .gguf file or a folder of safetensors.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise UsageError(f"{text} is neither a file nor a known name; for the Hub write hf:{text}")
    near = catalog.suggest(text)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UsageError(
        f"{text!r:.100} is not in the catalogue{hint} Give a name from stem-local list --catalog, "
        "hf:owner/repo[@revision][:file.gguf], or a path."
    )


def model_name(text: str) -> str:
    """The nearest valid model name to `text`."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:80].rstrip("-._")


def _hub_spec(text: str) -> Spec:
    match = _HUB.fullmatch(text)
    if match is None or ".." in text:
        raise UsageError(f"{text!r:.200} is not hf:owner/repo[@revision][:file.gguf].")
    repo, revision, file = match["repo"], match["revision"], match["file"]
    stem = file.rpartition("/")[2].removesuffix(".gguf") if file else repo.partition("/")[2]
    return Spec(text=text, name=model_name(stem), repo=repo, revision=revision, file=file)


def _path_spec(path: Path) -> Spec:
    if path.is_file() and path.suffix != ".gguf":
        raise UsageError(f"{path} is not a .gguf file; give one, or a folder of safetensors.")
    if path.is_dir() and (path / "stem.json").is_file():
        raise UsageError(f"{path} is packed already: use it as it is, stem-local run {path}")
    stem = path.name.removesuffix(".gguf")
    return Spec(text=str(path), name=model_name(stem), path=path)
