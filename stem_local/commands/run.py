"""stem-local run"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from stem_runtime.errors import UsageError

from ..cli_types import installed
from ..oneshot import full_prompt, open_model, piped_input
from ..terminal import interruptible, line_chat, print_answer, print_json, tell
from ._options import (
    device_option,
    gpu_memory_option,
    kv_cache_option,
    quality_option,
    sparsity_option,
)

if TYPE_CHECKING:
    from stem_runtime.cache_kinds import CacheKind
    from stem_runtime.kernels import Device

    from ..sparsity import Sparsity

INTERRUPTED = 130


@click.command()
@click.argument("model", required=False, shell_complete=installed)
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="System message to begin with.")
@click.option("--max-tokens", type=int, metavar="N", help="Most tokens to answer with (512).")
@click.option("--temperature", type=float, metavar="T", help="0 always takes the likeliest token.")
@click.option("--top-k", type=int, metavar="K", help="Choose among the K likeliest tokens.")
@click.option("--top-p", type=float, metavar="P", help="Choose among tokens that make up P.")
@click.option("--min-p", type=float, metavar="P", help="Leave out tokens under P of the likeliest.")
@click.option("--repetition-penalty", type=float, metavar="R", help="Over 1: repeat less.")
@click.option("--seed", type=int, metavar="N", help="Same seed, same text.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer here; repeatable.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it stands, without a template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--stats", is_flag=True, help="Print a line of figures on standard error.")
@click.option(
    "--context-policy",
    type=click.Choice(["stop", "drop_oldest"]),
    help="What to do when the conversation outgrows the context (stop).",
)
@sparsity_option
@quality_option
@click.option(
    "--draft/--no-draft",
    default=True,
    help="Guess tokens from the text so far and read them along: the same text, sooner (on).",
)
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.")
@click.option("--context", type=int, metavar="N", help="Tokens of prompt and answer (8192).")
@click.option("--kernels", metavar="NAME", help="Kernel variant; see stem-local doctor.")
@device_option
@gpu_memory_option
@kv_cache_option
def command(
    model: str | None,
    prompt: str | None,
    system: str | None,
    stop: tuple[str, ...],
    raw: bool,
    as_json: bool,
    stats: bool,
    sparsity: Sparsity,
    quality: float,
    threads: int | None,
    context: int | None,
    kernels: str | None,
    device: Device,
    gpu_memory: float | None,
    kv_cache: CacheKind | None,
    **sampling: Any,
) -> None:
    """Answer PROMPT with MODEL, or chat when there is no prompt.

    Piped input is the prompt, or follows PROMPT after an empty line. MODEL is a name or a folder,
    the default model if left out.

    \b
    Examples:
      stem-local run
      stem-local run smollm2-135m "Why is the sky blue?"
      stem-local run smollm2-135m "Summarise this:" < notes.txt
      stem-local run smollm2-135m --raw "Once upon a time" --seed 7
      stem-local run smollm2-135m "Name a colour" --json
      stem-local run smollm2-135m "Name a colour" --sparsity 0.3 --stats
    """
    text = full_prompt(prompt, piped_input())
    if text is None and (raw or as_json):
        raise UsageError("--raw and --json need a prompt: give one, or pipe it in.")
    if text is None and (sys.stdin is None or sys.stdin.closed):
        raise UsageError("There is no input to chat with; give a prompt.")
    options = {name: value for name, value in sampling.items() if value is not None}
    if stop:
        options["stop"] = stop
    with open_model(
        model,
        threads=threads,
        context=context,
        kernels=kernels,
        device=device,
        gpu_memory=gpu_memory,
        kv_cache=kv_cache,
        sparsity=sparsity,
        quality=quality,
    ) as loaded:
        if text is None:
            line_chat(loaded.chat(system=system, **options), stats)
            return
        with interruptible() as cancel:
            chunks = loaded.stream(text, system=system, raw=raw, cancel=cancel, **options)
            last = print_json(chunks) if as_json else print_answer(chunks)
    if stats:
        tell(str(last.stats))
    if last.finish_reason == "cancelled":
        raise click.exceptions.Exit(INTERRUPTED)
