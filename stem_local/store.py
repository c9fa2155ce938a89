"""Installed models: one folder each, replaced whole or not at all.

A model lives in `models/<name>/<number>/`, a packed folder; the highest number is the installed
one. A new version is built beside them and renamed into place, which is the one step that counts:
a kill before it leaves the old model, a kill after it the new. What is left over is swept away by
the next install of that name, under the name's lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stem_runtime import paths
from stem_runtime.errors import StemError, UsageError
from stem_runtime.renaming import rename

from . import catalog
from .errors import BusyError, NotInstalledError
from .stopping import NEVER, Stop

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(10))}
_INFO = "stem.json"


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model on this machine. `size` is its bytes on disk, `info` its stem.json.

    `damage` says what is wrong with it and what to do, None when it can be used; `info` is empty if
    not, and `size` 0 where even that cannot be told.
    """

    name: str
    folder: Path
    size: int
    info: dict[str, Any]
    damage: str | None = None


def models_dir() -> Path:
    return paths.data_dir() / "models"


def check_name(name: str) -> str:
    """The name in its stored form. Raises UsageError for one no file system should see."""
    lowered = name.lower()
    if not _plain(lowered):
        raise UsageError(
            f"{name!r:.100} cannot name a model: use up to 80 letters, digits, '.', '-' and '_', "
            "beginning with a letter or digit."
        )
    return lowered


def _plain(name: str) -> bool:
    whole = _NAME.fullmatch(name) is not None and not name.endswith(".")
    return whole and name.split(".")[0] not in _RESERVED


def installed() -> list[InstalledModel]:
    """Every installed model, by name; damaged ones too."""
    found = (find(name) for name in names())
    return [model for model in found if model is not None]


def names() -> list[str]:
    """The names of installed models, without a look into them."""
    try:
        found = sorted(entry.name for entry in os.scandir(models_dir()) if entry.is_dir())
    except FileNotFoundError:
        return []
    # whatever else somebody keeps there is no model
    return [name for name in found if _plain(name) and _is_model(models_dir() / name)]


def find(name: str) -> InstalledModel | None:
    """The installed model of exactly that name, damaged or not; None when there is none."""
    folder, size = models_dir() / check_name(name), 0
    try:
        versions = _versions(folder)
        if not versions:
            return None
        folder = versions[-1]
        size = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
        return InstalledModel(name.lower(), folder, size, _open(folder))
    except FileNotFoundError:  # removed since by another process
        return None
    except StemError as error:
        damage = f"{error} Pull it again."
    except OSError as error:
        damage = (
            f"{error.filename or folder} cannot be read ({error.strerror}); make it readable, or "
            "delete it and pull the model again."
        )
    return InstalledModel(name.lower(), folder, size, {}, damage=damage)


def resolve(model: str | Path | None = None) -> Path:
    """The packed folder of an installed name, a catalogue alias or a path; None: the default model.

    Raises NotInstalledError, saying how to get it, or UsageError for a file that needs converting.
    """
    text = str(model or catalog.DEFAULT_MODEL)
    if text.startswith("hf:"):
        return _pulled_as(text)
    if isinstance(model, Path) or _looks_like_path(text):
        return _packed_path(paths.expand(text))
    entry = catalog.find(text)
    name = entry.name if entry else check_name(text)
    if versions := _versions(models_dir() / name):
        return versions[-1]
    if (Path(text) / _INFO).is_file():
        return Path(text)
    raise not_installed(text)


def not_installed(name: str) -> NotInstalledError:
    """The error for a name that is not on this machine, with the nearest thing to do about it."""
    if entry := catalog.find(name):
        return NotInstalledError(
            f"{name} is not installed; get it with: stem-local pull {entry.name}"
        )
    near = [known for known in catalog.suggest(name) if catalog.find(known)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return NotInstalledError(
        f"No model called {name!r:.100} is installed or in the catalogue{hint} "
        "(stem-local list --catalog shows what can be pulled)"
    )


@contextlib.contextmanager
def locked(
    name: str, waiting: Callable[[], None] | None = None, stop: Stop = NEVER
) -> Iterator[None]:
    """Hold the install lock of `name`; another process's install is waited for.

    `waiting` is called once if so, and `stop` can end the wait with Cancelled; without `waiting`,
    BusyError is raised instead of waiting.
    """
    import filelock  # here, because looking a model up should not pay for it

    folder = models_dir() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{check_name(name)}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(timeout=0))
        except filelock.Timeout:
            if waiting is None:
                raise BusyError(
                    f"{name} is being installed by another process; wait for it to end or stop it."
                ) from None
            waiting()
            stack.enter_context(stop.hold(lock))
        yield


