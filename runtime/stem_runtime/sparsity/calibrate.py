"""Calibration: learn from what a model computes which rows and neurons can be left out."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ..engine import Cancelled, Engine
from ..errors import FormatError, UsageError
from ..formats.packed import PackedModel
from ..kernels.cpu.layout import BINS_PER_NAT, LAG_BINS
from ..quant import PackedMatrix
from .capture import Material, Part, Progress, capture, capture_ffn
from .ffn_fit import fit
from .ffn_profile import FfnProfile
from .ffn_settings import Bench, measure_ffn
from .head import HeadLook, Looks, head_of, limits, principal_axes, row_major
from .measure import PROMPT, Passage
from .neurons import Neurons, Parts
from .profile import HeadProfile, HeadSetting, Profile, read_profile, write_profile
from .trial import Outcome, Seen, judge, leaders, least_margin, see

if TYPE_CHECKING:
    from ..kernels import DeviceChoice

DIMS = (32, 64, 96, 128, 160, 192, 256, 320, 384, 512)
"""Numbers of axes that are tried, of which those from an eighth to half of a model's width."""

GATHERED = 4
"""How long a byte of a row takes that is read by itself, in bytes of a stream."""

MIN_POSITIONS = 1500
"""Hidden states that it takes to say anything of one miss in a thousand."""

HELD = 2048
"""Tokens that settings of the FFNs are chosen on, and as many that they are measured on."""

_SPLIT = 64  # neighbours are alike, so positions are dealt in runs of this many
_ROUNDS, _TEXTS, _PROMPT, _DECODED = 12, 6, 32, 48

F32 = NDArray[np.float32]


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
    for all of the model, computes the whole head always, so that no look is fitted there.
    `progress` receives (what is being done, done, total); `cancel` is asked often and raises
    Cancelled. What was captured by then is kept in the cache folder, and the next call goes on
    from there. Raises UsageError for too little text, FormatError for hidden states that are not
    finite.
    """
    on_card = device is not None and device.backend != "cpu"
    run = _Run(model, threads, kernels, device if on_card else None, notify, progress, cancel)
    with run.engine() as engine:
        parts, held = capture(model, engine, material, run.tell, cancel, notify)
        total = sum(len(part.hidden) for part in parts)
        if total < MIN_POSITIONS:
            raise UsageError(
                f"There is too little text: {total} tokens, and at least {MIN_POSITIONS} are "
                "needed to calibrate; give more with --text."
            )
        kept = held / f"{engine.kernels.name}-{engine.threads}"
        profile = _kept(model, kept)
        if profile.ffn is None:
            paths = capture_ffn(model, engine, _known(parts), held, run.step("Watching"))
            profile = dataclasses.replace(profile, ffn=fit(model, paths, run.step("Weighing")))
            write_profile(kept, profile)
    if profile.head is None and can_look(model) and not on_card:
        profile = dataclasses.replace(profile, head=_calibrate_head(run, parts))
        write_profile(kept, profile)
    ffn = _calibrate_ffn(run, profile, parts, kept)
    profile = dataclasses.replace(profile, ffn=ffn)
    write_profile(model.folder, profile)
    shutil.rmtree(held, ignore_errors=True)
    return profile


@dataclass(frozen=True, slots=True)
class _Run:
    """One calibration: the model, how to make its engines, and who listens."""

    model: PackedModel
    threads: int | None
    kernels: str | None
    card: DeviceChoice | None
    notify: Callable[[str], None] | None
    progress: Progress | None
    cancel: Callable[[], bool] | None

    def engine(self, *, look: HeadLook | None = None, neurons: Neurons | None = None) -> Engine:
        if self.card is not None:
            from ..gpu.engine import GpuEngine

            return cast("Engine", GpuEngine(self.model, self.card, neurons=neurons))
        return Engine(
            self.model,
            threads=self.threads,
            kernels=self.kernels,
            notify=self.notify,
            head=look,
            neurons=neurons,
        )

    def check(self) -> None:
        if self.cancel is not None and self.cancel():
            raise Cancelled("Calibration was cancelled; the next one goes on from here.")

    def tell(self, step: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(step, done, total)

    def report(self, step: str, done: int, total: int) -> None:
        self.check()
        self.tell(step, done, total)

    def step(self, name: str) -> Callable[[int, int], None]:
        return partial(self.report, name)


def can_look(model: PackedModel) -> bool:
    """Whether a look at the vocabulary can gain anything: on int8 heads of wide enough states."""
    head = head_of(model)
    return head.kind == "int8" and 2 * DIMS[0] <= head.cols


def _kept(model: PackedModel, folder: Path) -> Profile:
    """What an interrupted calibration had finished, which may be nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = str(model.info["weights_sha256"])
    try:
        found = read_profile(folder, model.config, weights)
    except FormatError:
        found = None
    return found or Profile(weights, None, None)


