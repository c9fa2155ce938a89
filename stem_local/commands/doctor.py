"""stem-local doctor"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from ..cli import failure
from ..units import size
from ._output import as_json, facts

_PROBLEM = "problem"
"""The one key of what could not be looked at."""

T = TypeVar("T")
Lines = Iterable[tuple[str, object]]

_FEATURES = (
    *("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vnni", "avx512bf16"),
    *("amx-int8", "neon", "dotprod", "i8mm", "bf16", "sve", "sve2"),
)
"""CPU features that matter to kernels, by LLVM's names."""


@click.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def command(json_: bool) -> None:
    """Tell what this machine offers, which kernels run on it, and what is set up.

    \b
    Examples:
      stem-local doctor
      stem-local doctor --json
    """
    found: dict[str, Any] = {name: _tried(look) for name, (look, _) in _SECTIONS.items()}
    device = found["device"]
    found["models"] = _tried(lambda: _models(None if _PROBLEM in device else device))
    if json_:
        as_json(found)
        return
    lines = [_lines(name, found[name], tell) for name, (_, tell) in _SECTIONS.items()]
    on_card = device.get("backend", "cpu") != "cpu"
    lines.append(_lines("installed", found["models"], partial(_tell_models, on_card)))
    facts(line for section in lines for line in section)


def _tried(look: Callable[[], T]) -> T | dict[str, Any]:
    """What a look finds, or what went wrong: whatever it is, the others are still told."""
    try:
        return look()
    except Exception as error:
        return {_PROBLEM: failure(error).message}


def _lines(name: str, found: Any, tell: Callable[[Any], Lines]) -> Lines:
    if _PROBLEM in found:
        return [(name.replace("_", " "), found[_PROBLEM])]
    return tell(found)


def _machine() -> dict[str, Any]:
    from stem_runtime.kernels.host import host_cpu

    from .._version import __version__

    cpu, features = host_cpu()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu,
        "cpu_features": [name for name in _FEATURES if name in features],
        "cpus": os.cpu_count(),
    }


def _tell_machine(machine: dict[str, Any]) -> Lines:
    return [
        ("stem-local", f"{machine['version']}, Python {machine['python']}"),
        ("system", machine["system"]),
        ("cpu", f"{machine['cpu']}, {machine['cpus']} logical cores"),
        ("cpu features", " ".join(machine["cpu_features"]) or "none that kernels use"),
    ]


def _kernels() -> dict[str, Any]:
    from stem_runtime.errors import KernelError
    from stem_runtime.kernels import available, choose
    from stem_runtime.threads import default_threads

    try:
        choice = choose()
        name, reason = choice.name, choice.reason
    except KernelError as error:
        name, reason = None, str(error)
    return {
        "variant": name,
        "reason": reason,
        "missing_for": available(),
        "threads": default_threads(),
    }


def _tell_kernels(kernels: dict[str, Any]) -> Lines:
    return [
        ("kernels", f"{kernels['variant'] or 'none'} ({kernels['reason']})"),
        ("could run", ", ".join(n for n, lacks in kernels["missing_for"].items() if not lacks)),
        ("threads", kernels["threads"]),
    ]


def _bandwidth() -> dict[str, Any]:
    from stem_runtime.bandwidth import measure
    from stem_runtime.threads import default_threads

    threads = default_threads()
    try:
        speed = round(measure(threads).gb_per_second, 1)
    except MemoryError:
        speed = None
    return {"gb_per_second": speed, "threads": threads}


def _tell_bandwidth(bandwidth: dict[str, Any]) -> Lines:
    speed = bandwidth["gb_per_second"]
    return [("memory", f"{speed} GB/s read" if speed else "too little to measure its speed")]


def _device() -> dict[str, Any]:
    from stem_runtime.kernels import choose_device

    return asdict(choose_device())


def _tell_device(device: dict[str, Any]) -> Lines:
    room = "" if device["room"] is None else f", {size(device['room'])} of its memory free"
    return [("device", f"{device['name']} ({device['reason']}){room}")]


def _folders() -> dict[str, Any]:
    from stem_runtime import paths

    from .. import store

    folders = {
        "models": store.models_dir(),
        "kernel_cache": paths.cache_dir() / "kernels",
        "downloads": paths.cache_dir() / "downloads",
        "config": paths.config_dir(),
    }
    return {name: _tried(partial(_folder, path)) for name, path in folders.items()}


