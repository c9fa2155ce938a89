"""Draw the pictures of the README: the real app, answering with an installed model.

python docs/make_screenshots.py [MODEL]

What a model answers differs between machines, so nothing checks these pictures: draw them anew when
the look of the app has changed. Settings and saved chats of the user's stay out of them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from stem_local.chat_settings import ChatSettings
from stem_local.config import Config
from stem_runtime import paths
from stem_tui.app import ChatApp

IMAGES = Path(__file__).parent / "images"
SIZE = (100, 30)

FIRST = "Why is the sky blue? Answer in one sentence."
SECOND = (
    "Write a Python class for a stack, with docstrings and an example, and explain every method."
)

SHOWN_AT = 105
"""Tokens of the second question and its answer that are there when the chat is drawn."""


def borrow_home(folder: Path) -> None:
    """Make a folder the app's home, which has the user's models and kernels and nothing else."""
    for real in (paths.data_dir() / "models", paths.cache_dir() / "kernels"):
        part = folder / ("data" if real.name == "models" else "cache")
        part.mkdir()
        (part / real.name).symlink_to(real, target_is_directory=True)
    os.environ["STEM_HOME"] = str(folder)


class Studio:
    """A running app, and the pictures taken of it."""

    def __init__(self, app: ChatApp, pilot: Pilot[Any]) -> None:
        self.app = app
        self.pilot = pilot

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.01)

    async def ask(self, text: str) -> None:
        self.app.chat.composer.load(text)
        # A pilot's press and pause wait until the screen is at rest, when the answer is over.
        self.app.simulate_key("enter")
        await self.until(lambda: self.app.chat.answering)

    async def answered(self) -> None:
        await self.until(lambda: not self.app.chat.answering)
        await self.pilot.pause()

    def take(self, name: str) -> None:
        self.app.save_screenshot(f"{name}.svg", path=str(IMAGES))


async def session(studio: Studio) -> None:
    app, pilot = studio.app, studio.pilot
    await studio.until(lambda: app.chat.model_name)
    await studio.ask(FIRST)
    await studio.answered()
    enough = app.chat.gauge.used + SHOWN_AT
    await studio.ask(SECOND)
    await studio.until(lambda: app.chat.gauge.used >= enough or not app.chat.answering)
    studio.take("chat")
    await studio.answered()
    await pilot.press("f4")
    await pilot.pause(0.2)
    studio.take("settings")
    await pilot.press("escape")
    await pilot.press("f2")
    await pilot.pause(1)
    studio.take("models")


async def main(model: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        borrow_home(Path(folder))
        app = ChatApp(Config(chat=ChatSettings(temperature=0)), model=model)
        async with app.run_test(size=SIZE) as pilot:
            await session(Studio(app, pilot))
            await app.action_quit()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or [None]))
