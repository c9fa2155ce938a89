"""The command palette: all slash commands, keys, themes and conversations in one search."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from stem_local.errors import StemError

from . import slash

if TYPE_CHECKING:
    from stem_local.history import ConversationInfo

    from .screens.chat import ChatScreen

CONVERSATIONS = 500
"""So many of the newest conversations are searched by title; /search finds all."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be done from the palette. `text` is what is matched and shown."""

    text: str
    help: str | None
    run: Callable[[], Any]


class Palette(Provider):
    """What a `ChatScreen` offers in the command palette."""

    async def startup(self) -> None:
        self._conversations: Sequence[ConversationInfo] = ()
        try:
            self._conversations = await asyncio.to_thread(
                self._chat.history.conversations, CONVERSATIONS
            )
        except StemError as error:
            self._chat.tell(str(error), "error")

    async def discover(self) -> Hits:
        for item in (*self._commands(), *self._keys()):
            yield DiscoveryHit(Content(item.text), item.run, item.text, item.help)

    async def search(self, query: str) -> Hits:
        for items in (self._commands(), self._keys(), self._themes(), self._saved()):
            for item in items:
                found = match(query, item.text)
                if found is not None:
                    score, places = found
                    shown = Content(item.text)
                    for start, end in places:
                        shown = shown.stylize(self.match_style or "bold underline", start, end)
                    yield Hit(score, shown, item.run, item.text, item.help)

    @property
    def _chat(self) -> ChatScreen:
        return cast("ChatScreen", self.screen)

    def _commands(self) -> Iterator[Item]:
        for command in slash.COMMANDS.values():
            run = self._write if command.needs_argument else partial(slash.start, self._chat)
            yield Item(f"/{command.name}: {command.help}", None, partial(run, command.name))

    def _write(self, name: str) -> None:
        """A command that needs more is begun in the composer, where its argument completes."""
        self._chat.composer.load(f"/{name} ")
        self._chat.composer.focus()

    def _keys(self) -> Iterator[Item]:
        seen = set()
        for node, binding, enabled, _ in self.screen.active_bindings.values():
            if binding.id is None or not binding.description or not enabled or binding.id in seen:
                continue
            seen.add(binding.id)
            key = self.app.get_key_display(binding)
            run = partial(self.app.run_action, binding.action, node)
            yield Item(f"{binding.description} ({key})", None, run)

    def _themes(self) -> Iterator[Item]:
        for name in self.app.available_themes:
            using = " (in use)" if name == self.app.theme else ""
            yield Item(f"Theme: {name}{using}", None, partial(setattr, self.app, "theme", name))

    def _saved(self) -> Iterator[Item]:
        from .screens.conversation_rows import when
        from .screens.dialog import one_line

        for info in self._conversations:
            run = partial(self._chat.open_conversation, info.id)
            about = f"{when(info.updated)}, {info.messages} messages"
            yield Item(f"Open: {one_line(info.title)}", about, run)


def match(query: str, text: str) -> tuple[float, list[tuple[int, int]]] | None:
    """How well a text has all words of a query, from 0 to 1, and where; `None` where it lacks one.

    Textual's own matcher takes letters from anywhere and tries every way to do so, which takes
    seconds for some queries; titles are as long as their owners like.
    """
    folded = text.lower()
    score, places = 0.0, []
    words = query.lower().split()
    for word in words:
        at_start = re.search(rf"(?<!\w){re.escape(word)}", folded)
        place = at_start.start() if at_start else folded.find(word)
        if place < 0:
            return None
        # The start of a word is what people type, above all the start of the name in front.
        score += (1.0 if at_start else 0.5) * (1.0 if place <= 1 else 0.8)
        places.append((place, place + len(word)))
    return score / max(len(words), 1), places
