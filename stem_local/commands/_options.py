"""Options that several verbs have, and how their values are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stem_runtime.errors import UsageError

if TYPE_CHECKING:
    from ..sparsity import Sparsity


def sparsity(value: str | float) -> Sparsity:
    """auto, off, or a share of the neurons. Raises UsageError."""
    from ..sparsity import check_sparsity

    try:
        return check_sparsity(float(value))
    except ValueError:
        if value in ("auto", "off"):
            return check_sparsity(value)
    raise UsageError(
        f"--sparsity takes auto, off or shares of the neurons such as 0.3, not {value!r:.40}; "
        "the name of a model comes before it."
    )


def sparsities(value: str) -> tuple[Sparsity, ...]:
    """Several of them with commas between, each once; `all` is none in particular."""
    if value == ALL:
        return ()
    return tuple(dict.fromkeys(sparsity(part.strip()) for part in value.split(",")))


ALL = "all"


def quality(value: str | float) -> float:
    """A rise of perplexity, as a share or in percent. Raises UsageError."""
    from ..sparsity import check_quality

    text = str(value)
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return check_quality(value)
    return check_quality(number / 100 if text.endswith("%") else number)


sparsity_option = click.option(
    "--sparsity",
    type=sparsity,
    metavar="S",
    default="auto",
    help="What to leave out: auto, off, or a share of the neurons up to 0.95 (auto).",
)
quality_option = click.option(
    "--quality",
    type=quality,
    metavar="Q",
    default="1%",
    help="Perplexity that auto may add: 1% or 0.01 (1%).",
)
