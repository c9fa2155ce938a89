"""Copying text out of the chat: through the terminal, and to the system's own clipboard."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

from textual.app import App

MAX_TERMINAL = 74_000
"""Bytes that can be sent to a terminal's clipboard: xterm, for one, takes 100,000 of base64."""

PATIENCE = 3.0
"""Seconds that the program behind a system clipboard may take."""


async def copy(app: App[Any], text: str, what: str = "the text") -> str:
    """Copy `text` wherever it can go, and return a sentence that says where that was.

    The terminal's clipboard is the one beside the user, over ssh too; it takes no long texts and
    never answers. The system's is asked in a thread, since it is a program of its own.
    """
    data = text.encode(errors="replace")
    text = data.decode()
    fits = len(data) <= MAX_TERMINAL
    if fits:
        app.copy_to_clipboard(text)
    to_system = await _to_system(text)
    name = what[:1].upper() + what[1:]
    if to_system and fits:
        return f"{name} is in the clipboard."
    if to_system:
        return f"{name} is in the system's clipboard; it is too long for the terminal's."
    if fits:
        return f"{name} was sent to the terminal's clipboard; this system has no other."
    return (
        f"{name} was not copied: it is too long for the terminal's clipboard, and this system has "
        "no other. /export writes it to a file."
    )


async def _to_system(text: str) -> bool:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()

    def tell(copied: bool) -> None:
        if not answer.done():
            answer.set_result(copied)

    def work() -> None:
        copied = _pyperclip(text)
        with suppress(RuntimeError):  # the app has ended
            loop.call_soon_threadsafe(tell, copied)

    # not one of asyncio's own threads: leaving the app would wait for a program that hangs
    threading.Thread(target=work, daemon=True).start()
    try:
        return await asyncio.wait_for(answer, PATIENCE)
    except TimeoutError:
        return False


def _pyperclip(text: str) -> bool:
    import pyperclip

    try:
        pyperclip.copy(text)
    except (pyperclip.PyperclipException, OSError, UnicodeError):
        return False
    return True