def install(name: str, build: Callable[[Path], None]) -> InstalledModel:
    """Make the folder that `build` fills the installed model `name`. Call it holding the lock.

    `build` gets a path that does not exist yet, on the same file system; if it raises, nothing of
    it stays and the model installed before is untouched.
    """
    name = check_name(name)
    home = models_dir() / name
    sweep(name)
    staging = models_dir() / f".staging-{name}-{os.getpid()}"
    try:
        build(staging)
        _open(staging)
        home.mkdir(exist_ok=True)
        versions = _versions(home)
        number = int(versions[-1].name) + 1 if versions else 1
        rename(staging, home / str(number))
        _sync(home)
        _sync(home.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    sweep(name)
    model = find(name)
    assert model is not None
    return model


def remove(name: str) -> InstalledModel:
    """Delete the installed model `name`. Raises NotInstalledError, BusyError."""
    model = find(name)
    if model is None:
        raise not_installed(name)
    with locked(name):
        trash = models_dir() / f".trash-{model.name}-{os.getpid()}"
        try:
            rename(models_dir() / model.name, trash)
        except PermissionError as error:
            raise BusyError(
                f"{name} cannot be removed ({error.strerror}); close what uses it and try again."
            ) from error
        sweep(name)
        if trash.exists():
            raise BusyError(
                f"{name} is removed, but {trash} could not be deleted with all that is in it; "
                "delete it yourself."
            )
    return model


def sweep(name: str) -> None:
    """Clear what interrupted installs and removals of `name` left. Call it holding the lock.

    Holding the lock means nobody else works on that name, so whatever lies there is stale.
    """
    for kind in ("staging", "trash"):
        for left in models_dir().glob(f".{kind}-{name}-*"):
            if left.name.removeprefix(f".{kind}-{name}-").isdigit():
                shutil.rmtree(left, ignore_errors=True)
    home = models_dir() / name
    for old in _versions(home)[:-1]:
        shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):
        home.rmdir()


def sweep_all() -> None:
    """`sweep` every name that left something behind and that nobody is installing now."""
    left = {entry.name for entry in models_dir().glob(".staging-*-*")}
    left |= {entry.name for entry in models_dir().glob(".trash-*-*")}
    for name in {entry.split("-", 1)[1].rpartition("-")[0] for entry in left}:
        with contextlib.suppress(BusyError, UsageError), locked(name):
            sweep(name)


def _is_model(home: Path) -> bool:
    try:
        return bool(_versions(home))
    except OSError:  # one that cannot be looked into is told of, not hidden
        return True


def _versions(home: Path) -> list[Path]:
    try:
        numbers = [int(entry.name) for entry in os.scandir(home) if entry.name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [home / str(number) for number in sorted(numbers)]


def _looks_like_path(text: str) -> bool:
    separators = {os.sep, os.altsep or os.sep}
    return (
        text.startswith(("~", ".")) or text.endswith(".gguf") or any(s in text for s in separators)
    )


def _pulled_as(spec: str) -> Path:
    for model in installed():
        if model.info.get("source", {}).get("spec") == spec:
            return model.folder
    raise NotInstalledError(f"{spec} is not installed; get it with: stem-local pull {spec}")


def _packed_path(path: Path) -> Path:
    if (path / _INFO).is_file():
        return path
    if path.suffix == ".gguf" or (path / "config.json").is_file():
        raise UsageError(
            f"{path} is not packed yet; do it once with: stem-local convert {path} FOLDER "
            f"(or stem-local pull {path}, to use it by name)"
        )
    raise NotInstalledError(
        f"{path} is not a packed model: it has no {_INFO}; give a folder made by "
        "stem-local convert, or the name of an installed model."
    )


def _open(folder: Path) -> dict[str, Any]:
    """stem.json of a folder that can be used; FormatError otherwise. Imported late: numpy."""
    from stem_runtime.formats.packed import open_packed

    return open_packed(folder).info


def _sync(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system can be asked to."""
    # Windows opens no folders, and some network file systems refuse to sync them.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
