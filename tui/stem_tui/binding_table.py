"""Every binding that the config may give other keys, whichever screen or widget has it."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from textual.binding import Binding
from textual.dom import DOMNode
from textual.theme import BUILTIN_THEMES

from stem_local.chat_settings import check_name
from stem_local.errors import UsageError

from . import __path__, themes

if TYPE_CHECKING:
    from stem_local.config import Config


@dataclass(frozen=True, slots=True)
class Remappable:
    """A binding as it is without a `[keys]` table; `keys` have commas between."""

    id: str
    keys: str
    description: str


def remappable() -> dict[str, Remappable]:
    """All bindings that have an id, in its order. Imports every screen and widget."""
    for module in pkgutil.walk_packages(__path__, f"{__package__}."):
        if not module.name.endswith(".__main__"):
            import_module(module.name)
    return dict(sorted(_loaded().items()))


def check_config(config: Config, file: Path) -> None:
    """Raises UsageError for a theme or a binding that there is not; `file` is where they come from.

    Call with the app imported.
    """
    try:
        check_name(config.theme, (themes.DARK.name, themes.LIGHT.name, *BUILTIN_THEMES), "theme")
        # most keys that people change are the chat's own, and the rest takes a while to import
        if config.keys.keys() - _loaded().keys():
            known = tuple(remappable())
            for name in config.keys:
                check_name(name, known, "binding in [keys]")
    except UsageError as error:
        raise UsageError(f"In the settings {file}: {error}") from None


def _loaded() -> dict[str, Remappable]:
    """The bindings of what has been imported."""
    found: dict[str, Remappable] = {}
    for binding in _bindings(DOMNode):
        if binding.id is not None:
            before = found.get(binding.id)
            keys = [*(before.keys.split(",") if before else ()), *binding.key.split(",")]
            keys = list(dict.fromkeys(keys))
            found[binding.id] = Remappable(binding.id, ",".join(keys), binding.description)
    return found


def _bindings(node: type[DOMNode]) -> Iterator[Binding]:
    """The bindings of a class and those under it, as far as they are ours."""
    if node.__module__.startswith(f"{__package__}."):
        yield from (b for b in node.__dict__.get("BINDINGS", ()) if isinstance(b, Binding))
    for below in node.__subclasses__():
        yield from _bindings(below)
