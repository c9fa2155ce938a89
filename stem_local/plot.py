"""Pictures of evaluations: quality against what a token costs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stem_runtime.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from .evaluation.results import Report

SUFFIXES = (".png", ".svg")
_DENSE, _SPARSE, _INK = "#b3541e", "#1f6f8b", "#333333"


@dataclass(frozen=True, slots=True)
class _Series:
    """What an axis shows: its name, and a value for every row of the report."""

    name: str
    values: list[float]


def check(path: Path) -> None:
    """Make sure that a picture can be drawn to `path`, before the work that it is to show.

    Raises UsageError, and UnsupportedError without matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"A plot is a file ending in {' or '.join(SUFFIXES)}, not {path.name!r}.")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder, so that no plot can be written there.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written; give the plot another name.")
    _matplotlib()


def draw(report: Report, path: Path) -> None:
    """Write a picture of a report: a row for each quality measured, a column for each cost.

    PNG or SVG, by the end of the name. Raises UsageError, UnsupportedError, OSError.
    """
    check(path)
    names = [str(row.sparsity) for row in report.rows]
    qualities, costs = list(_qualities(report)), _costs(report)
    matplotlib = _matplotlib()
    # text stays text in an SVG, and two pictures of one report do not differ
    style = {"svg.fonttype": "none", "svg.hashsalt": "stem-local", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = matplotlib.figure.Figure(
            figsize=(10, 3 * len(qualities) + 0.8), facecolor="white", layout="constrained"
        )
        figure.suptitle(
            f"{report.model}: quality and cost at each sparsity "
            f"({report.kernels} kernels, threads: {report.threads})",
            color=_INK,
        )
        grid = figure.subplots(len(qualities), len(costs), squeeze=False)
        for line, quality in zip(grid, qualities, strict=True):
            for axes, cost in zip(line, costs, strict=True):
                _panel(axes, names, cost, quality)
        undated = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=undated)


def _qualities(report: Report) -> Iterator[_Series]:
    if texts := [row.text for row in report.rows if row.text is not None]:
        yield _Series("perplexity (lower is better)", [score.perplexity for score in texts])
    if answers := [row.squad for row in report.rows if row.squad is not None]:
        yield _Series("SQuAD F1, %", [100 * score.f1 for score in answers])
        yield _Series("SQuAD exact match, %", [100 * score.exact_match for score in answers])
    if labels := [row.labels for row in report.rows if row.labels is not None]:
        yield _Series("label accuracy, %", [100 * score.accuracy for score in labels])


def _costs(report: Report) -> tuple[_Series, _Series]:
    active = [row.cost.active_parameters / 1e6 for row in report.rows]
    speed = [row.cost.tokens_per_second for row in report.rows]
    return (
        _Series("active parameters per token, millions", active),
        _Series("decoding speed, tok/s", speed),
    )


def _panel(axes: Any, names: Sequence[str], cost: _Series, quality: _Series) -> None:
    """One quality against one cost; dense is a diamond with a dashed line at its height."""
    axes.set_facecolor("white")
    points = sorted(zip(cost.values, quality.values, names, strict=True))
    for place, (x, y, name) in enumerate(points):
        dense = name == "off"
        color = _DENSE if dense else _SPARSE
        axes.scatter([x], [y], s=60 if dense else 36, marker="D" if dense else "o", color=color)
        if dense:
            axes.axhline(y, color=_DENSE, lw=0.8, ls="--", alpha=0.7, zorder=0)
        axes.annotate(
            "off (dense)" if dense else name,
            (x, y),
            # above and below in turns, so that the names of neighbours do not run together
            xytext=(6, -14 if place % 2 else 6),
            textcoords="offset points",
            color=color,
        )
    axes.margins(0.2)
    axes.set_xlabel(cost.name, color=_INK)
    axes.set_ylabel(quality.name, color=_INK)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _matplotlib() -> Any:
    try:
        import matplotlib.figure
    except ImportError:
        raise UnsupportedError(
            "Plots need matplotlib, which is not installed: pip install 'stem-local[plot]'."
        ) from None
    return matplotlib
