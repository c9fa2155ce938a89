"""Writing a message in the user's own editor."""

from __future__ import annotations

import asyncio
from typing import Any

from textual.app import App, SuspendNotSupported

from stem_local.errors import StemError


class EditorError(StemError):
    """The editor could not be started, or failed."""


async def edit(app: App[Any], text: str, command: str | None = None) -> str:
    """`text` as the editor left it, without the newline at its end.

    `command` is the editor's command line; without one, $VISUAL, $EDITOR or what the system has.
    The app gives up the terminal and goes on in the background. Raises EditorError.
    """
    import click

    def run() -> str | Exception:
        try:
            edited = click.edit(text, editor=command, extension=".md")
        except (click.ClickException, ValueError, OSError) as error:
            return error
        return text if edited is None else edited.removesuffix("\n")

    try:
        # An answer under way must not be drawn into the editor. Nothing may be raised in here:
        # the terminal would not be taken back.
        with app.suspend(), app.batch_update():
            edited = await asyncio.to_thread(run)
    except SuspendNotSupported:
        raise EditorError(
            "This terminal cannot be lent to an editor; write the message here instead."
        ) from None
    if isinstance(edited, Exception):
        reason = edited.message if isinstance(edited, click.ClickException) else edited
        raise EditorError(
            f"{reason}; the message is as it was. Name another editor with `editor` in config.toml "
            "or with $EDITOR."
        )
    return edited
