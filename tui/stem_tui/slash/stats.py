"""The figures of an answer as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from stem_local import units
from stem_local.errors import UsageError

from ..widgets.figures import number, numbers, strip

if TYPE_CHECKING:
    from ..screens.chat import ChatScreen

WIDTH = 40
"""Cells of the strip of layers."""


async def last_answer(chat: ChatScreen) -> str:
    """Figures of the chat's last answer, as Markdown. UsageError where there is none."""
    from .conversation import opened

    for entry in reversed((await opened(chat)).entries):
        if entry.stats and "completion_tokens" in entry.stats:
            return page(entry.stats)
    raise UsageError("There is no answer with figures in this chat yet.")


def page(stats: Mapping[str, Any]) -> str:
    """`Stats.to_dict()`, which may come from an imported file, as Markdown."""
    return "\n".join(f"- **{name}**: {value}" for name, value in _rows(stats))


def _rows(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    figure = {name: number(value) for name, value in stats.items()}.get
    for name in ("model", "kernels", "sparsity"):
        if isinstance(stats.get(name), str):
            yield name, _plain(stats[name])
    yield "answer", f"{figure('completion_tokens') or 0:,.0f} tokens"
    if speed := figure("tokens_per_second"):
        yield "speed", units.rate(speed)
    if drafted := figure("drafted_tokens"):
        held = f"{figure('accepted_tokens') or 0:,.0f} of {drafted:,.0f} drafted tokens held"
        yield "steps", f"{figure('tokens_per_step') or 0:.1f} tokens a step ({held})"
    if first := figure("time_to_first_token"):
        yield "first token", f"after {first:.2f} s"
    reused = figure("reused_tokens") or 0
    yield (
        "prompt",
        f"{figure('prompt_tokens') or 0:,.0f} tokens, {reused:,.0f} of them known already",
    )
    if speed := figure("prefill_tokens_per_second"):
        yield "reading", units.rate(speed)
    if (active := figure("active_parameters")) and (total := figure("total_parameters")):
        share = f"{active / total:.0%}"
        yield "active", f"{units.parameters(active)} of {units.parameters(total)} ({share}) a token"
    if layers := numbers(stats.get("layer_active_fraction")):
        yield "layers", strip(layers, WIDTH)
    if bandwidth := figure("gb_per_second"):
        yield "memory read", f"{bandwidth:.1f} GB/s"
    if joules := figure("joules_per_token"):
        yield "energy", f"{joules:.3f} J a token"
    if threads := figure("threads"):
        yield "threads", f"{threads:.0f}"


def _plain(text: str) -> str:
    """Text of unknown origin as one line of Markdown that shows it as it is."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>" else c for c in " ".join(text.split()))
