"""Files from the Hub: found in its cache, or downloaded so that an interrupted one resumes.

The library's own downloads start a file anew after a kill, so the pieces below them are used: its
API for the listing, and its transfer function, which can go on at an offset, into our own folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import filelock
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from stem_runtime.renaming import rename

from .errors import OfflineError, SourceError
from .hub_errors import explained
from .progress import Meter, Reporter
from .repo_files import choose
from .spec import Spec
from .stopping import NEVER, Stop
from .wheel import downloads_dir

_TIMEOUT = 10.0
"""Seconds without an answer after which the Hub counts as unreachable."""

_CHUNK = 1 << 18
"""Bytes between two looks at a download: the library's own 10 MB take minutes on a slow line."""

_READ = 1 << 22

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAFE_NAME = re.compile(r"[\w+-][\w.+-]{0,199}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at the Hub. `sha256` is known of weights, `blob_id` (git's SHA-1) of small files."""

    path: str
    size: int
    sha256: str | None
    blob_id: str | None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Plan:
    """The files that make a model, at one commit of a repository."""

    repo: str
    revision: str
    files: tuple[RemoteFile, ...]
    license: str | None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def folder(self) -> Path:
        return downloads_dir() / f"{self.repo.replace('/', '--')}@{self.revision[:12]}"

    def missing(self) -> int:
        """Bytes that are still to be downloaded."""
        return self.size - sum(_have(self.folder / file.name) for file in self.files)


def offline() -> bool:
    """Whether the user asked for no network (HF_HUB_OFFLINE)."""
    return bool(constants.HF_HUB_OFFLINE)


def in_cache(spec: Spec) -> tuple[Path, str] | None:
    """The model in the Hub cache, its file or folder, and its commit; None if it is not whole."""
    try:
        with _quiet():
            folder = Path(
                huggingface_hub.snapshot_download(
                    spec.repo,
                    revision=spec.revision,
                    local_files_only=True,
                    allow_patterns=[],
                )
            )
        found = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        files = choose(spec.repo, found, spec.file)
    except (OSError, SourceError, ValueError):
        return None
    if len(files) == 1:
        return folder / files[0], folder.name
    index = folder / "model.safetensors.index.json"
    whole = not index.exists() or _shards(index) <= set(found)
    return (folder, folder.name) if whole else None


def plan(spec: Spec, stop: Stop = NEVER) -> Plan:
    """Ask the Hub which files make the model. Raises SourceError and its kinds, Cancelled."""
    ask = partial(
        huggingface_hub.HfApi().model_info,
        spec.repo,
        revision=spec.revision,
        files_metadata=True,
        timeout=_TIMEOUT,
    )
    with explained(spec.repo, spec.revision), _quiet():
        info = stop.run(ask)
    siblings = {s.rfilename: s for s in info.siblings or []}
    files = tuple(_remote(siblings[path]) for path in choose(spec.repo, siblings, spec.file))
    card = getattr(info, "card_data", None)
    named = card.get("license") if card else None
    license_name = named if isinstance(named, str) else None
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise SourceError(f"The Hub lists {spec.repo} at an unusable commit, {commit!r:.100}.")
    return Plan(spec.repo, commit, files, license_name)


@contextlib.contextmanager
def fetched(
    plan: Plan, reporter: Reporter, check: Callable[[Path], None], stop: Stop = NEVER
) -> Iterator[Path]:
    """The plan's GGUF file, or the folder with all its files; deleted when the block succeeds.

    After a failure or Cancelled what has arrived stays for the next try. `check` is called with
    the folder once everything but safetensors is there, to refuse a model before its weights are
    downloaded.
    """
    folder = plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    with stop.hold(filelock.FileLock(downloads_dir() / f".{folder.name}.lock")):
        _drop_other_revisions(folder)
        meter = Meter(reporter, "download", plan.size, stop)
        before = 0
        checked = False
        for file in plan.files:
            if not checked and file.name.endswith(".safetensors"):
                check(folder)
                checked = True
            _fetch(plan, file, folder / file.name, meter, before, stop)
            before += file.size
        yield folder / plan.files[0].name if len(plan.files) == 1 else folder
        shutil.rmtree(folder, ignore_errors=True)  # what stays is there for the next pull


def _fetch(
    plan: Plan, file: RemoteFile, target: Path, meter: Meter, before: int, stop: Stop
) -> None:
    if target.exists():
        meter.reach(before + file.size)
        return
    part = _part(target)
    part.touch()
    while (have := part.stat().st_size) < file.size:
        try:
            _transfer(plan, file, part, meter, before, stop)
        except OfflineError:
            if part.stat().st_size == have:
                raise
    if not _is(part, file, stop):
        part.unlink()
        raise SourceError(
            f"{plan.repo}: {file.path} arrived damaged and was deleted; pull again for a new one."
        )
    rename(part, target)
    meter.reach(before + file.size)


def _transfer(
    plan: Plan, file: RemoteFile, part: Path, meter: Meter, before: int, stop: Stop
) -> None:
    """Append to `part` what is missing of it, as far as the connection holds.

    When it is cancelled the file is closed, so that a transfer which is given up can no longer
    write to it.
    """
    url = huggingface_hub.hf_hub_url(plan.repo, file.path, revision=plan.revision)
    with explained(plan.repo, plan.revision), _quiet(), _Metered(part, meter, before) as out:
        get = partial(
            http_get,
            url,
            cast("BinaryIO", out),
            resume_size=out.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
        )
        stop.run(get)


class _Metered(io.BufferedWriter):
    """Goes on at the end of a partial file and tells a meter how far it has got."""

    def __init__(self, path: Path, meter: Meter, before: int) -> None:
        super().__init__(io.FileIO(path, "r+b"))
        self.seek(0, io.SEEK_END)
        self._meter, self._before = meter, before

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._meter.reach(self._before + self.tell())
        return written


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _have(target: Path) -> int:
    for path in (target, _part(target)):
        if path.exists():
            return path.stat().st_size
    return 0


def _is(path: Path, file: RemoteFile, stop: Stop) -> bool:
    """Whether the bytes are those the Hub announced."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256:
        digest, wanted = hashlib.sha256(), file.sha256
    elif file.blob_id:
        digest, wanted = hashlib.sha1(usedforsecurity=False), file.blob_id
        digest.update(b"blob %d\0" % file.size)
    else:
        return True
    with path.open("rb") as opened:
        while chunk := opened.read(_READ):
            stop.check()
            digest.update(chunk)
    return digest.hexdigest() == wanted


def _remote(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    size = lfs.size if lfs else sibling.size
    file = RemoteFile(sibling.rfilename, size, lfs.sha256 if lfs else None, sibling.blob_id)
    if not _SAFE_NAME.fullmatch(file.name):
        raise SourceError(f"The Hub lists a file with an unusable name, {file.path!r:.100}.")
    if type(size) is not int or size < 0:
        raise SourceError(f"The Hub lists {file.path!r:.100} with an unusable size, {size!r:.40}.")
    return file


def _shards(index: Path) -> set[str]:
    names = json.loads(index.read_bytes()).get("weight_map", {}).values()
    return {name for name in names if isinstance(name, str)}


def _drop_other_revisions(folder: Path) -> None:
    for other in folder.parent.glob(f"{folder.name.partition('@')[0]}@*"):
        if other != folder and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's own bars and log lines off the screen, and have it tell ours often."""
    logger = logging.getLogger("huggingface_hub")
    level, chunk = logger.level, constants.DOWNLOAD_CHUNK_SIZE
    were_off = are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    constants.DOWNLOAD_CHUNK_SIZE = min(chunk, _CHUNK)
    if not were_off:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        constants.DOWNLOAD_CHUNK_SIZE = chunk
        if not were_off:
            enable_progress_bars()
