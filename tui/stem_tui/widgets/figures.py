"""Figures as text: bars and strips that need no colour to be read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stem_local.units import parameters as parameters
from stem_local.units import rate as rate

LEVELS = "▁▂▃▄▅▆▇█"

FOCUSED = "▸"
"""Stands before the one of several controls that the keys go to."""

SUMMARY_BLOCKS = 16
LONGEST = 40


def strip(fractions: Sequence[float], width: int) -> str:
    """One block per fraction of 0 to 1, from ▁ to █; means of neighbours where there is no room.

    Only what is computed whole, to half a percent, is drawn as █: any neuron left out shows.
    """
    shown = min(len(fractions), width)
    if shown <= 0:
        return ""
    cuts = [len(fractions) * i // shown for i in range(shown + 1)]
    groups = (fractions[cuts[i] : cuts[i + 1]] for i in range(shown))
    return "".join(_level(math.fsum(group) / len(group)) for group in groups)


def _level(fraction: float) -> str:
    top = len(LEVELS) - 1
    return LEVELS[int(_clamped(fraction) * top + 0.005 * top)]


def bar(fraction: float, width: int) -> str:
    """A line that is heavy as far as the fraction of 0 to 1 goes.

    It begins with what is more than nothing, and is full only where nothing is missing.
    """
    fraction = _clamped(fraction)
    filled = round(fraction * width)
    if 0 < fraction < 1 and width > 1:
        filled = min(max(filled, 1), width - 1)
    return "━" * filled + "─" * (width - filled)


def _clamped(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0


def brief(sparsity: str) -> str:
    """What `Stats.sparsity` says was left out, without the measurements behind it."""
    found = []
    for clause in sparsity.split("; "):
        part, _, about = clause.partition(": ")
        if part.startswith(("sparse ", "whole ")):
            share = re.match(r"(\d+%) of the neurons left out", about)
            found.append(f"{part} ({share[1]} left out)" if share else part)
    if found:
        return ", ".join(found)
    return sparsity if len(sparsity) <= LONGEST else sparsity.partition(":")[0][:LONGEST]


def summary(stats: Mapping[str, Any]) -> str:
    """One line about a finished answer, of `Stats.to_dict()`; what it lacks is left out.

    The mapping may come from an imported file: nothing in it is taken on trust.
    """
    speed = number(stats.get("tokens_per_second"))
    active, total = (number(stats.get(f"{name}_parameters")) for name in ("active", "total"))
    parts = []
    if speed:
        parts.append(rate(speed))
    if active and total:
        share = min(active / total, 1.0)
        parts.append(f"{parameters(active)} of {parameters(total)} active ({share:.0%})")
    if layers := numbers(stats.get("layer_active_fraction")):
        parts.append(strip(layers, SUMMARY_BLOCKS))
    sparsity = stats.get("sparsity")
    if isinstance(sparsity, str) and sparsity:
        parts.append(one_line(brief(sparsity)))
    return " · ".join(parts)


def one_line(text: str) -> str:
    """Text of unknown origin as one line without control characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def number(value: object) -> float:
    """A positive, finite number that is sane to print, 0 for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e15:
        return float(value)
    return 0.0


def numbers(values: object) -> list[float]:
    """Each of them as `number` takes it, none where they are no list."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        return []
    return [number(value) for value in values]