def _folder(path: Path) -> dict[str, Any]:
    # unlike Path.exists, False of what lies in a folder that cannot be looked into
    standing = next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110
    if not standing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "Not a folder", str(standing))
    return {
        "path": str(path),
        "bytes": _held(path),
        "free": shutil.disk_usage(standing).free,
        "writable": os.access(standing, os.W_OK),
    }


def _held(folder: Path) -> int:
    """Bytes of the files below it, which others may be deleting meanwhile."""
    held = 0
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                held += (Path(root) / file).stat().st_size
    return held


def _tell_folders(folders: dict[str, Any]) -> Lines:
    for name, folder in folders.items():
        yield from _lines(name, folder, partial(_tell_folder, name))


def _tell_folder(name: str, folder: dict[str, Any]) -> Lines:
    told = f"{folder['path']} ({size(folder['bytes'])}, {size(folder['free'])} free)"
    yield name.replace("_", " "), told if folder["writable"] else told + " NOT WRITABLE"


def _settings() -> dict[str, Any]:
    from ..config import config_file, load_config

    load_config()
    file = config_file()
    return {"file": str(file), "there": file.exists()}


def _tell_settings(settings: dict[str, Any]) -> Lines:
    return [("settings", settings["file"] if settings["there"] else "none changed")]


def _network() -> dict[str, Any]:
    from huggingface_hub import constants, get_token

    return {
        "hub": constants.ENDPOINT,
        "hub_cache": constants.HF_HUB_CACHE,
        "offline": bool(constants.HF_HUB_OFFLINE),
        "logged_in": get_token() is not None,
    }


def _tell_network(network: dict[str, Any]) -> Lines:
    return [
        ("hub", network["hub"] + (", offline (HF_HUB_OFFLINE)" if network["offline"] else "")),
        ("hub login", "yes" if network["logged_in"] else "no (needed for gated models only)"),
        ("hub cache", network["hub_cache"]),
    ]


_SECTIONS: Mapping[str, tuple[Callable[[], dict[str, Any]], Callable[[Any], Lines]]] = {
    "machine": (_machine, _tell_machine),
    "kernels": (_kernels, _tell_kernels),
    "memory_bandwidth": (_bandwidth, _tell_bandwidth),
    "device": (_device, _tell_device),
    "folders": (_folders, _tell_folders),
    "settings": (_settings, _tell_settings),
    "network": (_network, _tell_network),
}
"""What is looked at, in this order, and how it is told."""


def _models(device: dict[str, Any] | None) -> list[dict[str, Any]]:
    """`device` is None where it could not be looked at."""
    from .. import store

    return [
        {
            "name": model.name,
            "size": model.size,
            "damage": model.damage or _damaged_profile(model.folder),
            "placement": "" if model.damage or not device else _placement(model.folder, device),
        }
        for model in store.installed()
    ]


def _damaged_profile(folder: Path) -> str | None:
    """What is wrong with what calibration learned; the model runs without it."""
    from stem_runtime.errors import StemError
    from stem_runtime.formats.packed import open_packed

    from ..sparsity import Calibrated

    try:
        calibrated = Calibrated(open_packed(folder), "")
    except StemError as error:  # removed since by another process
        return str(error)
    return calibrated.problem if calibrated.damaged else None


def _placement(folder: Path, device: dict[str, Any]) -> str:
    """What of a model goes where as things are, and why not all of it on the card."""
    from stem_runtime.errors import StemError
    from stem_runtime.formats.packed import open_packed
    from stem_runtime.kernels import DeviceChoice

    from ..api import DEFAULT_CONTEXT
    from ..equipment import BARE, placed
    from ..sparsity import Calibrated

    try:
        packed = open_packed(folder)
        context = min(DEFAULT_CONTEXT, packed.config.context_length)
        choice = DeviceChoice(**device)
        calibrated = Calibrated(packed, choice.name)
        equipment = BARE.with_(calibrated.choose("auto"))
        found = placed(packed, calibrated, equipment, context, choice)
    except StemError as error:
        return f"on the CPU: {error}"
    if found is not None:
        return found.describe()
    where = "CPU" if choice.backend == "cpu" else "card"
    return f"all {packed.config.n_layers} layers on the {where}"


def _tell_models(on_card: bool, models: list[dict[str, Any]]) -> Lines:
    named = (f"{m['name']} ({'damaged' if m['damage'] else size(m['size'])})" for m in models)
    yield "installed", ", ".join(named) or "no model yet"
    for model in models:
        yield model["name"], model["damage"] or (model["placement"] if on_card else "")
