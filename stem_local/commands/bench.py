"""stem-local bench"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from stem_runtime.errors import UsageError

from ..cli_types import installed
from ..units import parameters, size
from ._options import (
    ALL,
    device_option,
    gpu_memory_option,
    kv_cache_option,
    quality_option,
    sparsities,
)
from ._output import as_json as print_json
from ._output import cancellable, table

if TYPE_CHECKING:
    from stem_runtime.cache_kinds import CacheKind
    from stem_runtime.kernels import Device

    from ..ablation import Ablation
    from ..model import Model
    from ..sparsity import Sparsity
    from ..sweep import SweepRow


@click.command()
@click.argument("model", required=False, shell_complete=installed)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--contexts", default="128", metavar="N,N", help="Contexts to decode at (128).")
@click.option("--tokens", default=64, type=click.IntRange(1), help="Tokens per decode run (64).")
@click.option("--repeats", default=5, type=click.IntRange(1), help="Runs per figure (5).")
@click.option("--start/--no-start", default=True, help="Time fresh starts too; cold ones compile.")
@click.option(
    "--sparsity",
    type=sparsities,
    is_flag=False,
    flag_value=ALL,
    metavar="[S,S]",
    help="Compare settings instead: auto, off, shares of the neurons; alone, all calibrated ones.",
)
@click.option(
    "--ablate",
    is_flag=True,
    help="Add one control after the other instead, on four kinds of text; takes minutes.",
)
@quality_option
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.")
@click.option("--kernels", metavar="NAME", help="Kernel variant; see stem-local doctor.")
@device_option
@gpu_memory_option
@kv_cache_option
def command(
    model: str | None,
    as_json: bool,
    contexts: str,
    tokens: int,
    repeats: int,
    start: bool,
    sparsity: tuple[Sparsity, ...] | None,
    ablate: bool,
    quality: float,
    threads: int | None,
    kernels: str | None,
    device: Device,
    gpu_memory: float | None,
    kv_cache: CacheKind | None,
) -> None:
    """Measure the prefill and decode speed of MODEL, its memory, and its time to start.

    Speeds are medians over several runs that take turns, and leave sampling and drafts out. Memory
    bandwidth is the ceiling of decoding one token at a time: it cannot come faster than its weights
    are read.

    \b
    Examples:
      stem-local bench smollm2-135m
      stem-local bench smollm2-135m --contexts 128,4096 --json
      stem-local bench smollm2-135m --contexts 4096 --kv-cache int8
      stem-local bench smollm2-135m --sparsity
      stem-local bench smollm2-135m --sparsity off,auto,0.3
      stem-local bench smollm2-135m --ablate --sparsity 0.3
    """
    from ..api import load
    from ..benchmark import measure, time_starts

    places = parse_contexts(contexts)
    with load(
        model,
        threads=threads,
        kernels=kernels,
        device=device,
        gpu_memory=gpu_memory,
        kv_cache=kv_cache,
        quality=quality,
    ) as loaded:
        if ablate:
            show_ablation(ablated(loaded, sparsity), as_json)
            return
        if sparsity is not None:
            from ..sweep import sweep

            rows = sweep(
                loaded, sparsity or None, tokens=tokens, repeats=repeats, context=places[0]
            )
            show_sweep(loaded, rows, as_json)
            return
        report = measure(loaded, places, tokens, repeats)
        folder = loaded.packed.folder
    if start:
        report["first_token_seconds"] = time_starts(folder, threads, kernels)
    if as_json:
        print_json(report)
    else:
        click.echo(speeds(report))


def parse_contexts(text: str) -> list[int]:
    try:
        places = [int(part) for part in text.split(",")]
    except ValueError:
        places = []
    if not places or min(places) < 1:
        raise UsageError(f"--contexts takes positive numbers with commas between, not {text!r}.")
    return places


def ablated(model: Model, sparsity: tuple[Sparsity, ...] | None) -> Ablation:
    """Run the ablation with a bar; the share of neurons may be given. Raises UsageError."""
    from ..ablation import ablate

    share = None
    if sparsity:
        if len(sparsity) > 1 or isinstance(sparsity[0], str):
            raise UsageError("--ablate takes one share of the neurons: --sparsity 0.3.")
        share = float(sparsity[0])
    with cancellable() as (bar, cancelled):
        return ablate(model, share, progress=bar.share, cancel=cancelled)


def show_sweep(model: Model, rows: Sequence[SweepRow], as_json: bool) -> None:
    if as_json:
        settings = [row.to_dict() for row in rows]
        print_json({"model": model.info.to_dict(), "settings": settings})
        return
    head = ("setting", "tok/s", "against off", "active", "", "bytes", "GB/s", "perplexity")
    dense = next((row.run.tokens_per_second for row in rows if row.setting == "off"), None)
    table(head, [_sweep_cells(row, dense) for row in rows])
    for row in rows:
        if row.setting == "auto":
            click.echo(f"auto: {row.about}")


def _sweep_cells(row: SweepRow, dense: float | None) -> list[str]:
    run, change = row.run, row.perplexity_change
    return [
        row.setting,
        f"{run.tokens_per_second:.1f}",
        "" if dense is None else f"{run.tokens_per_second / dense:.2f}x",
        parameters(run.cost.active_parameters),
        f"{run.cost.active_fraction:.1%}",
        size(run.cost.bytes_per_token),
        f"{run.gb_per_second:.1f}",
        "not measured" if change is None else f"{change:+.2%}",
    ]


def show_ablation(ablation: Ablation, as_json: bool) -> None:
    if as_json:
        print_json(ablation.to_dict())
        return
    click.echo(f"{ablation.share:.0%} of the neurons left out; {ablation.model}")
    head = ("control", "text", "active", "", "perplexity", "tok/s")
    rows = [
        [
            stage.control,
            workload,
            parameters(figures.active_parameters),
            f"{figures.active_fraction:.1%}",
            f"{figures.perplexity:.3f}",
            f"{figures.tokens_per_second:.1f}",
        ]
        for stage in ablation.stages
        for workload, figures in stage.figures.items()
    ]
    table(head, rows)
    for stage in ablation.stages:
        click.echo(f"{stage.control}: {stage.verdict}")


def speeds(report: dict[str, Any]) -> str:
    """The report as aligned lines for a person."""
    model = report["model"]
    lines = [
        f"{model['name']}  {model['parameters'] / 1e6:.0f}M parameters, {model['quant']}, "
        f"{model['nbytes'] / 1e6:.0f} MB; {model['kernels']} on {model['threads']} threads, "
        f"{model['kv_cache']} KV cache",
        "",
    ]
    lines += [
        f"prefill  {row['tokens']:>6} tokens   {row['tokens_per_second']:>9.1f} tok/s"
        for row in report["prefill"]
    ]
    lines += [
        f"decode   at {row['context']:>6} ctx   {row['tokens_per_second']:>9.1f} tok/s"
        f"  {row['gb_per_second']:>6.1f} GB/s  {row['bandwidth_share']:>4.0%} of memory bandwidth"
        f"{_left_out(row)}"
        for row in report["decode"]
    ]
    lines.append(f"sparsity              {report['sparsity']}")
    lines.append(f"memory bandwidth      {report['memory_gb_per_second']:>11.1f} GB/s")
    if report["peak_memory_bytes"] is not None:
        lines.append(f"peak memory           {report['peak_memory_bytes'] / 1e6:>11.1f} MB")
    for kind, seconds in report.get("first_token_seconds", {}).items():
        lines.append(f"first token, {kind:<9}{seconds:>11.2f} s")
    return "\n".join(lines)


def _left_out(row: dict[str, Any]) -> str:
    if row["sparsity"] == "off":
        return ""
    return f", {row['active_fraction']:.0%} of parameters, {row['head_rows']:.0f} rows of the head"
