"""The STEM meter: how fast the model answers, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import RenderResult
from textual.binding import Binding
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.style import Style
from textual.widget import Widget

from stem_local.sparsity import Sparsity

from .figures import bar, number, numbers, one_line, parameters, rate, strip
from .sparsity_scale import FIRST_SHARE, denser, following, sparser

if TYPE_CHECKING:
    from stem_local.live import Live

BAR = 8
GAP = "  "
Part = tuple[str, str]
"""A text and its style."""

Ways = tuple[list[Part], ...]
"""Ways to say the same, the longest first."""

STEPS = {"denser": denser, "cycle": following, "sparser": sparser}
CLICKS = {how: Style.from_meta({"@click": f"step('{how}')"}) for how in STEPS}


class StemMeter(Widget):
    """Two rows: the figures of the answer, and the sparsity setting with what comes of it.

    It is told with `show`, `rest` and `waiting`, and tells with `SparsityRequested` what was asked
    for; `setting` is for its owner to change.
    """

    DEFAULT_CSS = """
    StemMeter {
        height: 2;
        padding: 0 1;
        background: $surface;
        color: $foreground;
        link-style: none;
        link-color: $text-primary;
        link-color-hover: $text;
    }
    """
    ALLOW_SELECT = False
    KEYS: ClassVar[list[Binding]] = [
        Binding("ctrl+t", "meter('cycle')", "Sparsity: off, auto, share", id="meter.cycle"),
        Binding("f8", "meter('denser')", "Leave out less", id="meter.denser", show=False),
        Binding("f9", "meter('sparser')", "Leave out more", id="meter.sparser", show=False),
    ]
    """For the screen, which has the keys wherever the focus is; `step` is what they do."""

    setting: reactive[Sparsity] = reactive("auto")

    class SparsityRequested(Message):
        """Someone wants another setting."""

        def __init__(self, value: Sparsity) -> None:
            super().__init__()
            self.value = value

    def __init__(self) -> None:
        super().__init__()
        self._ways: Ways = ([],)
        self._layers: tuple[float, ...] = ()
        self._about = ""
        self._share = FIRST_SHARE
        self.rest(None)

    def show(self, live: Live) -> None:
        """Draw the figures of an answer under way."""
        if not live.tokens and live.prompt_done < live.prompt_total:
            read = f"{live.prompt_done:,} of {live.prompt_total:,} tokens"
            self.waiting(f"Reading the prompt, {read}", live.prompt_done, live.prompt_total)
            return
        speed = live.tokens_per_second
        ways = _figures("▶", speed, live.active_parameters, live.total_parameters)
        self._draw(ways, live.layer_active_fraction, live.sparsity)

    def rest(self, stats: Mapping[str, Any] | None) -> None:
        """Draw the figures of a finished answer, of `Stats.to_dict()`; None where there is none."""
        if stats is None:
            self._draw(([("How fast the model answers, and how much of it, is shown here.", "")],))
            return
        active, total = (number(stats.get(f"{part}_parameters")) for part in ("active", "total"))
        ways = _figures("■", number(stats.get("tokens_per_second")), active, total)
        about = stats.get("sparsity")
        layers = tuple(numbers(stats.get("layer_active_fraction")))
        self._draw(ways, layers, about if isinstance(about, str) else "")

    def waiting(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what has to be done before the answer, and how much of it is; `total` 0: unknown."""
        parts: list[Part] = [("… ", ""), (one_line(text), "bold")]
        if total > 0:
            parts += [(GAP, ""), (bar(done / total, 2 * BAR), "$text-primary")]
            parts += [(f" {min(done / total, 1):.0%}", "")]
        self._draw((parts,), (), self._about)

    def step(self, how: str) -> None:
        """Ask for the next setting: "sparser", "denser" or "cycle"."""
        value = STEPS[how](self.setting, self._share)
        if value != self.setting:
            self.post_message(self.SparsityRequested(value))

    def action_step(self, how: str) -> None:
        self.step(how)

    def watch_setting(self, setting: Sparsity) -> None:
        if not isinstance(setting, str):
            self._share = setting

    def _draw(self, ways: Ways, layers: tuple[float, ...] = (), about: str = "") -> None:
        drawn = ways, layers, about
        if drawn == (self._ways, self._layers, self._about):
            return
        if about != self._about:
            self.tooltip = one_line(about) or None
        self._ways, self._layers, self._about = drawn
        self.refresh()

    def render(self) -> RenderResult:
        width = self.size.width
        return Content("\n").join([self._first_row(width), self._second_row(width)])

    def _first_row(self, width: int) -> Content:
        strip_room = len(GAP) + BAR if self._layers else 0
        lengths = [sum(len(text) for text, _ in parts) for parts in self._ways]
        fitting = (i for i, length in enumerate(lengths) if length + strip_room <= width)
        chosen = next(fitting, len(lengths) - 1)
        parts, room = list(self._ways[chosen]), width - lengths[chosen] - len(GAP)
        if self._layers and room >= BAR:
            parts += [(GAP, ""), (strip(self._layers, room), "$text-primary")]
        return Content.assemble(*parts).truncate(width, ellipsis=True)

    def _second_row(self, width: int) -> Content:
        chosen = self.setting if isinstance(self.setting, str) else f"{self.setting:.0%}"
        row = Content.assemble(
            "sparsity ",
            ("◂ ", CLICKS["denser"]),
            (chosen, CLICKS["cycle"]),
            (" ▸", CLICKS["sparser"]),
            GAP,
            (one_line(self._about), "$foreground-muted"),
        )
        return row.truncate(width, ellipsis=True)


def _figures(mark: str, speed: float, active: float, total: float) -> Ways:
    """What is the same for an answer under way and a finished one."""
    fast = [(f"{mark} ", ""), (rate(speed), "bold")]
    if not (active and total):
        return (fast,)
    share = min(active / total, 1.0)
    counts = [(f"{GAP}{parameters(active)} of {parameters(total)} active ", "")]
    drawn = [(bar(share, BAR), "$text-primary"), (f" {share:.0%}", "")]
    return fast + counts + drawn, [*fast, (f"{GAP}{share:.0%} active", "")], fast
