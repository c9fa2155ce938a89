"""stem-local eval"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stem_runtime.errors import UsageError

from ..cli_types import installed
from ..units import parameters, size
from ._options import kv_cache_option, quality_option, sparsities
from ._output import as_json, cancellable, facts, table

if TYPE_CHECKING:
    from stem_runtime.cache_kinds import CacheKind

    from ..evaluation import LabelTask, Report, Row
    from ..sparsity import Sparsity

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model", required=False, shell_complete=installed)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=_FILE,
    metavar="FILE",
    help="Take the perplexity of a text; repeatable.",
)
@click.option("--squad", type=_FILE, metavar="FILE", help="Ask the questions of a SQuAD v1.1 JSON.")
@click.option("--tsv", type=_FILE, metavar="FILE", help="Label the sentences of a table (SST-2).")
@click.option("--labels", metavar="A,B", help="Words of the labels 0, 1, ... (negative,positive).")
@click.option("--question", metavar="TEXT", help="What is asked about each sentence.")
@click.option("--sentence-column", metavar="NAME", help="Column of the sentences (sentence).")
@click.option("--label-column", metavar="NAME", help="Column of the labels (label).")
@click.option(
    "--sparsity",
    type=sparsities,
    metavar="S,S",
    help="Settings to compare, such as off,auto,0.3 (off and what the model is calibrated for).",
)
@quality_option
@click.option("--limit", default=100, metavar="N", help="Most questions and sentences (100).")
@click.option("--tokens", default=8192, metavar="N", help="Most tokens of each text (8192).")
@click.option("--chat", is_flag=True, help="Ask SQuAD's questions in the model's chat template.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw the result as .png or .svg.")
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.")
@click.option("--kernels", metavar="NAME", help="Kernel variant; see stem-local doctor.")
@kv_cache_option
def command(
    model: str | None,
    texts: tuple[Path, ...],
    squad: Path | None,
    tsv: Path | None,
    labels: str | None,
    question: str | None,
    sentence_column: str | None,
    label_column: str | None,
    sparsity: tuple[Sparsity, ...] | None,
    quality: float,
    limit: int,
    tokens: int,
    chat: bool,
    json_: bool,
    plot: Path | None,
    threads: int | None,
    kernels: str | None,
    kv_cache: CacheKind | None,
) -> None:
    """Measure MODEL's quality at several sparsities beside what a token costs.

    Without a file it takes the perplexity of texts of its own. Labels that are not SST-2's need a
    question that asks for them. --plot needs the extra "plot" (matplotlib).

    \b
    Examples:
      stem-local eval smollm2-135m --text notes.txt
      stem-local eval smollm2-135m --squad dev-v1.1.json --tsv dev.tsv --limit 200
      stem-local eval smollm2-135m --sparsity off,auto --plot quality.png
      stem-local eval smollm2-135m --tsv mails.tsv --labels no,yes --question "Is this spam?"
    """
    from ..api import load
    from ..evaluation import evaluate
    from ..plot import check, draw

    task = label_task(labels, question, sentence_column, label_column)
    if plot is not None:
        check(plot)
    with (
        load(model, threads=threads, kernels=kernels, kv_cache=kv_cache, quality=quality) as loaded,
        cancellable() as (bar, cancelled),
    ):
        report = evaluate(
            loaded,
            texts=texts,
            squad=squad,
            table=tsv,
            task=task,
            sparsities=sparsity or None,
            limit=limit,
            tokens=tokens,
            chat=chat,
            progress=bar.share,
            cancel=cancelled,
        )
    if json_:
        as_json(report.to_dict())
    else:
        show(report)
    if plot is not None:  # last, so that a full disk does not cost what was measured
        draw(report, plot)


def label_task(
    labels: str | None,
    question: str | None,
    sentence_column: str | None,
    label_column: str | None,
) -> LabelTask:
    """How the table's sentences are asked about. Raises UsageError."""
    from ..evaluation import LabelTask

    if labels is not None and question is None:
        raise UsageError("--labels need a --question that they are the answers to.")
    given: dict[str, Any] = {
        "words": None if labels is None else tuple(word.strip() for word in labels.split(",")),
        "question": question,
        "sentence_column": sentence_column,
        "label_column": label_column,
    }
    return LabelTask(**{name: value for name, value in given.items() if value is not None})


def show(report: Report) -> None:
    """Print a report for people: a line for each sparsity, then what was left out at each."""
    columns = [list(_cells(report, row)) for row in report.rows]
    table([name for name, _ in columns[0]], [[cell for _, cell in row] for row in columns])
    click.echo()
    facts([*((str(row.sparsity), row.setting) for row in report.rows), *_amounts(report.rows[0])])


def _cells(report: Report, row: Row) -> Iterator[tuple[str, str]]:
    """Headings and contents of a row, of the tests that were run."""
    yield "sparsity", str(row.sparsity)
    if row.text is not None:
        change = report.perplexity_change(row)
        yield "perplexity", f"{row.text.perplexity:.3f}"
        yield "change", "" if change is None else f"{change:+.2%}"
    if row.squad is not None:
        yield "exact match", f"{100 * row.squad.exact_match:.1f}"
        yield "F1", f"{100 * row.squad.f1:.1f}"
    if row.labels is not None:
        yield "accuracy", f"{row.labels.accuracy:.1%}"
    yield "active", parameters(row.cost.active_parameters)
    yield "of all", f"{row.cost.active_fraction:.1%}"
    yield "per token", size(row.cost.bytes_per_token)
    if row.cost.joules_per_token is not None:
        yield "energy", f"{row.cost.joules_per_token:.2f} J"
    yield "speed", f"{row.cost.tokens_per_second:.1f} tok/s"


def _amounts(row: Row) -> Iterator[tuple[str, str]]:
    if row.text is not None:
        yield "perplexity", f"over {row.text.tokens} tokens"
    if row.squad is not None:
        yield "exact match, F1", f"percent of {row.squad.questions} questions"
    if row.labels is not None:
        yield "accuracy", f"over {row.labels.sentences} sentences"
