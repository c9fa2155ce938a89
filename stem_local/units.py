"""Numbers for people: sizes, parameters and speeds."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def parameters(count: float) -> str:
    """A number of parameters."""
    return f"{count / 1e9:.2f}B" if count >= 9.95e8 else f"{count / 1e6:.0f}M"


def rate(tokens_per_second: float) -> str:
    """A speed; with a decimal where it is slow enough to tell."""
    return f"{tokens_per_second:.{0 if tokens_per_second >= 9.95 else 1}f} tok/s"
