"""Fitting a look at the vocabulary: axes, margin and limit, each judged on other positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..quant import PackedMatrix
from .capture import Part
from .head import HeadLook, Looks, limits, principal_axes, row_major
from .trial import WIDEST, Outcome, Seen, judge, leaders, least_margin, see

DIMS = (32, 64, 96, 128, 192, 256, 320, 384, 512)
"""Numbers of axes that are tried, of which those from three eighths to half of a model's width."""

SPARE = 1.0
"""Nats that a margin is wider than the positions ask for that it was chosen on."""

GATHERED = 4
"""How long a byte of a row takes that is read by itself, in bytes of a stream."""

_SPLIT = 64  # neighbours are alike, so positions are dealt in runs of this many

F32 = NDArray[np.float32]


def dims_for(width: int) -> list[int]:
    """Numbers of axes to try for hidden states of this width, fewest first.

    Fewer than three eighths are read faster on the texts that they are fitted to, but lose more on
    others.
    """
    fit = [dims for dims in DIMS if 2 * dims <= width]
    return [dims for dims in fit if 3 * width <= 8 * dims] or fit[-1:]


def split(parts: Sequence[Part]) -> tuple[F32, F32, F32]:
    """Hidden states to take axes from, to choose the margin on, and to judge the look by.

    The last are whole pieces of text that nothing was fitted to, two of five.
    """
    judged = [part.hidden for i, part in enumerate(parts) if i % 5 in _JUDGED]
    known = [part.hidden for i, part in enumerate(parts) if i % 5 not in _JUDGED]
    runs = [hidden[i : i + _SPLIT] for hidden in known for i in range(0, len(hidden), _SPLIT)]
    return np.concatenate(runs[::2]), np.concatenate(runs[1::2]), np.concatenate(judged)


_JUDGED = (1, 4)


def fit_look(
    head: PackedMatrix,
    states: tuple[F32, F32, F32],
    step: Callable[[int, int], None],
) -> tuple[HeadLook, Outcome]:
    """The look that is read fastest among those that pass; the one that lost least if none does.

    `states` are those of `split`. Both "fastest" and a look's margin are decided on the second.
    `step` receives (done, total) and may raise.
    """
    fitted, chosen_on, judged_on = states
    dims = dims_for(head.cols)
    steps = 4 + len(dims)
    step(0, steps)
    axes = principal_axes(fitted, dims[-1])
    looks = Looks(head, axes, np.sqrt(np.mean((fitted @ axes.T) ** 2, axis=0)))
    step(1, steps)
    ids, logits = leaders(head, chosen_on)
    rules = []
    for done, r in enumerate(dims, start=2):
        step(done, steps)
        rules.append(_rule(looks, head, see(looks, chosen_on, ids, logits, r), logits, r))
    rules.sort(key=lambda outcome: (not outcome.passes, _reading(looks, outcome)))
    step(steps - 2, steps)
    ids, logits = leaders(head, judged_on)
    step(steps - 1, steps)
    tried: list[Outcome] = []
    for rule in rules:
        seen = see(looks, judged_on, ids, logits, rule.dims)
        tried.append(judge(looks, head, seen, logits, rule.dims, rule.margin, rule.limit))
        if tried[-1].passes:
            break
    best = tried[-1] if tried[-1].passes else max(tried, key=lambda outcome: outcome.warm_mass)
    look = looks.make(best.dims, best.margin, best.limit, row_major(head))
    step(steps, steps)
    return look, best


def _rule(looks: Looks, head: PackedMatrix, seen: Seen, logits: F32, dims: int) -> Outcome:
    """The margin and limit that are read fastest of those well within the quality rule.

    Margins are wider than these positions ask for, because text unlike them asks for more.
    """
    found = []
    for limit in limits(head.rows):
        margin = least_margin(seen, logits, limit)
        if margin is not None:
            wider = min(margin + SPARE, WIDEST)
            found.append(judge(looks, head, seen, logits, dims, wider, limit))
    if not found:
        return judge(looks, head, seen, logits, dims, WIDEST, limits(head.rows)[-1])
    return min(found, key=lambda outcome: _reading(looks, outcome))


def _reading(looks: Looks, outcome: Outcome) -> float:
    """Bytes of a stream that take as long as what the look reads."""
    return outcome.head_bytes + (GATHERED - 1) * outcome.mean_rows * looks.row_bytes
