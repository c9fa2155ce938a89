"""Quality at several sparsities side by side with what a token costs.

from stem_local.evaluation import evaluate

with stem_local.load("smollm2-135m") as model:
    report = evaluate(model, texts=["notes.txt"], sparsities=["off", "auto"])
"""

from __future__ import annotations

from .datasets import LabelTask
from .results import LabelScore, Report, Row, SquadScore, TextScore, TokenCost
from .run import evaluate

__all__ = [
    "LabelScore",
    "LabelTask",
    "Report",
    "Row",
    "SquadScore",
    "TextScore",
    "TokenCost",
    "evaluate",
]
