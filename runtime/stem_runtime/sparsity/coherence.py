"""Coherence: rules about who fires together, learned in calibration.

Three kinds: neurons that are nearly always on and carry much stay on; a layer fires no fewer and no
more neurons than it ever did; and who fires in one layer says who can be expected in the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .neurons import mask_of

IMPLIED = 4
"""Most neurons of the next layer that one neuron makes candidates."""

_ALWAYS = 0.95  # share of tokens that a neuron of the core fires for
_CORE = 1 / 16  # most of a layer that its core may be: it is computed for every token
_EDGE = 0.01  # share of the calibration tokens under the floor, and over the cap, without the slack
_SLACK = 0.1
_SURE = 0.2  # least probability of firing that an implication promises; more found next to nobody
_LIFT = 3.0  # least factor over how often the implied neuron fires anyway
_DOUBT = 3.0  # standard errors: millions of pairs are asked
_BLOCK = 1024  # neurons whose joint firing is counted together

Bools = NDArray[np.bool_]
F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Rules:
    """A layer's rules. `core` uint32 [groups] is the mask of neurons that are always on; `floor`
    and `cap` bound how many are active; `implied` int32 [ffn, 4] names the neurons of the next
    layer that a firing neuron makes candidates, -1 for none, and is None in the last layer.
    """

    core: U32
    floor: int
    cap: int
    implied: I32 | None


def learn(layers: Iterable[tuple[Bools, F32]]) -> tuple[Rules, ...]:
    """Learn the rules of all layers, given in order.

    A layer is `fires` bool [n, ffn], who was active for n tokens, the same tokens in all layers,
    and `contribution` float32 [ffn], what each neuron added to them on average. Two layers are held
    at a time. Raises ValueError when layers disagree about n.
    """
    rules: list[Rules] = []
    before: Bools | None = None
    for fires, contribution in layers:
        if before is not None:
            if len(before) != len(fires):
                raise ValueError(f"layers of {len(before)} and {len(fires)} tokens")
            found = implications(before, fires)
            rules[-1] = Rules(rules[-1].core, rules[-1].floor, rules[-1].cap, found)
        rules.append(Rules(core(fires, contribution), *bounds(fires), None))
        before = fires
    return tuple(rules)


def core(fires: Bools, contribution: F32) -> U32:
    """The mask of neurons that fire nearly always and add more than most, the weightiest ones."""
    often = fires.mean(axis=0) >= _ALWAYS
    worth = np.where(often & (contribution > contribution.mean()), contribution, np.float32(0))
    most = max(1, int(len(worth) * _CORE))
    least = np.partition(worth, -most)[-most]
    return mask_of((worth >= least) & (worth > 0))


def bounds(fires: Bools) -> tuple[int, int]:
    """Floor and cap of the number of active neurons, with a tenth of slack."""
    counts = fires.sum(axis=1)
    low, high = np.quantile(counts, (_EDGE, 1 - _EDGE))
    return int(low * (1 - _SLACK)), min(fires.shape[1], int(np.ceil(high * (1 + _SLACK))))


def implications(fires: Bools, following: Bools) -> I32:
    """Who of the next layer is likely when a neuron fires: int32 [ffn, 4], -1 for none.

    `fires` bool [n, ffn] and `following` bool [n, ffn of the next layer] are of the same tokens.
    Neuron j is implied by i when P(j | i) is at least 0.2 and three times P(j), both at the low end
    of Wilson's interval. Of more than four those come first whom P(j | i) sets apart the most from
    P(j): candidate sets hold the ones that fire often anyway.
    """
    after = following.astype(np.float32)
    often = np.maximum(following.mean(axis=0, dtype=np.float32), np.float32(1e-9))
    found = np.full((fires.shape[1], IMPLIED), -1, np.int32)
    # a neuron that fires this seldom cannot be sure of anything
    (worthy,) = np.nonzero(fires.sum(axis=0) >= _DOUBT**2)
    for start in range(0, len(worthy), _BLOCK):
        rows = worthy[start : start + _BLOCK]
        together = fires[:, rows].astype(np.float32).T @ after
        times = fires[:, rows].sum(axis=0, dtype=np.float32)[:, None]
        chance = together / times
        least = _low_end(chance, times)
        sure = (least >= _SURE) & (least >= _LIFT * often)
        found[rows] = _best(np.where(sure, chance / often, np.float32(0)))
    return found


def _low_end(chance: F32, times: F32) -> F32:
    """The low end of Wilson's interval for a share `chance` of `times` trials."""
    square = np.float32(_DOUBT**2) / times
    spread = np.sqrt(chance * (1 - chance) * square + square * square / 4)
    found: F32 = (chance + square / 2 - spread) / (1 + square)
    return found


def _best(lifts: F32) -> I32:
    """The columns of the largest numbers of every row, int32 [rows, 4], -1 for those that are 0."""
    found = np.full((len(lifts), IMPLIED), -1, np.int32)
    count = min(IMPLIED, lifts.shape[1])
    columns = np.argpartition(-lifts, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(lifts, columns, axis=1)
    order = np.argsort(-values, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    found[:, :count] = np.where(values > 0, np.take_along_axis(columns, order, axis=1), -1)
    return found
