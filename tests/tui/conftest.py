"""What tests of the screen share: an app to host a widget or screen, and fixed surroundings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
from textual import constants
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input, TextArea

from stem_tui import themes

THEMES = ("stem-dark", "stem-light")

SIZE = (80, 24)
"""The smallest terminal that everything must be usable in: columns, rows."""

NOW = 1_790_000_000.0
"""Where the `clock` fixture stops the clock: 2026-09-21 14:13:20 UTC."""

STATS: dict[str, Any] = {
    "model": "smollm2-135m",
    "kernels": "avx512vnni",
    "threads": 2,
    "prompt_tokens": 60,
    "reused_tokens": 20,
    "completion_tokens": 128,
    "decode_steps": 127,
    "prefill_seconds": 0.05,
    "decode_seconds": 0.5,
    "time_to_first_token": 0.06,
    "joules_per_token": None,
    "sparsity": "auto: the exact head",
    "head_rows": 4096.0,
    "active_parameters": 112_000_000,
    "total_parameters": 135_000_000,
    "layer_active_fraction": tuple(round(0.4 + 0.02 * layer, 2) for layer in range(30)),
    "bytes_per_token": 72_000_000,
    "rules": {},
    "tokens_per_second": 254.0,
    "prefill_tokens_per_second": 800.0,
    "gb_per_second": 18.3,
    "active_fraction": 112 / 135,
}
"""`Stats.to_dict()` of an answer, the same in every run."""

T = TypeVar("T")


class Host(App[Any]):
    """An app of nothing but the widgets it is given, in a house theme."""

    ENABLE_COMMAND_PALETTE = False

    def __init__(self, *widgets: Widget, theme: str = THEMES[0]) -> None:
        super().__init__()
        self.hosted: Sequence[Widget] = widgets
        self._wanted = theme

    def compose(self) -> ComposeResult:
        yield from self.hosted

    def on_mount(self) -> None:
        themes.register(self)
        self.theme = self._wanted


def run_app(
    app: App[Any], test: Callable[[Pilot[Any]], Awaitable[T]], size: tuple[int, int] = SIZE
) -> T:
    """Run an app without a terminal for as long as `test` takes, and return what that returns.

    What goes wrong in the app's own handlers and workers is raised here.
    """

    async def session() -> T:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            return await test(pilot)

    return asyncio.run(session())


def shown(app: App[Any]) -> str:
    """The text on the screen, row by row, without trailing spaces."""
    rows = app.screen._compositor.render_strips()
    return "\n".join(row.text.rstrip() for row in rows)


async def until(pilot: Pilot[Any], condition: Callable[[], object]) -> None:
    """Let the app go on until the condition holds: for what a thread or timer brings about."""
    for _ in range(400):
        await pilot.pause()
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"It never came to that; on the screen was:\n{shown(pilot.app)}")


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves by itself, and nothing comes from the terminal that started the tests."""
    monkeypatch.setattr(constants, "TEXTUAL_ANIMATIONS", "none")
    for widget in (Input, TextArea):
        monkeypatch.setattr(widget, "cursor_blink", False)
    for name in ("NO_COLOR", "TEXTUAL", "COLORTERM", "SSH_CONNECTION", "EDITOR", "VISUAL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=THEMES)
def theme(request: pytest.FixtureRequest) -> str:
    """A house theme's name; a test that asks for it runs once with each."""
    return str(request.param)


@pytest.fixture
def clock() -> Iterator[float]:
    """`time.time()` stands still at this moment, and local time is UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: NOW)
        patch.setenv("TZ", "UTC")
        _read_time_zone()
        yield NOW
    _read_time_zone()


def _read_time_zone() -> None:
    if hasattr(time, "tzset"):
        time.tzset()
