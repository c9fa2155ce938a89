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

    def run() -> str | None:
        return click.edit(text, editor=command, extension=".md")

    try:
        # an answer under way must not be drawn into the editor
        with app.suspend(), app.batch_update():
            edited = await asyncio.to_thread(run)
    except SuspendNotSupported:
        raise EditorError(
            "This terminal cannot be lent to an editor; write the message here instead."
        ) from None
    except (click.ClickException, ValueError, OSError) as error:
        reason = error.message if isinstance(error, click.ClickException) else error
        raise EditorError(
            f"{reason}; the message is as it was. Name another editor with `editor` in the "
            "settings file or with $EDITOR."
        ) from None
    return text if edited is None else edited.removesuffix("\n")
