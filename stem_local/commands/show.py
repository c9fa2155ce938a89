"""stem-local show"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stem_runtime.errors import FormatError

from ._output import as_json, facts, parameters, size

if TYPE_CHECKING:
    from stem_runtime.formats.packed import PackedModel


@click.command()
@click.argument("model")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def command(model: str, json_: bool) -> None:
    """Show an installed model: shape, format, size, source, licence, activation and sparsity.

    MODEL is an installed name or a packed folder.

    \b
    Examples:
      stem-local show smollm2-135m
      stem-local show smollm2-135m --json
    """
    known = _about(model)
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
            *_calibrated(known["calibration"]),
            ("vocabulary", config["vocab_size"]),
            ("context", f"{config['context_length']} tokens"),
            ("licence", known["license"]),
            ("source", known["origin"]),
        ]
    )


def _about(model: str) -> dict[str, Any]:
    from stem_runtime.formats.packed import open_packed

    from .. import catalog, store

    folder = store.resolve(model)
    packed = open_packed(folder)
    source = packed.info["source"]
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
        "calibration": _calibration(packed),
        "source": source,
        "origin": _origin(source),
        "weights_sha256": packed.info.get("weights_sha256"),
    }


def _calibration(packed: PackedModel) -> dict[str, Any] | None:
    """The profile's settings, or what is wrong with it; None for a model that has none."""
    from stem_runtime.sparsity.profile import read_profile

    weights = str(packed.info.get("weights_sha256"))
    try:
        profile = read_profile(packed.folder, packed.config, weights)
    except FormatError as error:
        return {"damage": str(error)}
    return None if profile is None else profile.to_dict()


def _calibrated(calibration: dict[str, Any] | None) -> list[tuple[str, str]]:
    if calibration is None:
        return [("calibration", "none; stem-local calibrate makes one")]
    if damage := calibration.get("damage"):
        return [("calibration", damage)]
    from stem_runtime.sparsity.profile import HeadSetting

    from .calibrate import head_facts

    if calibration["head"] is None:
        return []
    values = dict(calibration["head"])
    values.pop("miss_rate")
    return head_facts(HeadSetting(**values))


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
