"""Calibration: learn from what a model computes which rows and neurons can be left out."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..engine import Engine
from ..errors import FormatError, UsageError
from ..formats.packed import PackedModel
from ..kernels import choose
from ..quant import unpack
from ..threads import count_threads
from .capture import Material, Part, Progress, capture, capture_ffn, folder_of, windows
from .ffn_fit import fit
from .ffn_profile import FfnProfile
from .ffn_settings import Bench, measure_ffn
from .head import blocks, head_of
from .head_fit import DIMS, dims_for, fit_look, split
from .measure import PROMPT, Passage, in_turns
from .neurons import Parts
from .profile import HeadProfile, HeadSetting, Profile, read_profile, write_profile
from .run import Run
from .trial import Outcome

if TYPE_CHECKING:
    from ..kernels import DeviceChoice

MIN_POSITIONS = 1500
"""Hidden states that it takes to say anything of one miss in a thousand."""

HELD = 2048
"""Tokens that settings of the FFNs are chosen on, and as many that they are measured on."""

ROUNDS, DECODED = 12, 24
"""Turns in which decoding is timed with the look and without, and tokens of a turn."""

_TEXTS, _PROMPT = 6, 32
_TRIED = 128  # tokens read to estimate how long all would take
_OVERHEAD = 1.25  # time of fitting a look, in times of the products that it takes


def calibrate(
    model: PackedModel,
    material: Material,
    *,
    threads: int | None = None,
    kernels: str | None = None,
    device: DeviceChoice | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Profile:
    """Calibrate a model and write the profile into its folder.

    What it measures holds for `device`, the CPU unless it is given; a card, which must have room
    for all of the model, computes the whole head always, so that no look is fitted there, and one
    that the profile has is kept. A look that was fitted to the same texts is only timed anew.
    `progress` receives (what is being done, done, total); `cancel` is asked often and raises
    Cancelled. What was captured by then is kept in the cache folder, and the next call goes on
    from there. Raises UsageError for too little text, FormatError for hidden states that are not
    finite.
    """
    on_card = device is not None and device.backend != "cpu"
    run = Run(model, threads, kernels, device if on_card else None, notify, progress, cancel)
    head = _found(model, model.folder).head
    if not on_card:
        head = _calibrate_head(run, material.for_head(), head) if can_look(model) else None
    held = folder_of(model, material)
    with run.engine() as engine:
        parts = capture(model, engine, material, run.tell, cancel, notify)
        _check_enough(parts)
        kept = held / f"{engine.kernels.name}-{engine.threads}"
        kept.mkdir(parents=True, exist_ok=True)
        ffn = _found(model, kept).ffn
        if ffn is None:
            paths = capture_ffn(model, engine, _known(parts), held, run.step("Watching"))
            ffn = fit(model, paths, run.step("Weighing"))
            write_profile(kept, Profile(_weights(model), None, ffn))
    profile = Profile(_weights(model), head, _calibrate_ffn(run, ffn, parts, kept))
    write_profile(model.folder, profile)
    for folder in (held, folder_of(model, material.for_head())):
        shutil.rmtree(folder, ignore_errors=True)
    return profile


def calibrate_head(
    model: PackedModel,
    material: Material,
    *,
    threads: int | None = None,
    kernels: str | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    worth: Callable[[float], bool] | None = None,
) -> Profile | None:
    """Fit a look at the vocabulary and put it into the model's profile, which keeps its FFNs.

    For a model that `can_look`, on the CPU. `worth` is told how many seconds this will take,
    measured on a few tokens, and None is returned where it says no. Everything else is as with
    `calibrate`, which builds on what this writes.
    """
    run = Run(model, threads, kernels, None, notify, progress, cancel)
    read = material.for_head()
    if worth is not None and not worth(estimate(run, read)):
        return None
    head = _calibrate_head(run, read, _found(model, model.folder).head)
    profile = dataclasses.replace(_found(model, model.folder), head=head)
    write_profile(model.folder, profile)
    shutil.rmtree(folder_of(model, read), ignore_errors=True)
    return profile


def can_look(model: PackedModel) -> bool:
    """Whether a look at the vocabulary can gain anything: on int8 heads of wide enough states."""
    head = head_of(model)
    return head.kind == "int8" and 2 * DIMS[0] <= head.cols


def head_share(model: PackedModel) -> float:
    """The head's share of a model's bytes."""
    return head_of(model).nbytes / model.nbytes


def estimate(run: Run, read: Material) -> float:
    """About how many seconds fitting a look takes here: what a few tokens take, times all.

    Reading is timed, a few products with the head, and a few decode steps.
    """
    pieces, head = windows(run.model, read), head_of(run.model)
    total = sum(map(len, pieces))
    tokens = max(pieces, key=len)[:_TRIED]
    with run.engine() as engine:
        cache = engine.new_cache(len(tokens))
        engine.hidden(cache, tokens[:32])  # touches the weights, and the code, for the first time

        def read_all() -> None:
            cache.truncate(0)
            engine.hidden(cache, tokens)

        def decode_one() -> None:
            engine.decode(cache, tokens[cache.length - 1])
            cache.truncate(cache.length - 1)

        reading = _least(read_all, 2) / len(tokens)
        cache.truncate(len(tokens) - 1)
        step = _least(decode_one, 8)
        hidden = engine.hidden(cache, tokens[:1])
    _, block = next(iter(blocks(head)))
    weights = unpack(block).T
    states = np.repeat(hidden, _TRIED, axis=0)
    product = _least(lambda: states @ weights, 4) / (_TRIED * weights.size)
    dims = dims_for(head.cols)
    products = head.rows * (head.cols * dims[-1] + total * (head.cols + sum(dims)))
    timing = 2 * ROUNDS * DECODED * step
    return total * reading + _OVERHEAD * products * product + timing


def _least(work: Callable[[], object], times: int) -> float:
    """The shortest of some times that it takes, in seconds: others may be at work here too."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def _weights(model: PackedModel) -> str:
    return str(model.info["weights_sha256"])


