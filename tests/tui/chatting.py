"""The whole app with a scripted model, as tests drive it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from textual.pilot import Pilot

from stem_local.config import Config
from stem_local.history import Entry
from stem_tui.app import ChatApp

from .conftest import run_app, shown, until
from .fake_model import Scripted


class Chatting:
    """A running `ChatApp` and what a user does with it."""

    def __init__(self, app: ChatApp, pilot: Pilot[Any], model: Scripted) -> None:
        self.app = app
        self.pilot = pilot
        self.model = model

    @property
    def chat(self) -> Any:
        return self.app.chat

    @property
    def entries(self) -> list[Entry]:
        return list(self.chat.dialogue.entries)

    @property
    def said(self) -> list[str]:
        return [entry.content for entry in self.entries]

    @property
    def screen(self) -> str:
        return shown(self.app)

    @property
    def told(self) -> str:
        """What toasts say, one a line."""
        return "\n".join(note.message for note in self.app._notifications)

    async def until(self, condition: Callable[[], object]) -> None:
        await until(self.pilot, condition)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def send(self, text: str) -> None:
        """Type a line and send it, without waiting for what comes of it."""
        self.chat.composer.load(text)
        await self.press("enter")

    async def send_held(self, text: str, after: int = 0) -> None:
        """Send a message and wait until its answer is held, after so many steps of the engine."""
        self.model.hold_after(after)
        await self.send(text)
        await self.until(self.model.started.is_set)

    async def let_go(self) -> None:
        """Let a held answer go on, and wait for its end."""
        self.model.release()
        await self.until(lambda: not self.chat.answering)

    async def ask(self, text: str) -> None:
        """Send a message and wait for the whole answer."""
        before = len(self.entries)
        await self.send(text)
        await self.until(lambda: len(self.entries) == before + 2 and not self.chat.answering)


def run_chat(
    scripted: Scripted,
    test: Callable[[Chatting], Awaitable[None]],
    *,
    config: Config | None = None,
    size: tuple[int, int] = (80, 24),
    opened: bool = True,
    **options: Any,
) -> ChatApp:
    """Run the app until `test` is through; with `opened`, that begins once the model is open."""
    app = ChatApp(config or Config(), load=scripted.load, **options)

    async def session(pilot: Pilot[Any]) -> None:
        chatting = Chatting(app, pilot, scripted)
        if opened:
            await chatting.until(lambda: app.seat.model is not None and app.chat.model_name)
            await chatting.until(lambda: not app.seat.opening)
        await test(chatting)

    run_app(app, session, size)
    return app
