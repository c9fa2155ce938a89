"""Which keys do what, as they stand after the user's own choice of keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from textual.app import App
from textual.binding import Binding, BindingsMap
from textual.dom import DOMNode
from textual.screen import Screen

_TITLES = {"app": "Everywhere"}


@dataclass(slots=True)
class KeyAction:
    """What one or several keys do. `id` names it in the `[keys]` table of the config."""

    id: str
    description: str
    keys: list[str] = field(default_factory=list)


def areas(app: App[Any], screen: Screen[Any]) -> dict[str, list[KeyAction]]:
    """All that keys do in a screen and its widgets, focused or not, by area: the part of a
    binding's id before the dot. Bindings of Textual's own widgets, such as moving a cursor, have
    no id and are left out.
    """
    found: dict[str, KeyAction] = {}
    for binding in _bindings(app, screen):
        if binding.id is None or not binding.description or binding.system:
            continue
        action = found.setdefault(binding.id, KeyAction(binding.id, binding.description))
        key = app.get_key_display(binding)
        if key not in action.keys:
            action.keys.append(key)
    by_area: dict[str, list[KeyAction]] = {}
    for action in found.values():
        by_area.setdefault(_title(action.id), []).append(action)
    return by_area


def _title(binding_id: str) -> str:
    area = binding_id.partition(".")[0]
    return _TITLES.get(area, area.replace("_", " ").capitalize())


def _bindings(app: App[Any], screen: Screen[Any]) -> Iterator[Binding]:
    nodes: Iterable[DOMNode] = (app, screen, *screen.walk_children())
    for node in nodes:
        # Textual shows the bindings of the focused widget alone, and applies the user's keys late.
        bindings: BindingsMap = node._bindings.copy()
        bindings.apply_keymap(app._keymap)
        for _, binding in bindings:
            yield binding
