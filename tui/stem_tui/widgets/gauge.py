"""How full the context is, and what happens when it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from .figures import bar

if TYPE_CHECKING:
    from stem_local.generate_options import ContextPolicy

BAR = 10
NEARLY = 0.8


class ContextGauge(Widget):
    """One row: tokens used of those that fit, and what the policy does when no more do.

    From `NEARLY` on it says so in words. Where there is little room, the bar goes first.
    """

    DEFAULT_CSS = """
    ContextGauge {
        height: 1;
        padding: 0 1;
        background: $surface;
        color: $text-muted;
    }
    ContextGauge.-nearly {
        color: $text-warning;
        text-style: bold;
    }
    """
    ALLOW_SELECT = False

    used: reactive[int] = reactive(0)
    limit: reactive[int] = reactive(0)
    policy: reactive[ContextPolicy] = reactive("stop")

    def show(self, used: int, limit: int) -> None:
        """Draw that `used` of `limit` tokens are taken; a limit of 0 is not known yet."""
        self.used, self.limit = used, limit

    @property
    def share(self) -> float:
        return self.used / self.limit if self.limit > 0 else 0.0

    def watch_used(self) -> None:
        self.set_class(self.share >= NEARLY, "-nearly")

    def watch_limit(self) -> None:
        self.set_class(self.share >= NEARLY, "-nearly")

    def render(self) -> RenderResult:
        width = self.size.width
        lines = list(self._lines())
        fitting = (line for line in lines if len(line) <= width)
        return Content(next(fitting, lines[-1])).truncate(width, ellipsis=True)

    def _lines(self) -> Iterator[str]:
        """Ways to say it, the longest first."""
        if self.limit <= 0:
            yield "context: known once the model is loaded"
            yield "context: -"
            return
        numbers = f"{self.used:,} of {self.limit:,}"
        # rounded down: 100% is said of a full one only
        share, will = f"{int(100 * self.share)}%", self._will()
        yield f"context {bar(self.share, BAR)} {numbers} tokens ({share}) · {will}"
        yield f"context {numbers} ({share}) · {will}"
        yield f"context {share} · {will}"
        yield f"context {share} · {will.partition(': ')[0]}"
        yield f"context {share}"

    def _will(self) -> str:
        stops = self.policy == "stop"
        if self.share >= 1:
            return "! full: " + ("the chat stops here" if stops else "old turns are dropped")
        if self.share >= NEARLY:
            return "! nearly full: " + ("then the chat stops" if stops else "old turns drop next")
        return "stops when full" if stops else "drops old turns when full"
