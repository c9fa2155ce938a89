"""Ask which file a conversation is to be written to or read from, and do it."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App

from stem_local.errors import UsageError

from .confirm import ConfirmScreen
from .dialog import one_line
from .prompt import PromptScreen

if TYPE_CHECKING:
    from stem_local.history import History

_EXPORT = "name.md: the open branch, to read. name.json: every branch, to import again."
_IMPORT = "A .json that was exported here, or a list of messages with role and content."


async def export(
    app: App[Any], history: History, conversation: int, title: str, file: str | None = None
) -> str | None:
    """Write a conversation to `file`, or where the user wants it; called in a worker.

    Returns a sentence of what was done, `None` where the user left. Raises `StemError` where it
    cannot be written.
    """
    from stem_local.history import exchange

    if file is None:
        question = f"Write “{title}” to which file?"
        name = f"{file_stem(title)}.md"
        prompt = PromptScreen(question, name, title="Export", hint=_EXPORT, done="Export")
        file = await app.push_screen_wait(prompt)
        if file is None:
            return None
    path = _path(file)
    kind = path.suffix.lower()
    if kind not in (".md", ".json"):
        raise UsageError(
            f"{path.name}: the name must end in .md or .json, which say what is meant."
        )
    # unlike Path.is_file, never raises: what is wrong with a path is told where it is written
    replace = await asyncio.to_thread(os.path.isfile, path)
    if replace:
        confirm = ConfirmScreen(
            f"{path} exists. Replace it?", title="Export", yes="Replace", no="Keep"
        )
        if not await app.push_screen_wait(confirm):
            return None
    write = exchange.to_markdown if kind == ".md" else exchange.to_json
    text = await asyncio.to_thread(write, history, conversation)
    await asyncio.to_thread(exchange.write_file, path, text, overwrite=replace)
    return f"Written to {path}."


async def import_file(app: App[Any], history: History, file: str | None = None) -> int | None:
    """Take in a conversation from `file`, or from one the user names; called in a worker.

    Returns its number, `None` where the user left. Raises `StemError` where there is none in it.
    """
    from stem_local.history import exchange

    if file is None:
        prompt = PromptScreen("Import which file?", title="Import", hint=_IMPORT, done="Import")
        file = await app.push_screen_wait(prompt)
        if file is None:
            return None
    text = await asyncio.to_thread(exchange.read_file, _path(file))
    return await asyncio.to_thread(exchange.from_json, history, text)


def file_stem(title: str) -> str:
    """A title as the name of a file that every system takes."""
    words = re.findall(r"\w+", title.lower())
    return "-".join(words)[:60].strip("-") or "conversation"


def _path(typed: str) -> Path:
    try:
        return Path(one_line(typed)).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"{typed}: {error}") from error