def _calibrate_head(run: _Run, parts: Sequence[Part]) -> HeadProfile:
    head = head_of(run.model)
    dims = [r for r in DIMS if 2 * r <= head.cols <= 8 * r] or [DIMS[-1]]
    look, outcome = _fit(head, dims, split(parts), lambda done: run.report("Fitting", done, 4))
    with run.engine(look=look) as engine:
        dense, sparse = _race(engine, parts, run.report)
        setting = HeadSetting(
            **dataclasses.asdict(outcome),
            dense_head_bytes=head.nbytes,
            kernels=engine.kernels.name,
            threads=engine.threads,
            dense_tokens_per_second=dense,
            tokens_per_second=sparse,
        )
    return HeadProfile(setting, look)


def _calibrate_ffn(run: _Run, profile: Profile, parts: Sequence[Part], kept: Path) -> FfnProfile:
    assert profile.ffn is not None
    fitted = profile.ffn

    def keep(ffn: FfnProfile) -> None:
        write_profile(kept, dataclasses.replace(profile, ffn=ffn))

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


def split(parts: Sequence[Part]) -> tuple[F32, F32, F32]:
    """Hidden states to take axes from, to choose the margin on, and to judge the look by.

    The last are whole texts and answers that nothing was fitted to, a third of all.
    """
    judged = [part.hidden for part in parts[2::3]]
    seen = [part.hidden for part in _known(parts)]
    runs = [hidden[i : i + _SPLIT] for hidden in seen for i in range(0, len(hidden), _SPLIT)]
    return np.concatenate(runs[::2]), np.concatenate(runs[1::2]), np.concatenate(judged)


def _fit(
    head: PackedMatrix,
    dims: Sequence[int],
    states: tuple[F32, F32, F32],
    step: Callable[[int], None],
) -> tuple[HeadLook, Outcome]:
    """The look that is read fastest among those that pass; the one that lost least if none does.

    Both "fastest" and a look's margin are decided on the second set of positions.
    """
    fitted, chosen_on, judged_on = states
    step(0)
    axes = principal_axes(fitted, dims[-1])
    looks = Looks(head, axes, np.sqrt(np.mean((fitted @ axes.T) ** 2, axis=0)))
    step(1)
    ids, logits = leaders(head, chosen_on)
    seen = see(looks, chosen_on, ids, dims)
    rules = [_rule(looks, head, seen[r], logits, r) for r in dims]
    rules.sort(key=lambda outcome: (not outcome.passes, _reading(looks, outcome)))
    step(2)
    ids, logits = leaders(head, judged_on)
    step(3)
    tried: list[Outcome] = []
    for rule in rules:
        held = see(looks, judged_on, ids, [rule.dims])[rule.dims]
        tried.append(judge(looks, head, held, logits, rule.dims, rule.margin, rule.limit))
        if tried[-1].passes:
            break
    step(4)
    best = tried[-1] if tried[-1].passes else max(tried, key=lambda outcome: outcome.warm_mass)
    return looks.make(best.dims, best.margin, best.limit, row_major(head)), best


def _rule(looks: Looks, head: PackedMatrix, seen: Seen, logits: F32, dims: int) -> Outcome:
    """The margin and limit that are read fastest of those well within the quality rule."""
    found = []
    for limit in limits(head.rows):
        margin = least_margin(seen, logits, limit)
        if margin is not None:
            found.append(judge(looks, head, seen, logits, dims, margin, limit))
    if not found:
        widest = LAG_BINS / BINS_PER_NAT
        return judge(looks, head, seen, logits, dims, widest, limits(head.rows)[-1])
    return min(found, key=lambda outcome: _reading(looks, outcome))


def _reading(looks: Looks, outcome: Outcome) -> float:
    """Bytes of a stream that take as long as what the look reads."""
    return outcome.head_bytes + (GATHERED - 1) * outcome.mean_rows * looks.row_bytes


def _race(
    engine: Engine,
    parts: Sequence[Part],
    report: Progress,
) -> tuple[float, float]:
    """Tokens per second of decoding without and with the look: medians of runs that take turns."""
    longest = sorted(parts, key=lambda part: (part.answer, len(part.tokens)))[-_TEXTS:]
    speeds: dict[bool, list[float]] = {False: [], True: []}
    cache = engine.new_cache(max(len(part.tokens) for part in longest))
    for done in range(_ROUNDS):
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
