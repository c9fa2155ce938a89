"""How the screens over the chat look, in both house themes."""

from __future__ import annotations

from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import OptionList

from stem_local.history import History
from stem_tui.screens.confirm import ConfirmScreen
from stem_tui.screens.conversations import ConversationsScreen
from stem_tui.screens.page import PageScreen
from stem_tui.screens.prompt import PromptScreen

from .conftest import Host, until

PAGE = """\
The last answer of **smollm2-135m**:

| figure | value |
|---|---|
| speed | 254 tok/s |
| active | 112M of 135M parameters |

1. `auto`: the exact head
2. nothing else was left out
"""


def conversations() -> Screen[Any]:
    """Messages found, the second one highlighted."""
    history = History.in_memory()
    for days, question in enumerate(
        ("Why is the sky blue?", "Is the sky blue on [b]Mars[/b]?", "What is blue about the blues?")
    ):
        number = history.create({})
        asked = history.add(number, None, "user", question)
        history.add(number, asked.id, "assistant", f"Blue light is scattered {days} times as much.")
    return ConversationsScreen(history, current=2, query="blue")


def looks(snap_compare: Any, theme: str, screen: Screen[Any], *keys: str) -> bool:
    async def before(pilot: Pilot[Any]) -> None:
        await pilot.app.push_screen(screen)
        if isinstance(screen, ConversationsScreen):
            await until(pilot, lambda: screen.query_one(OptionList).option_count)
        await pilot.press(*keys)

    app = Host(theme=theme)
    app.title = "stem-chat"
    return bool(snap_compare(app, run_before=before))


@pytest.mark.usefixtures("clock")
def test_conversations(snap_compare: Any, theme: str) -> None:
    assert looks(snap_compare, theme, conversations(), "down")


def test_a_question(snap_compare: Any, theme: str) -> None:
    question = "Delete “Why is the sky blue?” with all its messages? This cannot be undone."
    screen = ConfirmScreen(question, title="Delete", yes="Delete", no="Keep")
    assert looks(snap_compare, theme, screen)


def test_a_prompt(snap_compare: Any, theme: str) -> None:
    screen = PromptScreen(
        "Write “Why is the sky blue?” to which file?",
        "why-is-the-sky-blue.md",
        title="Export",
        hint="name.md: the open branch, to read. name.json: every branch.",
        done="Export",
    )
    assert looks(snap_compare, theme, screen, "end")


def test_a_page(snap_compare: Any, theme: str) -> None:
    assert looks(snap_compare, theme, PageScreen("Figures", PAGE))
