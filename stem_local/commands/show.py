"""stem-local show"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..cli_types import installed
from ..units import parameters, size
from ._output import Bar, as_json, facts

if TYPE_CHECKING:
    from stem_runtime.formats.packed import PackedModel

    from ..sparsity import Calibrated


@click.command()
@click.argument("model", shell_complete=installed)
@click.option("--verify", is_flag=True, help="Read all its files, to see that none is damaged.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def command(model: str, verify: bool, json_: bool) -> None:
    """Show an installed model: shape, format, size, source, licence, activation and sparsity.

    MODEL is an installed name or a packed folder.

    \b
    Examples:
      stem-local show smollm2-135m
      stem-local show smollm2-135m --verify
      stem-local show smollm2-135m --json
    """
    from stem_runtime.formats.packed import open_packed
    from stem_runtime.kernels import choose

    from .. import store
    from ..sparsity import Calibrated
    from .calibrate import settings_table

    packed = open_packed(store.resolve(model))
    intact = _verified(packed) if verify else None
    calibrated = Calibrated(packed, choose().name)
    known = {**_about(packed, calibrated), **({} if intact is None else {"intact": intact})}
    if json_:
        as_json(known)
        return
    config = known["config"]
    facts(
        [
            ("name", known["name"]),
            ("folder", known["folder"]),
            ("size", size(known["size"])),
            ("parameters", parameters(known["parameters"])),
            ("quant", known["quant"]),
            ("family", config["family"]),
            ("layers", f"{config['n_layers']} of width {config['d_model']}"),
            ("heads", f"{config['n_heads']}, {config['kv_heads']} for keys and values"),
            ("ffn", f"{config['ffn_dim']} neurons, {config['activation']}"),
            ("sparsity", known["sparsity"]),
            *_calibrated(known, calibrated),
            ("vocabulary", config["vocab_size"]),
            ("context", f"{config['context_length']} tokens"),
            ("licence", known["license"]),
            ("source", known["origin"]),
            ("intact", ", ".join(intact or ())),
        ]
    )
    if calibrated.ffn is not None:
        settings_table(calibrated.ffn.settings)


def _verified(packed: PackedModel) -> list[str]:
    """The files that were read whole. Raises FormatError for one that is damaged."""
    from stem_runtime.verify import verify

    with Bar() as bar:
        return verify(packed, partial(bar.share, "Reading"))


def _about(packed: PackedModel, calibrated: Calibrated) -> dict[str, Any]:
    from .. import catalog

    folder, source = packed.folder, packed.info["source"]
    entry = catalog.find(source.get("spec") or "")
    files = (path for path in folder.iterdir() if path.is_file())
    return {
        "name": packed.info["name"],
        "folder": str(folder),
        "size": sum(path.stat().st_size for path in files),
        "parameters": packed.parameters,
        "quant": packed.info.get("quant"),
        "config": packed.config.to_dict(),
        "license": packed.info.get("license") or source.get("license"),
        "sparsity": _sparsity(entry, packed.config.activation),
        "calibration": _calibration(calibrated),
        "auto": _auto(packed, calibrated),
        "source": source,
        "origin": _origin(source),
        "weights_sha256": packed.info.get("weights_sha256"),
    }


def _calibration(calibrated: Calibrated) -> dict[str, Any] | None:
    """The profile's settings, or what is wrong with it; None for a model that has none."""
    if calibrated.profile is not None:
        return calibrated.profile.to_dict()
    return {"damage": calibrated.problem} if calibrated.damaged else None


def _auto(packed: PackedModel, calibrated: Calibrated) -> dict[str, Any]:
    """What auto leaves out with the kernels in use here, and what calibration measured of it."""
    from ..cost import measured_parameters

    choice, setting = calibrated.choose("auto"), calibrated.best()
    head = calibrated.head if choice.look else None
    active = measured_parameters(packed, head, setting)
    return {
        "sparsity": choice.reason,
        "setting": None if setting is None else setting.name,
        "perplexity_change": 0.0 if setting is None else setting.perplexity_change,
        "active_parameters": active,
        "total_parameters": packed.parameters,
        "active_fraction": active / packed.parameters,
    }


def _calibrated(known: dict[str, Any], calibrated: Calibrated) -> list[tuple[str, str]]:
    if known["calibration"] is None:
        return [("calibration", "none; stem-local calibrate makes one")]
    if calibrated.problem:
        return [("calibration", calibrated.problem)]
    from .calibrate import head_facts

    auto = known["auto"]
    active, share = parameters(auto["active_parameters"]), auto["active_fraction"]
    return [
        ("auto", auto["sparsity"]),
        ("active", f"{active} of {parameters(auto['total_parameters'])} ({share:.0%})"),
        *([] if calibrated.head is None else head_facts(calibrated.head)),
        ("sparse FFN", calibrated.ffn_unknown and f"not used: {calibrated.ffn_unknown}"),
    ]


def _sparsity(entry: Any, activation: str) -> str:
    if entry is not None and entry.sparsity:
        return (
            f"{entry.sparsity:.0%} of neurons zero for an average token ({entry.sparsity_source})"
        )
    if activation in ("relu", "fatrelu", "relu2", "drelu"):
        return f"{activation} gives exact zeros; how many is not known"
    return f"none by itself: {activation} is never exactly zero"


def _origin(source: dict[str, Any]) -> str:
    if package := source.get("package"):
        return f"Python package index, {package} ({source.get('file')})"
    if repo := source.get("repo"):
        file = f", {source['file']}" if source.get("file") else ""
        return f"Hub, {repo}@{str(source.get('revision'))[:12]}{file}"
    return str(source.get("spec") or source.get("file") or "")
