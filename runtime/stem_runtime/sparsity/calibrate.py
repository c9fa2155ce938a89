"""Calibration: learn from a model's own hidden states which rows of its head can be left out."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ..engine import Cancelled, Engine
from ..errors import UnsupportedError, UsageError
from ..formats.packed import PackedModel
from ..quant import PackedMatrix
from .capture import Material, Part, Progress, capture
from .head import HeadLook, Looks, default_limit, head_of, principal_axes, row_major
from .profile import HeadProfile, HeadSetting, Profile, write_profile
from .trial import Outcome, judge, lags, leaders, least_margin

DIMS = (32, 64, 96, 128, 160, 192, 224, 256)
"""Numbers of axes that are tried, where a model is wide enough to have twice as many."""

MIN_POSITIONS = 1500
"""Hidden states that it takes to say anything of one miss in a thousand."""

_SPLIT = 64  # neighbours are alike, so positions are dealt in runs of this many
_ROUNDS, _TEXTS, _PROMPT, _DECODED = 12, 6, 32, 48

F32 = NDArray[np.float32]


def calibrate(
    model: PackedModel,
    material: Material,
    *,
    threads: int | None = None,
    kernels: str | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Profile:
    """Calibrate a model and write the profile into its folder.

    `progress` receives (what is being done, done, total); `cancel` is asked often and raises
    Cancelled. What was captured by then is kept in the cache folder, and the next call goes on
    from there. Raises UnsupportedError for a head that a look gains nothing on, UsageError for too
    little text, FormatError for hidden states that are not finite.
    """
    head = head_of(model)
    if head.kind != "int8":
        raise UnsupportedError(
            f"The output head of {model.info['name']} is {head.kind}; only int8 heads can be "
            "looked at yet, so there is nothing to calibrate."
        )
    dims = [r for r in DIMS if 2 * r <= head.cols]
    if not dims:
        raise UnsupportedError(
            f"The hidden states of {model.info['name']} have {head.cols} numbers; a cheaper look "
            "than the whole head needs at least 64."
        )
    report = progress or (lambda _step, _done, _total: None)
    with Engine(model, threads=threads, kernels=kernels, notify=notify) as engine:
        parts, held = capture(model, engine, material, report, cancel, notify)
    total = sum(len(part.hidden) for part in parts)
    if total < MIN_POSITIONS:
        raise UsageError(
            f"There is too little text: {total} tokens, and at least {MIN_POSITIONS} are needed to "
            "calibrate; give more with --text."
        )

    def step(done: int) -> None:
        if cancel is not None and cancel():
            raise Cancelled("Calibration was cancelled.")
        report("Fitting", done, 4)

    look, outcome = _fit(head, dims, split(parts), step)
    with Engine(model, threads=threads, kernels=kernels, notify=notify, head=look) as engine:
        dense, sparse = _race(engine, parts, report, cancel)
        setting = HeadSetting(
            **dataclasses.asdict(outcome),
            limit=look.limit,
            dense_head_bytes=head.nbytes,
            kernels=engine.kernels.name,
            threads=engine.threads,
            dense_tokens_per_second=dense,
            tokens_per_second=sparse,
        )
    profile = Profile(str(model.info["weights_sha256"]), HeadProfile(setting, look), None)
    write_profile(model.folder, profile)
    shutil.rmtree(held, ignore_errors=True)
    return profile


def split(parts: Sequence[Part]) -> tuple[F32, F32, F32]:
    """Hidden states to take axes from, to choose the margin on, and to judge the look by.

    The last are whole texts and answers that nothing was fitted to, a third of all.
    """
    judged = [part.hidden for part in parts[2::3]]
    seen = [part.hidden for i, part in enumerate(parts) if i % 3 != 2]
    runs = [hidden[i : i + _SPLIT] for hidden in seen for i in range(0, len(hidden), _SPLIT)]
    return np.concatenate(runs[::2]), np.concatenate(runs[1::2]), np.concatenate(judged)


def _fit(
    head: PackedMatrix,
    dims: Sequence[int],
    states: tuple[F32, F32, F32],
    step: Callable[[int], None],
) -> tuple[HeadLook, Outcome]:
    """The look of the fewest bytes among those that pass; the surest one where none does.

    A margin is the smallest at which the second set of positions is well within the quality rule.
    """
    fitted, chosen_on, judged_on = states
    step(0)
    looks = Looks(head, principal_axes(fitted, dims[-1]))
    step(1)
    ids, logits = leaders(head, chosen_on)
    step(2)
    behind = lags(looks, chosen_on, ids, dims)
    margins = {r: least_margin(lag, logits) for r, lag in behind.items()}
    step(3)
    limit = default_limit(head.rows)
    tried = judge(looks, head, judged_on, margins, limit)
    step(4)
    best = min(tried, key=lambda outcome: (not outcome.passes, outcome.head_bytes))
    return looks.make(best.dims, best.margin, limit, row_major(head)), best


def _race(
    engine: Engine,
    parts: Sequence[Part],
    report: Progress,
    cancel: Callable[[], bool] | None,
) -> tuple[float, float]:
    """Tokens per second of decoding without and with the look: medians of runs that take turns."""
    longest = sorted(parts, key=lambda part: (part.answer, len(part.tokens)))[-_TEXTS:]
    speeds: dict[bool, list[float]] = {False: [], True: []}
    cache = engine.new_cache(max(len(part.tokens) for part in longest))
    for done in range(_ROUNDS):
        if cancel is not None and cancel():
            raise Cancelled("Calibration was cancelled.")
        report("Timing", done, _ROUNDS)
        tokens = longest[done % len(longest)].tokens
        start = min(_PROMPT, len(tokens) // 2)
        cache.truncate(0)
        engine.prefill(cache, tokens[:start])
        for look in (False, True) if done % 2 else (True, False):
            cache.truncate(start)
            began = time.perf_counter()
            for token in tokens[start : start + _DECODED]:
                engine.decode(cache, token, look=look)
            count = cache.length - start
            speeds[look].append(count / (time.perf_counter() - began))
    report("Timing", _ROUNDS, _ROUNDS)
    return median(speeds[False]), median(speeds[True])
