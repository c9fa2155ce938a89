"""The command palette: all slash commands, keys, themes and conversations in one search."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

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
            yield DiscoveryHit(item.text, item.run, item.text, item.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for item in (
            *self._commands(),
            *self._keys(),
            *self._themes(),
            *self._saved(),
        ):
            score = matcher.match(item.text)
            if score > 0:
                shown = matcher.highlight(item.text)
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
        self._chat.composer.load(f"/{name} ", ())
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
