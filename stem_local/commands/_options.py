"""Options that several verbs have, and how their values are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stem_runtime.cache_kinds import CACHE_KINDS
from stem_runtime.kernels import DEVICES

from ..cli_types import quality, sparsity

if TYPE_CHECKING:
    from ..sparsity import Sparsity


def sparsities(value: str) -> tuple[Sparsity, ...]:
    """Several of them with commas between, each once; `all` is none in particular."""
    if value == ALL:
        return ()
    return tuple(dict.fromkeys(sparsity(part.strip()) for part in value.split(",")))


ALL = "all"


sparsity_option = click.option(
    "--sparsity",
    type=sparsity,
    metavar="S",
    default="auto",
    help="What to leave out: auto, off, or a share of the neurons up to 0.95 (auto).",
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    help="Where to compute; auto: on a CUDA card where one can be used (auto).",
)
gpu_memory_option = click.option(
    "--gpu-memory",
    type=float,
    metavar="GB",
    help="Memory of the card to take at most; the rest runs on the CPU (all that is free).",
)
kv_cache_option = click.option(
    "--kv-cache",
    type=click.Choice(CACHE_KINDS),
    help="What to keep of tokens read; int8 takes half the memory, on the CPU only (fp16).",
)
quality_option = click.option(
    "--quality",
    type=quality,
    metavar="Q",
    default="1%",
    help="Perplexity that auto may add: 1% or 0.01 (1%).",
)
