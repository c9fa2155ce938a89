"""Every key that does something can be given to another one, and says what it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding
from textual.dom import DOMNode

from stem_local.config import Config
from stem_local.errors import UsageError
from stem_tui.binding_table import check_config, remappable

FILE = Path("config.toml")


def ours(node: type[DOMNode] = DOMNode) -> Iterator[tuple[str, Any]]:
    """The name of every class of ours with each of its bindings."""
    if node.__module__.startswith("stem_tui."):
        for binding in node.__dict__.get("BINDINGS", ()):
            yield node.__name__, binding
    for below in node.__subclasses__():
        yield from ours(below)


def test_bindings_have_an_id_and_say_what_they_do() -> None:
    remappable()
    nameless = [
        (owner, binding)
        for owner, binding in ours()
        if not isinstance(binding, Binding)
        or not re.fullmatch(r"[a-z]+\.[a-z_]+", binding.id or "")
        or not binding.description
    ]
    assert nameless == []


def test_an_id_means_the_same_wherever_it_is() -> None:
    table = remappable()
    assert list(table) == sorted(table)
    for owner, binding in ours():
        assert table[binding.id].description == binding.description, owner
        assert set(binding.key.split(",")) <= set(table[binding.id].keys.split(","))


@pytest.mark.parametrize("theme", ["stem-dark", "stem-light", "nord", "textual-light"])
def test_themes_that_there_are(theme: str) -> None:
    check_config(Config(theme=theme), FILE)


def test_ids_of_screens_that_are_imported_late_are_known() -> None:
    check_config(Config(keys={"models.remove": "ctrl+x", "composer.send": "ctrl+j"}), FILE)
    with pytest.raises(UsageError, match=r"no binding in \[keys\] 'models.remov'; did you mean"):
        check_config(Config(keys={"composer.send": "ctrl+j", "models.remov": "ctrl+x"}), FILE)
