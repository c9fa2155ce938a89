"""The application: the model and the history, and the order in which things start."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from stem_local.errors import (
    DamagedHistoryError,
    HistoryError,
    NotInstalledError,
    StemError,
)

from . import terminal_driver, themes
from .dialogue import model_of
from .screens.chat import ChatScreen
from .seat import Seat

if TYPE_CHECKING:
    from textual.driver import Driver

    from stem_local.config import Config
    from stem_local.history import History
    from stem_local.model import Model

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter's lock from another that waits for it. Python's own
5 ms are two tokens of a small model each time something is drawn."""

NOT_SAVED = "not saved"


class ChatApp(App[None]):
    """A chat with models on this machine.

    `resume` is a conversation's id or "latest"; `model` and the chat settings in `given` hold for
    it too, unlike those of `config`. `first` is a message to begin with. `load` opens a model as
    `stem_local.load` does.
    """

    TITLE = "stem-chat"
    CSS = """
    /* at the bottom they would hide what is being typed */
    ToastRack { dock: top; align: right top; }
    """
    # the chat's own palette has them all
    COMMANDS: ClassVar[set[Any]] = set()
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", priority=True, id="app.quit"),
        Binding("ctrl+p", "command_palette", "Commands", priority=True, id="app.palette"),
    ]

    def __init__(
        self,
        config: Config,
        *,
        model: str | None = None,
        given: Mapping[str, Any] | None = None,
        resume: int | Literal["latest"] | None = None,
        first: str | None = None,
        load: Callable[..., Model] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.settings = config.chat
        self.seat = Seat(self._open_model)
        self.unsaved = "private" if config.private else ""
        self.history_opened = asyncio.Event()
        self._model = model
        self._given = given or {}
        self._resume = resume
        self._first = first
        self._load = load
        themes.register(self)
        self.theme = config.theme
        self.set_keymap(dict(config.keys))

    def get_driver_class(self) -> type[Driver]:
        return terminal_driver.driver(super().get_driver_class())

    def get_default_screen(self) -> Screen[Any]:
        return ChatScreen(self.settings)

    @property
    def chat(self) -> ChatScreen:
        """The screen at the bottom, whatever lies over it."""
        return cast("ChatScreen", self.screen_stack[0])

    def on_mount(self) -> None:
        # what is slow to import or to open comes after the first picture
        self.call_after_refresh(self._start)

    @work(name="start")
    async def _start(self) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        await self.chat.history_changed(await self._open_history())
        self.history_opened.set()
        if self._resume is not None:
            await self._resume_conversation()
        self.use_model(self._model or await self._usual_model(), wanted=self._model is not None)
        if self._first is not None:
            await self.chat.ask(self._first)

    async def action_quit(self) -> None:
        await self.chat.leave()
        self.exit()

    async def on_unmount(self) -> None:
        await self.seat.close()

    # The model.

    @work(exclusive=True, group="model")
    async def use_model(self, name: str | None, *, wanted: bool = True) -> None:
        """Let a model answer, None for the default one; `wanted` by somebody, by that name."""
        chat = self.chat
        chat.meter.waiting(f"Opening {name}" if name else "Opening the model")
        try:
            model = await self.seat.take(name)
        except NotInstalledError as error:
            chat.show_figures()
            if name and wanted:
                chat.tell(str(error), "warning")
            if self.seat.model is None:
                await self.choose_model()
        except StemError as error:
            chat.show_figures()
            chat.tell(str(error), "error")
        else:
            chat.model_ready(model)
            # what is loaded now stays: going through all of it again and again is felt as pauses
            gc.freeze()

    async def _usual_model(self) -> str | None:
        """The model of the open chat, of the settings, or of the last chat that had one."""
        usual = self.chat.dialogue.model or self.config.model
        if usual:
            return usual
        history = self.chat.history
        latest = await asyncio.to_thread(history.latest)
        if latest is None:
            return None
        return model_of(await asyncio.to_thread(history.outline, latest)) or None

    async def choose_model(self) -> None:
        """Let the user get, choose or remove models."""
        from .screens.models import ModelsScreen

        chat = self.chat
        screen = ModelsScreen(
            chat.model_name or None,
            first_run=self.seat.model is None,
            calibrate=self.config.calibrate,
            answering=lambda: chat.answering,
            kv_cache=self.config.kv_cache,
        )
        name = await self.push_screen_wait(screen)
        if name is not None:
            await chat.use_model(name)

    def _open_model(self, name: str | None) -> Model:
        """In a thread: open a model with the user's settings."""
        from stem_local import load

        loop = cast("asyncio.AbstractEventLoop", self._loop)

        def notify(text: str) -> None:
            loop.call_soon_threadsafe(self.chat.meter.waiting, text)

        return (self._load or load)(
            name,
            context=self.config.context,
            threads=self.config.threads,
            device=self.config.device,
            gpu_memory=self.config.gpu_memory,
            kv_cache=self.config.kv_cache,
            notify=notify,
        )

    # The history.

    async def go_on_unsaved(self, error: HistoryError) -> None:
        """What cannot be saved any more goes on in memory, and the user is told."""
        from stem_local.history import History

        self.unsaved = NOT_SAVED
        self.chat.tell(
            f"{error} From here on nothing is saved: /export writes this chat to a file, /save "
            "tries again.",
            "error",
        )
        await self.chat.history_changed(History.in_memory())

    async def save_again(self) -> None:
        """Go back to the saved chats with the open one, if it is not among them. HistoryError."""
        if self.unsaved != NOT_SAVED:
            return
        from stem_local.history import History

        history = await asyncio.to_thread(History.open)
        self.unsaved = ""
        await self.chat.history_changed(history)

    async def _open_history(self) -> History:
        from stem_local.history import History

        if self.unsaved:
            return History.in_memory()
        try:
            return await asyncio.to_thread(History.open)
        except DamagedHistoryError as error:
            if await self._set_aside(error):
                return await self._open_history()
        except HistoryError as error:
            self.chat.tell(f"{error} Nothing is saved meanwhile.", "error")
        self.unsaved = NOT_SAVED
        return History.in_memory()

    async def _set_aside(self, error: DamagedHistoryError) -> bool:
        """Ask whether a damaged history makes room for a new one."""
        from stem_local.history import History

        from .screens.confirm import ConfirmScreen

        question = f"{error} Move it aside now? Otherwise chats are not saved this time."
        screen = ConfirmScreen(question, title="Saved chats", yes="Move aside", no="Leave it")
        if not await self.push_screen_wait(screen):
            return False
        try:
            moved = await asyncio.to_thread(History.set_aside)
        except HistoryError as refused:
            self.chat.tell(str(refused), "error")
            return False
        self.chat.tell(f"The old one is {moved}.")
        return True

    async def _resume_conversation(self) -> None:
        try:
            number = self._resume
            if number == "latest":
                number = await asyncio.to_thread(self.chat.history.latest)
            if number is not None:
                await self.chat.open_conversation(int(number))
                self.chat.change(replace(self.chat.settings, **self._given))
            else:
                self.chat.tell("There is no saved chat yet.")
        except StemError as error:
            self.chat.tell(str(error), "error")
