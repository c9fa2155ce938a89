"""Every way to skip neurons that a model is calibrated for, measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .sparsity import DENSE, Choice, Sparsity, describe_ffn
from .turns import Run, check_room, decode_in_turns, real_tokens

if TYPE_CHECKING:
    from .model import Model

CONTEXT = 128


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One setting of the sweep.

    `perplexity_change` is what calibration measured of its FFN part, relative to dense (0.01 is
    +1%), None where it did not. `about` says what is left out.
    """

    setting: str
    about: str
    perplexity_change: float | None
    run: Run

    def to_dict(self) -> dict[str, Any]:
        return {
            "setting": self.setting,
            "about": self.about,
            "perplexity_change": self.perplexity_change,
            **self.run.to_dict(),
        }


def sweep(
    model: Model,
    sparsities: Sequence[Sparsity] | None = None,
    *,
    quality: float | None = None,
    tokens: int = 64,
    repeats: int = 5,
    context: int = CONTEXT,
) -> list[SweepRow]:
    """Decode the same text under each setting in turns, `tokens` tokens after `context` of them.

    Without a list: dense, auto, and every setting of the model's profile with a whole head. Raises
    UsageError for shares that the model is not calibrated for, and where the context is too short.
    """
    check_room(model, context + tokens)
    rows = _profiled(model, quality) if sparsities is None else []
    rows += [_row(model, sparsity, quality) for sparsity in sparsities or ()]
    cache = model.engine.new_cache(context + tokens)
    ids = real_tokens(model, context + tokens)
    choices = [choice for _, _, choice in rows]
    # the first of all runs pays for pages that nothing has touched yet
    decode_in_turns(model, choices, cache, ids, context, 1)
    runs = decode_in_turns(model, choices, cache, ids, context, repeats)
    return [
        SweepRow(name, choice.reason, change, run)
        for (name, change, choice), run in zip(rows, runs, strict=True)
    ]


Planned = tuple[str, float | None, Choice]


def _profiled(model: Model, quality: float | None) -> list[Planned]:
    ffn = model.calibrated.ffn
    settings = () if ffn is None else ffn.settings
    return [
        _row(model, "off", quality),
        _row(model, "auto", quality),
        *(
            (
                setting.name,
                setting.perplexity_change,
                Choice(False, setting.plan, f"sparse FFN: {describe_ffn(setting)}"),
            )
            for setting in settings
        ),
    ]


def _row(model: Model, sparsity: Sparsity, quality: float | None) -> Planned:
    if sparsity == "off":
        return "off", 0.0, DENSE
    choice = model.choose(sparsity, quality)
    if sparsity == "auto":
        best = model.calibrated.best(model.quality if quality is None else quality)
        return "auto", 0.0 if best is None else best.perplexity_change, choice
    return f"{sparsity:g}", None, choice