def _found(model: PackedModel, folder: Path) -> Profile:
    """The profile in a folder that belongs to these weights; an empty one where there is none."""
    try:
        found = read_profile(folder, model.config, _weights(model), whole=True)
    except FormatError:
        found = None
    return found or Profile(_weights(model), None, None)


def _current(head: HeadProfile | None) -> HeadProfile | None:
    """A look that is of use to a new calibration: none whose margin is from the best score."""
    return head if head is not None and head.look.mean is not None else None


def _calibrate_head(run: Run, read: Material, before: HeadProfile | None) -> HeadProfile:
    """A look that was fitted to these texts and timed on this machine.

    `before` is what the model's profile has. An unfinished calibration's is taken as it is.
    """
    model, head, folder = run.model, head_of(run.model), folder_of(run.model, read)
    kernels, threads = choose(run.kernels).name, count_threads(run.threads)
    kept = _current(_found(model, folder).head)
    if kept and (kept.setting.kernels, kept.setting.threads) == (kernels, threads):
        return kept
    before = _current(before)
    if before and before.material == folder.name:
        look = before.look
        outcome = Outcome(**{name: getattr(before.setting, name) for name in _OUTCOME})
    else:
        with run.engine() as engine:
            parts = capture(model, engine, read, run.tell, run.cancel, run.notify)
        _check_enough(parts)
        look, outcome = fit_look(head, split(parts), run.step("Fitting"))
    with run.engine(look=look) as engine:
        dense, sparse = _race(engine, windows(model, read), run.report)
    setting = HeadSetting(
        **dataclasses.asdict(outcome),
        dense_head_bytes=head.nbytes,
        kernels=kernels,
        threads=threads,
        dense_tokens_per_second=dense,
        tokens_per_second=sparse,
    )
    found = HeadProfile(setting, look, folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_profile(folder, Profile(_weights(model), found, None))
    return found


_OUTCOME = tuple(field.name for field in dataclasses.fields(Outcome))


def _check_enough(parts: Sequence[Part]) -> None:
    total = sum(len(part.hidden) for part in parts)
    if total < MIN_POSITIONS:
        raise UsageError(
            f"There is too little text: {total} tokens, and at least {MIN_POSITIONS} are "
            "needed to calibrate; give more with --text."
        )


def _calibrate_ffn(run: Run, fitted: FfnProfile, parts: Sequence[Part], kept: Path) -> FfnProfile:
    def keep(ffn: FfnProfile) -> None:
        write_profile(kept, Profile(_weights(run.model), None, ffn))

    def make_engine(ffn: FfnProfile, wanted: Parts) -> Engine:
        return run.engine(neurons=ffn.neurons(run.model, parts=wanted))

    bench = Bench(
        passages(_known(parts), HELD),
        passages(parts[2::3], HELD),
        make_engine,
        run.report,
        run.check,
        keep,
    )
    return measure_ffn(run.model, fitted, bench)


def passages(parts: Sequence[Part], most: int) -> list[Passage]:
    """About `most` tokens to decode, a share of every text and answer."""
    share = max(32, most // len(parts))
    found: list[Passage] = []
    left = most
    for part in sorted(parts, key=lambda part: len(part.hidden)):
        start = max(len(part.tokens) - len(part.hidden), min(PROMPT, len(part.tokens) // 2))
        count = min(len(part.tokens) - start, max(share, left // (len(parts) - len(found))))
        found.append(Passage(part.tokens[: start + count], start))
        left -= count
    return [passage for passage in found if len(passage.tokens) > passage.start + 1]


def _known(parts: Sequence[Part]) -> list[Part]:
    """The parts that things are fitted to."""
    return [part for i, part in enumerate(parts) if i % 3 != 2]


def _race(engine: Engine, texts: Sequence[Sequence[int]], report: Progress) -> tuple[float, float]:
    """Tokens per second of decoding without and with the look, from runs that take turns."""
    longest = sorted(texts, key=len)[-_TEXTS:]
    speeds: dict[bool, list[float]] = {False: [], True: []}
    cache = engine.new_cache(min(len(longest[-1]), _PROMPT + DECODED))
    for done in range(ROUNDS):
        report("Timing", done, ROUNDS)
        tokens = longest[done % len(longest)]
        start = min(_PROMPT, len(tokens) // 2)
        cache.truncate(0)
        engine.prefill(cache, tokens[:start])
        for look in (False, True) if done % 2 else (True, False):
            cache.truncate(start)
            began = time.perf_counter()
            for token in tokens[start : start + DECODED]:
                engine.decode(cache, token, look=look)
            count = cache.length - start
            speeds[look].append(count / (time.perf_counter() - began))
    report("Timing", ROUNDS, ROUNDS)
    return in_turns(speeds[False], speeds[True])
