"""Values that are typed on a command line: how they are read, and how a shell completes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from stem_runtime.errors import UsageError

from .chat_settings import read_quality, read_sparsity

if TYPE_CHECKING:
    from .sparsity import Sparsity


def sparsity(value: str) -> Sparsity:
    """auto, off, or a share of the neurons. Raises UsageError."""
    word = value.strip().lower()
    try:
        float(word.removesuffix("%"))
    except ValueError:
        if word not in ("auto", "off"):
            raise UsageError(
                f"--sparsity takes auto, off or shares of the neurons such as 0.3, not "
                f"{value!r:.40}; the name of a model comes before it, and so does a question."
            ) from None
    return read_sparsity(word)


def quality(value: str) -> float:
    """A rise of perplexity, as a share or in percent. Raises UsageError."""
    return read_quality(value)


def as_text(argument: str) -> str:
    """An argument with what is not Unicode in it replaced, as it is in piped input."""
    return argument.encode(errors="surrogatepass").decode(errors="replace")


def installed(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem[str]]:
    """Names of installed models, or folders where a path is being typed."""
    del context, parameter
    if _is_path(typed):
        return [CompletionItem(typed, type="dir")]
    from .store import names

    return [CompletionItem(name) for name in names() if name.startswith(typed.lower())]


def known(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem[str]]:
    """Names in the catalogue, or files where a path is being typed."""
    del context, parameter
    if _is_path(typed):
        return [CompletionItem(typed, type="file")]
    from .catalog import entries
    from .units import size

    return [
        # fish takes what follows a comma for something else
        CompletionItem(name, help=f"{size(entry.download)} · {entry.license}")
        for name, entry in entries().items()
        if name.startswith(typed.lower())
    ]


def _is_path(typed: str) -> bool:
    return typed.startswith((".", "~")) or "/" in typed or "\\" in typed
