"""What each control is worth: added one after the other, on four kinds of text.

dense, then potentials (a share of the neurons fails its layer's test, the same share everywhere),
prediction (of the gates that are worth computing, in naturally sparse models), resampling
(candidates come from the conversation), grammar constraints (core, floors, caps, implications) and
budget policy (the shares are spread as calibration found best).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from stem_runtime.errors import UsageError

from .pairs import Figures, Pairs

if TYPE_CHECKING:
    from stem_runtime.sparsity.ffn_profile import FfnProfile
    from stem_runtime.sparsity.plan import Candidates, FfnPlan

    from .model import Model

Progress = Callable[[str, int, int], None]

CONTROLS = ("potentials", "prediction", "resampling", "constraints", "policy")
FASTER = 1.01
"""Speeds nearer than this are taken for equal."""

SAME = 0.0005
"""Relative changes of perplexity under this are taken for none."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One row: the controls before it that helped, and `control`. `verdict` is a sentence.

    The last row, "together", has all that were kept beside dense, where that is more than one.
    """

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
        problem = model.calibrated.problem or model.calibrated.ffn_unknown
        raise UsageError(f"There is nothing to ablate in {model.name}: {problem}.")
    share = usual_share(model, ffn) if share is None else share
    pairs = Pairs(model, texts or workloads(), cancel)
    report = progress or (lambda _step, _done, _total: None)
    stages: list[Stage] = []
    kept: tuple[str, ...] = ()
    for index, control in enumerate(CONTROLS):
        old, (new, missing) = plan_of(ffn, share, kept)[0], plan_of(ffn, share, (*kept, control))
        if missing:
            stages.append(Stage(control, False, f"off: {missing}", {}))
            continue
        before, after = pairs.compare(old, new, partial(_part, report, index))
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
    if len(kept) > 1:
        plan, _ = plan_of(ffn, share, kept)
        before, after = pairs.compare(None, plan, partial(_part, report, len(CONTROLS)))
        helps, why = judge(before, before, after, model.quality)
        stages.append(Stage("together", helps, f"{' and '.join(kept)}: {why}", after))
    return Ablation(model.name, share, tuple(stages))


def _part(report: Progress, index: int, done: int, total: int) -> None:
    """Progress within one control as part of all of them."""
    report("Ablating", index * total + done, (len(CONTROLS) + 1) * total)


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
    policy = ffn.policy if "policy" in controls else "uniform"
    plan = ffn.plan(share, policy)
    missing = _missing(ffn, plan, controls[-1], policy)
    candidates: Candidates = "all"
    if "resampling" in controls:
        candidates = "resampled"
    elif "prediction" in controls:
        candidates = "predicted"
    plan = dataclasses.replace(plan, candidates=candidates)
    if "constraints" in controls:
        plan = ffn.constrained(plan)
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
