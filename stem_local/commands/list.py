"""stem-local list"""

from __future__ import annotations

import dataclasses

import click

from ..units import parameters, size
from ._output import as_json, table


@click.command()
@click.option("--catalog", "known", is_flag=True, help="List the models that can be pulled.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def command(known: bool, json_: bool) -> None:
    """List installed models, or with --catalog those that can be pulled by name.

    \b
    Examples:
      stem-local list
      stem-local list --catalog
      stem-local list --json
    """
    if known:
        _catalog(json_)
    else:
        _installed(json_)


def _installed(json_: bool) -> None:
    from .. import store

    models = store.installed()
    if json_:
        as_json(
            [
                {
                    "name": model.name,
                    "quant": model.info.get("quant"),
                    "parameters": model.info.get("parameters"),
                    "size": model.size,
                    "folder": str(model.folder),
                    "damage": model.damage,
                }
                for model in models
            ]
        )
        return
    if not models:
        click.echo("No model is installed yet; get one with: stem-local pull", err=True)
    rows = (
        (model.name, "damaged", "", size(model.size))
        if model.damage
        else (
            model.name,
            str(model.info["quant"]),
            parameters(model.info["parameters"]),
            size(model.size),
        )
        for model in models
    )
    table(("NAME", "QUANT", "PARAMETERS", "SIZE"), rows)
    for model in models:
        if model.damage:
            click.echo(f"{model.name} is damaged: {model.damage}", err=True)


def _catalog(json_: bool) -> None:
    from .. import catalog

    entries = catalog.entries().values()
    if json_:
        as_json([dataclasses.asdict(entry) for entry in entries])
        return
    table(
        ("NAME", "PARAMETERS", "DOWNLOAD", "ACTIVATION", "SPARSITY", "LICENCE"),
        (
            (
                entry.name,
                parameters(entry.parameters),
                size(entry.download),
                entry.activation,
                f"{entry.sparsity:.0%}" if entry.sparsity else "-",
                entry.license + (" (login needed)" if entry.gated else ""),
            )
            for entry in entries
        ),
    )
