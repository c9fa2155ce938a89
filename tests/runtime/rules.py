"""What the structural rules do to the neurons of one token, in plain NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


def apply_core(passed: Bools, core: Bools) -> Bools:
    """The core is active whatever the test said."""
    return passed | core


def apply_bounds(potentials: NDArray[np.float32], cutoff: float, floor: int, cap: int) -> Bools:
    """Who passes when the cut-off moves just far enough to keep to floor and cap.

    Ties at the moved cut-off stay out under a cap and come in under a floor; neurons without any
    potential never pass.
    """
    falling = np.sort(potentials)[::-1]
    count = int((potentials > cutoff).sum())
    if count > cap:
        return potentials > falling[cap]
    if count < floor:
        return (potentials >= falling[floor - 1]) & (potentials > 0)
    return potentials > cutoff


def apply_implications(candidates: Bools, fired: Bools, implied: NDArray[np.int32]) -> Bools:
    """The next layer's candidates once those that `fired` implies have joined."""
    named = implied[fired]
    result = candidates.copy()
    result[named[named >= 0]] = True
    return result
