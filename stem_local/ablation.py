"""What each control is worth: added one after the other, on four kinds of text.

dense, then potentials (a share of the neurons fails its layer's test, the same share everywhere),
prediction (of the gates that are worth computing, in naturally sparse models), resampling
(candidates come from the conversation), grammar constraints (core, floors, caps, implications) and
budget policy (the shares are spread as calibration found best).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from stem_runtime.engine import Cancelled
from stem_runtime.errors import UsageError

from .decoding import Decoding
from .scoring import losses_of
from .sparsity import Choice

if TYPE_CHECKING:
    from stem_runtime.sparsity.ffn_profile import FfnProfile
    from stem_runtime.sparsity.plan import Candidates, FfnPlan
    from stem_runtime.stats import Cost

    from .model import Model

Progress = Callable[[str, int, int], None]

CONTROLS = ("potentials", "prediction", "resampling", "constraints", "policy")
WINDOW, PROMPT = 512, 64
"""Tokens that are read with a common past, and how many of them are the prompt of the rest."""

FASTER = 1.01
"""Speeds nearer than this are taken for equal."""

SAME = 0.0005
"""Relative changes of perplexity under this are taken for none."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One text under one stage; perplexity and speed are of decode steps, the head whole."""

    active_parameters: float
    active_fraction: float
    perplexity: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One row: the controls before it that helped, and `control`. `verdict` is a sentence."""

    control: str
    helps: bool
    verdict: str
    figures: dict[str, Figures]


@dataclass(frozen=True, slots=True)
class Ablation:
    """All rows; `share` of the neurons were to add nothing."""

    model: str
    share: float
    stages: tuple[Stage, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def workloads() -> dict[str, str]:
    """The texts of the package that nothing is calibrated with: chat, prose, python and sql."""
    folder = files("stem_local") / "ablation_text"
    found = sorted(folder.iterdir(), key=lambda entry: entry.name)
    texts = (entry for entry in found if entry.name.endswith(".txt"))
    return {text.name.removesuffix(".txt"): text.read_text(encoding="utf-8") for text in texts}


def ablate(
    model: Model,
    share: float | None = None,
    *,
    texts: dict[str, str] | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Ablation:
    """Add one control after the other and measure it beside what it is added to, in turns.

    Without a share, it is that of the setting that auto takes, or else the largest that
    calibration saw within the quality budget. A control that neither makes decoding faster within
    that budget nor better without making it slower is left out again before the next one.
    Potentials stay in all the same, since the others stand on them. Raises UsageError for a model
    that is not calibrated for skipping neurons, Cancelled.
    """
    ffn = model.calibrated.ffn
    if ffn is None:
        problem = model.calibrated.problem or "it was calibrated without its FFNs"
        raise UsageError(f"There is nothing to ablate in {model.name}: {problem}.")
    share = usual_share(model, ffn) if share is None else share
    windows = {name: _windows(model, text) for name, text in (texts or workloads()).items()}
    report = progress or (lambda _step, _done, _total: None)
    bench = _Bench(model, windows, report, cancel)
    stages: list[Stage] = []
    kept: tuple[str, ...] = ()
    for control in CONTROLS:
        old, (new, missing) = plan_of(ffn, share, kept)[0], plan_of(ffn, share, (*kept, control))
        if missing:
            stages.append(Stage(control, False, f"off: {missing}", {}))
            continue
        before, after = bench.compare(old, new)
        if not stages:
            stages.append(Stage("dense", True, "what the rest is measured against", before))
        dense = stages[0].figures
        helps, why = judge(dense, before, after, model.quality)
        if helps:
            verdict = f"helps: {why}"
        elif control == "potentials":
            verdict = f"does not help by itself: {why}; the rest is measured on top of it"
        else:
            verdict = f"does not help: {why}; left out of the rows below"
        stages.append(Stage(control, helps, verdict, after))
        if helps or control == "potentials":
            kept = (*kept, control)
    return Ablation(model.name, share, tuple(stages))


def usual_share(model: Model, ffn: FfnProfile) -> float:
    """The share that auto skips, or else the largest within the budget, or the least measured."""
    best = model.calibrated.best(model.quality)
    if best is not None:
        return best.target
    within = [s.target for s in ffn.settings if s.perplexity_change <= model.quality]
    if within:
        return max(within)
    return min((setting.target for setting in ffn.settings), default=0.3)


def plan_of(ffn: FfnProfile, share: float, controls: Sequence[str]) -> tuple[FfnPlan | None, str]:
    """The plan of some controls, None for none; or why the last of them cannot be had."""
    if not controls:
        return None, ""
    policy = best_policy(ffn) if "policy" in controls else "uniform"
    plan = ffn.plan(share, policy)
    missing = _missing(ffn, plan, controls[-1], policy)
    candidates: Candidates = "all"
    if "resampling" in controls:
        candidates = "resampled"
    elif "prediction" in controls:
        candidates = "predicted"
    plan = dataclasses.replace(plan, candidates=candidates)
    if "constraints" in controls:
        linked = candidates != "all" and ffn.rules.implied is not None
        plan = dataclasses.replace(ffn.constrained(plan), implications=linked)
    return (None, missing) if missing else (plan, "")


def _missing(ffn: FfnProfile, plan: FfnPlan, control: str, policy: str) -> str:
    """Why a control cannot be had, empty where it can."""
    if control == "prediction" and ffn.predictors is None:
        return "gates are only predicted where most of them are zero"
    if control in ("prediction", "resampling") and "gate" not in plan.modes:
        return "no layer tests its gates first, so that there are no candidates to choose"
    if control == "policy" and policy == "uniform":
        return "calibration found nothing better than the same share everywhere"
    return ""


def best_policy(ffn: FfnProfile) -> str:
    """The policy that calibration found best; the global rule where it compared none."""
    best = max(ffn.trials, key=lambda trial: trial.reward, default=None)
    return "global" if best is None else best.policy


def judge(
    dense: dict[str, Figures],
    before: dict[str, Figures],
    after: dict[str, Figures],
    quality: float,
) -> tuple[bool, str]:
    """Whether a control helps, over all texts alike, and why."""
    speed = _ratio(after, before, "tokens_per_second")
    change = _ratio(after, before, "perplexity") - 1
    cost = _ratio(after, dense, "perplexity") - 1
    said = f"{speed:.2f}x the speed, {change:+.2%} perplexity ({cost:+.2%} against dense)"
    if speed >= FASTER and cost <= quality:
        return True, said
    if change < -SAME and speed > 1 / FASTER:
        return True, said
    if speed >= FASTER:
        said += f", {quality:+.1%} is allowed"
    return False, said


def _ratio(left: dict[str, Figures], right: dict[str, Figures], name: str) -> float:
    """Geometric mean over the texts of a figure's ratios."""
    logs = [math.log(getattr(left[k], name) / getattr(right[k], name)) for k in left]
    return math.exp(sum(logs) / len(logs))


