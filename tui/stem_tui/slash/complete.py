"""What the arguments of commands could be. Called in threads; nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .command import Suggestion

if TYPE_CHECKING:
    from ..screens.chat import ChatScreen

MOST = 50
"""Suggestions at a time; typing on narrows them down."""

MOST_ENTRIES = 5_000
"""Entries of a folder that are looked at."""


def matching(typed: str, found: Iterable[Suggestion]) -> list[Suggestion]:
    """Those that begin with what is typed, then those that have it elsewhere."""
    wanted = typed.strip().lower()
    having = [item for item in found if wanted in item.value.lower()]
    having.sort(key=lambda item: not item.value.lower().startswith(wanted))
    return having[:MOST]


def models(chat: ChatScreen, typed: str) -> list[Suggestion]:
    """Installed models."""
    from stem_local import store, units

    return matching(
        typed,
        (
            Suggestion(
                model.name,
                "in use"
                if model.name == chat.model_name
                else model.damage or units.size(model.size),
            )
            for model in store.installed()
        ),
    )


def settings(chat: ChatScreen, typed: str) -> list[Suggestion]:
    """A setting's name, then what it may be."""
    from stem_local.chat_settings import ABOUT

    name, blank, _ = typed.partition(" ")
    known = chat.settings.describe()
    if not blank:
        return matching(
            name, (Suggestion(name, f"{value} · {help_}", False) for name, value, help_ in known)
        )
    return [
        Suggestion(f"{name} {value}", ABOUT[name].allowed)
        for known_name, value, _ in known
        if known_name == name and "\n" not in value and name != "system"
    ]


def sparsity(_: ChatScreen, typed: str) -> list[Suggestion]:
    """Ways to set the sparsity."""
    return matching(
        typed,
        (
            Suggestion("auto", "what does not matter, where that is faster"),
            Suggestion("off", "leave nothing out"),
            *(Suggestion(f"{share}%", "of the neurons") for share in range(10, 100, 10)),
        ),
    )


def themes(chat: ChatScreen, typed: str) -> list[Suggestion]:
    """Themes of the app, dark and light."""
    available = sorted(chat.app.available_themes.values(), key=lambda theme: theme.name)
    kinds = ((theme.name, "dark" if theme.dark else "light") for theme in available)
    return matching(typed, (Suggestion(name, kind) for name, kind in kinds))


def conversations(chat: ChatScreen, typed: str) -> list[Suggestion]:
    """Saved chats, newest first, by number; what is typed may also be words of the title."""
    wanted = typed.strip().lower()
    found = (
        Suggestion(str(info.id), f"{info.title}  ({info.messages} messages)")
        for info in chat.history.conversations()
        if wanted in info.title.lower() or str(info.id).startswith(wanted)
    )
    return list(islice(found, MOST))


def paths(_: ChatScreen, typed: str) -> list[Suggestion]:
    """Files and folders, as people type them: relative to here, or from ~ or the root."""
    folder, name = os.path.split(typed)
    entries = sorted(
        islice(_entries(Path(folder or ".").expanduser(), name), MOST_ENTRIES),
        key=lambda entry: (entry.name.startswith("."), entry.name.lower()),
    )
    return [_path(folder, entry) for entry in entries[:MOST]]


def _entries(folder: Path, name: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        for entry in found:
            hidden = entry.name.startswith(".") and not name.startswith(".")
            if entry.name.lower().startswith(name.lower()) and not hidden:
                yield entry


def _path(folder: str, entry: os.DirEntry[str]) -> Suggestion:
    from stem_local import units

    value = os.path.join(folder, entry.name)  # noqa: PTH118  # keeps ~ and ./ as typed
    if entry.is_dir():
        return Suggestion(f"{value}/", "folder", whole=False)
    return Suggestion(value, units.size(entry.stat().st_size))
