"""stem-local calibrate"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..cli_types import installed
from ..units import size
from ._options import device_option
from ._output import as_json, cancellable, facts, table

if TYPE_CHECKING:
    from stem_runtime.kernels import Device
    from stem_runtime.sparsity.ffn_profile import FfnProfile, FfnSetting
    from stem_runtime.sparsity.profile import HeadSetting


@click.command()
@click.argument("model", required=False, shell_complete=installed)
@click.option(
    "--text",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A text to calibrate on as well; repeatable.",
)
@click.option(
    "--head-only",
    is_flag=True,
    help="Only the output head, in seconds; the rest of what is known stays.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.")
@click.option("--kernels", metavar="NAME", help="Kernel variant; see stem-local doctor.")
@device_option
def command(
    model: str | None,
    text: tuple[Path, ...],
    head_only: bool,
    json_: bool,
    threads: int | None,
    kernels: str | None,
    device: Device,
) -> None:
    """Learn what MODEL can leave out, and whether that is faster here.

    Takes a few minutes for a small model. Reads a mix of built-in texts and yours, lets the model
    answer a few questions, and keeps what it learned beside the weights. Interrupted, it goes on
    where it stopped when it is run again. With --head-only it learns which words of the vocabulary
    to look at, as stem-local pull does, and not which neurons to skip.

    \b
    Examples:
      stem-local calibrate smollm2-135m
      stem-local calibrate smollm2-135m --head-only
      stem-local calibrate smollm2-135m --text notes.txt --text mails.txt
    """
    from ..calibration import calibrate

    with cancellable() as (bar, cancelled):
        profile = calibrate(
            model,
            text=text,
            head_only=head_only,
            threads=threads,
            kernels=kernels,
            device=device,
            progress=bar.share,
            cancel=cancelled,
        )
    if json_:
        as_json(profile.to_dict())
        return
    if profile.head is not None:
        facts(head_facts(profile.head.setting))
    if profile.ffn is not None:
        facts(ffn_facts(profile.ffn))
        settings_table(profile.ffn.settings)


def head_facts(setting: HeadSetting) -> list[tuple[str, str]]:
    """What calibration found, for people."""
    from ..sparsity import head_refusal

    why = head_refusal(setting, setting.kernels)
    share = setting.head_bytes / setting.dense_head_bytes
    gain = setting.tokens_per_second / setting.dense_tokens_per_second
    return [
        ("sparse head", f"not used: {why}" if why else "used"),
        ("look", f"{setting.dims} axes, margin {setting.margin:.2f}"),
        ("rows", f"{setting.mean_rows:.0f} on average, {setting.limit} at most"),
        ("winners missed", f"{setting.misses} of {setting.positions} held-out positions"),
        (
            "probability kept",
            f"{setting.default_mass:.3%} of what default sampling draws from, "
            f"{setting.warm_mass:.3%} at temperature 1",
        ),
        ("head reads", f"{size(setting.head_bytes)} per token, {share:.0%} of the whole head"),
        (
            "speed",
            f"{setting.tokens_per_second:.0f} tok/s, dense "
            f"{setting.dense_tokens_per_second:.0f} ({gain:.2f}x; {setting.kernels}, "
            f"{setting.threads} threads)",
        ),
    ]


def ffn_facts(ffn: FfnProfile) -> list[tuple[str, str]]:
    """What calibration found out about skipping neurons, for people."""
    paying = [
        f"{setting.name} ({setting.perplexity_change:+.2%} perplexity)"
        for setting in ffn.settings
        if setting.faster
    ]
    trials = [f"{trial.policy} {trial.perplexity_change:+.1%}" for trial in ffn.trials]
    target = f" at {ffn.trials[0].target:.0%} skipped" if ffn.trials else ""
    return [
        ("sparse FFN", f"not used: {ffn.reason}" if ffn.reason else f"pays: {', '.join(paying)}"),
        ("policies", f"{', '.join(trials)} perplexity{target}" if trials else ""),
    ]


def settings_table(settings: Sequence[FfnSetting]) -> None:
    """The measured ways to skip neurons, one a line."""
    head = ("setting", "policy", "neurons", "weights", "perplexity", "tok/s", "dense", "speed")
    rows = [
        (
            setting.name,
            setting.policy,
            f"{setting.active_neurons:.1%}",
            f"{setting.active_parameters:.1%}",
            f"{setting.perplexity_change:+.2%}",
            f"{setting.tokens_per_second:.0f}",
            f"{setting.dense_tokens_per_second:.0f}",
            f"{setting.tokens_per_second / setting.dense_tokens_per_second:.2f}x",
        )
        for setting in settings
    ]
    if rows:
        table(head, rows)
