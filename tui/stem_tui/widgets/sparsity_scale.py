"""The values that keys step sparsity through."""

from __future__ import annotations

from stem_local.sparsity import MOST, Sparsity

STEP = 0.05
FIRST_SHARE = 0.3
"""The share that is tried first: many models still answer well with it."""


def sparser(value: Sparsity, share: float) -> Sparsity:
    """One step on: off, then shares up to the largest. From auto it is to `share`, the last one."""
    if isinstance(value, str):
        return share if value == "auto" else 0.0
    return nearest(value + STEP)


def denser(value: Sparsity, share: float) -> Sparsity:
    """One step back: shares down to nothing, then off. From auto it is to `share`, the last one."""
    if isinstance(value, str):
        return share if value == "auto" else "off"
    return nearest(value - STEP) if value > 0 else "off"


def following(value: Sparsity, share: float) -> Sparsity:
    """The next of off, auto and a share."""
    if isinstance(value, str):
        return share if value == "auto" else "auto"
    return "off"


def nearest(share: float) -> float:
    """The share on the scale that is nearest."""
    return round(min(max(round(share / STEP) * STEP, 0.0), MOST), 2)
