"""What an evaluation found: one row for each sparsity, quality beside cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..sparsity import Sparsity


@dataclass(frozen=True, slots=True)
class TextScore:
    """Perplexity over all texts; `tokens` were scored."""

    perplexity: float
    tokens: int


@dataclass(frozen=True, slots=True)
class SquadScore:
    """Means over `questions`, both 0 to 1."""

    exact_match: float
    f1: float
    questions: int


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Share of `sentences` whose label was found, 0 to 1."""

    accuracy: float
    sentences: int


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What a decoded token takes on average, sampling left out.

    Speed and energy are medians; `joules_per_token` is None where the machine does not tell.
    """

    active_parameters: int
    total_parameters: int
    bytes_per_token: int
    tokens_per_second: float
    joules_per_token: float | None

    @property
    def active_fraction(self) -> float:
        return self.active_parameters / self.total_parameters

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "active_fraction": self.active_fraction}


@dataclass(frozen=True, slots=True)
class Row:
    """One sparsity. `setting` says what was left out, or why nothing was."""

    sparsity: Sparsity
    setting: str
    cost: TokenCost
    text: TextScore | None = None
    squad: SquadScore | None = None
    labels: LabelScore | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Rows in the order in which the sparsities were given."""

    model: str
    kernels: str
    threads: int
    rows: tuple[Row, ...]

    def perplexity_change(self, row: Row) -> float | None:
        """How much worse a row's perplexity is than dense: 0.01 is 1%. None where not measured."""
        dense = next((r.text for r in self.rows if r.sparsity == "off"), None)
        if dense is None or row.text is None:
            return None
        return row.text.perplexity / dense.perplexity - 1

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON; tests that were not run are None."""
        return {
            "model": self.model,
            "kernels": self.kernels,
            "threads": self.threads,
            "rows": [self._row(row) for row in self.rows],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        return {
            **asdict(row),
            "cost": row.cost.to_dict(),
            "perplexity_change": self.perplexity_change(row),
        }