def _windows(model: Model, text: str) -> list[list[int]]:
    begin, ids = model.begin_tokens, model.tokenize(text)
    size = min(WINDOW, model.context)
    step = size - len(begin)
    cut = (begin + ids[start : start + step] for start in range(0, len(ids), step))
    # a window that ends soon after its prompt shows little
    return [window for window in cut if len(window) > 2 * min(PROMPT, size // 4)]


class _Bench:
    """Decodes the windows of every text under two plans in turns."""

    def __init__(
        self,
        model: Model,
        windows: dict[str, list[list[int]]],
        report: Progress,
        cancel: Callable[[], bool] | None,
    ) -> None:
        if not all(windows.values()):
            raise UsageError("A text is too short to measure on.")
        self._model, self._windows, self._report = model, windows, report
        self._cancel = cancel
        self._cache = model.engine.new_cache(max(map(len, self._all())))
        self._done = 0
        self._total = 2 * len(CONTROLS) * sum(map(len, self._all()))

    def _all(self) -> Iterator[list[int]]:
        return (window for windows in self._windows.values() for window in windows)

    def compare(
        self, old: FfnPlan | None, new: FfnPlan | None
    ) -> tuple[dict[str, Figures], dict[str, Figures]]:
        """The figures of two plans on each text."""
        before, after = {}, {}
        for name, windows in self._windows.items():
            tries: tuple[list[_Try], list[_Try]] = [], []
            for turn, window in enumerate(windows):
                order = (0, 1) if turn % 2 else (1, 0)
                for side in order:
                    tries[side].append(self._decode(window, (old, new)[side]))
            before[name], after[name] = _summed(tries[0]), _summed(tries[1])
        return before, after

    def _decode(self, window: list[int], plan: FfnPlan | None) -> _Try:
        """Read the window's beginning as a prompt, and time and score the steps after it."""
        if self._cancel is not None and self._cancel():
            raise Cancelled("Measuring was cancelled.")
        self._report("Ablating", self._done, self._total)
        self._done += len(window)
        prompt = min(PROMPT, len(window) // 4)
        loss, seconds = 0.0, 0.0
        self._cache.truncate(0)
        with self._model.engine_lock:
            decoding = Decoding(self._model, Choice(False, plan, "ablation"), self._cache, 1)
            decoding.prefill(window[:prompt])
            for token, following in zip(window[prompt:-1], window[prompt + 1 :], strict=True):
                start = time.perf_counter()
                logits = decoding.step(token)
                seconds += time.perf_counter() - start
                loss += float(losses_of(logits[None], [following])[0])
            return _Try(decoding.cost(len(window) // 2), decoding.steps, loss, seconds)


@dataclass(frozen=True, slots=True)
class _Try:
    cost: Cost
    steps: int
    loss: float
    seconds: float


def _summed(tries: Sequence[_Try]) -> Figures:
    steps = np.array([one.steps for one in tries])
    active = np.array([one.cost.active_parameters for one in tries])
    mean = float((steps * active).sum() / steps.sum())
    return Figures(
        active_parameters=mean,
        active_fraction=mean / tries[0].cost.total_parameters,
        perplexity=math.exp(sum(one.loss for one in tries) / int(steps.sum())),
        tokens_per_second=int(steps.sum()) / sum(one.seconds for one in tries),
    )
