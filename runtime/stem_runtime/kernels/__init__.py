"""Compute kernels. This module is the single place where a variant is chosen."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from ..errors import KernelError
from .host import host_cpu

OVERRIDE = "STEM_KERNELS"
"""Environment variable that names a variant instead of the best one."""

_NEEDS: dict[str, tuple[frozenset[str], ...]] = {
    "avx512vnni": (frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"}),),
    "avx2vnni": (
        frozenset({"avx2", "fma", "f16c", "avxvnni"}),
        frozenset({"avx2", "fma", "f16c", "avx512vl", "avx512vnni"}),
    ),
    "avx2": (frozenset({"avx2", "fma", "f16c"}),),
    "neon": (frozenset({"neon", "dotprod"}),),
    "portable": (frozenset(),),
}
"""Variants from best to worst, with the sets of CPU features that are enough for each."""

TOKEN_BLOCK = {"avx512vnni": 16, "avx2vnni": 4, "avx2": 4, "neon": 4, "portable": 4}
"""Tokens that share each load of a weight in prefill; activations are laid out in such blocks."""


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The variant in use and a sentence that says why."""

    name: str
    reason: str

    @property
    def token_block(self) -> int:
        return TOKEN_BLOCK[self.name]


def available() -> dict[str, str]:
    """For each variant, best first: an empty string, or what this CPU lacks for it."""
    _, features = host_cpu()
    missing = {}
    for name, alternatives in _NEEDS.items():
        lacks = min((sorted(need - features) for need in alternatives), key=len)
        missing[name] = ", ".join(lacks)
    return missing


def choose(override: str | None = None) -> KernelChoice:
    """Pick the kernels: `override`, else $STEM_KERNELS, else the best that this CPU can run.

    Raises KernelError for an unknown name or one that this CPU cannot run.
    """
    missing = available()
    wanted = override or os.environ.get(OVERRIDE)
    if wanted:
        if wanted not in missing:
            raise KernelError(
                f"There are no kernels called {wanted!r}; choose one of {', '.join(missing)}."
            )
        if missing[wanted]:
            raise KernelError(
                f"The {wanted} kernels need {missing[wanted]}, which this CPU does not have; "
                f"unset {OVERRIDE} to let the best ones be chosen."
            )
        source = "asked for" if override else f"asked for by {OVERRIDE}"
        return KernelChoice(wanted, source)
    name = next(name for name, lacks in missing.items() if not lacks)
    arm = "neon" in host_cpu()[1]
    better = list(missing)[: list(missing).index(name)]
    passed = [f"{n} needs {missing[n]}" for n in better if (n == "neon") == arm]
    why = f"the best that this {platform.machine()} CPU runs"
    return KernelChoice(name, why + (f" ({'; '.join(passed)})" if passed else ""))
