"""stem-local doctor"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..units import size
from ._output import as_json, facts

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
    found: dict[str, Any] = {
        "machine": _machine(),
        "kernels": _kernels(),
        "memory_bandwidth": _bandwidth(),
        "device": _device(),
        "folders": _folders(),
        "network": _network(),
    }
    found["models"] = _models(found["device"])
    if json_:
        as_json(found)
    else:
        _show(found)


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


def _device() -> dict[str, Any]:
    from stem_runtime.kernels import choose_device

    return asdict(choose_device())


def _bandwidth() -> dict[str, Any]:
    from stem_runtime.bandwidth import measure
    from stem_runtime.threads import default_threads

    threads = default_threads()
    try:
        speed = round(measure(threads).gb_per_second, 1)
    except MemoryError:
        speed = None
    return {"gb_per_second": speed, "threads": threads}


def _folders() -> dict[str, Any]:
    from stem_runtime import paths

    from .. import store

    folders = {
        "models": store.models_dir(),
        "kernel_cache": paths.cache_dir() / "kernels",
        "downloads": paths.cache_dir() / "downloads",
        "config": paths.config_dir(),
    }
    return {name: _folder(path) for name, path in folders.items()}


def _folder(path: Path) -> dict[str, Any]:
    standing = next(p for p in (path, *path.parents) if p.exists())
    held = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "path": str(path),
        "bytes": held,
        "free": shutil.disk_usage(standing).free,
        "writable": os.access(standing, os.W_OK),
    }


def _network() -> dict[str, Any]:
    from huggingface_hub import constants, get_token

    return {
        "hub": constants.ENDPOINT,
        "hub_cache": constants.HF_HUB_CACHE,
        "offline": bool(constants.HF_HUB_OFFLINE),
        "logged_in": get_token() is not None,
    }


def _models(device: dict[str, Any]) -> list[dict[str, Any]]:
    from .. import store

    return [
        {
            "name": model.name,
            "size": model.size,
            "damage": model.damage,
            "placement": "" if model.damage else _placement(model.folder, device),
        }
        for model in store.installed()
    ]


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


def _show(found: dict[str, Any]) -> None:
    machine, kernels, network = found["machine"], found["kernels"], found["network"]
    speed, device = found["memory_bandwidth"]["gb_per_second"], found["device"]
    room = "" if device["room"] is None else f", {size(device['room'])} of its memory free"
    facts(
        [
            ("stem-local", f"{machine['version']}, Python {machine['python']}"),
            ("system", machine["system"]),
            ("cpu", f"{machine['cpu']}, {machine['cpus']} logical cores"),
            ("cpu features", " ".join(machine["cpu_features"]) or "none that kernels use"),
            ("kernels", f"{kernels['variant'] or 'none'} ({kernels['reason']})"),
            ("could run", ", ".join(n for n, lacks in kernels["missing_for"].items() if not lacks)),
            ("threads", kernels["threads"]),
            ("memory", f"{speed} GB/s read" if speed else "too little to measure its speed"),
            ("device", f"{device['name']} ({device['reason']}){room}"),
            *((name.replace("_", " "), _told(about)) for name, about in found["folders"].items()),
            ("hub", network["hub"] + (", offline (HF_HUB_OFFLINE)" if network["offline"] else "")),
            ("hub login", "yes" if network["logged_in"] else "no (needed for gated models only)"),
            ("hub cache", network["hub_cache"]),
            ("installed", ", ".join(_model(model) for model in found["models"]) or "no model yet"),
            *(
                (model["name"], model["placement"])
                for model in found["models"]
                if device["backend"] != "cpu"
            ),
        ]
    )


def _told(folder: dict[str, Any]) -> str:
    told = f"{folder['path']} ({size(folder['bytes'])}, {size(folder['free'])} free)"
    return told if folder["writable"] else told + " NOT WRITABLE"


def _model(model: dict[str, Any]) -> str:
    return f"{model['name']} ({'damaged' if model['damage'] else size(model['size'])})"
