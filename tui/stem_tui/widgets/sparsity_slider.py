"""Sparsity by hand: off, auto, or a share on a slider."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult, RenderResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from stem_local.sparsity import MOST, Sparsity

from .choices import Choices
from .figures import FOCUSED
from .sparsity_scale import FIRST_SHARE, STEP, nearest

SHARE = "share"
OPTIONS = (("off", "off"), ("auto", "auto"), (SHARE, "a share"))
MARGIN = 2
NUMBER = len(" 95%")


class SparsitySlider(Widget, can_focus=True):
    """A share of 0 to 95%, in steps of 5, by keys or by mouse. `Changed` tells of people only."""

    DEFAULT_CSS = """
    SparsitySlider {
        height: 1;
        color: $foreground;
        pointer: pointer;
        &:focus { text-style: bold; background: $primary 15%; }
        &.-unused { color: $text-muted; }
    }
    """
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left,down,minus", f"move({-STEP})", "Slider: less", id="settings.less", show=False
        ),
        Binding("right,up,plus", f"move({STEP})", "Slider: more", id="settings.more", show=False),
        Binding("home", f"move({-MOST})", "Slider: least", id="settings.least", show=False),
        Binding("end", f"move({MOST})", "Slider: most", id="settings.most", show=False),
    ]

    value: reactive[float] = reactive(FIRST_SHARE)

    class Changed(Message):
        """Someone moved the slider."""

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

    def render(self) -> RenderResult:
        track = max(self._track, 1)
        knob = round(self.value / MOST * (track - 1))
        mark = FOCUSED if self.has_focus else " "
        line = "━" * knob + "●" + "─" * (track - 1 - knob)
        return Content(f"{mark} {line} {self.value:>3.0%}")

    @property
    def _track(self) -> int:
        """Columns that the knob can stand on."""
        return self.size.width - MARGIN - NUMBER

    def action_move(self, step: float) -> None:
        self._take(nearest(self.value + step))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self.capture_mouse()
        self._point(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self.app.mouse_captured is self:
            self._point(event.x)

    def on_mouse_up(self) -> None:
        self.release_mouse()

    def _point(self, x: int) -> None:
        self._take(nearest((x - MARGIN) / max(self._track - 1, 1) * MOST))

    def _take(self, value: float) -> None:
        if value != self.value:
            self.value = value
            self.post_message(self.Changed(value))


class SparsityControl(Vertical):
    """The whole knob. Moving the slider takes the share; `Changed` tells of people only."""

    DEFAULT_CSS = """
    SparsityControl { height: auto; }
    """

    class Changed(Message):
        """Someone set another sparsity."""

        def __init__(self, value: Sparsity) -> None:
            super().__init__()
            self.value = value

    def __init__(self, value: Sparsity = "auto", *, name: str | None = None) -> None:
        super().__init__(name=name)
        self._choices = Choices(OPTIONS, "auto", name=name)
        self._slider = SparsitySlider(name=name)
        self.value = value

    def compose(self) -> ComposeResult:
        yield self._choices
        yield self._slider

    @property
    def value(self) -> Sparsity:
        """What is set, as `check_sparsity` takes it."""
        chosen = self._choices.value
        return self._slider.value if chosen == SHARE else "off" if chosen == "off" else "auto"

    @value.setter
    def value(self, value: Sparsity) -> None:
        if isinstance(value, str):
            self._choices.value = value
        else:
            self._choices.value = SHARE
            self._slider.value = value
        self._slider.set_class(self._choices.value != SHARE, "-unused")

    @on(Choices.Changed)
    @on(SparsitySlider.Changed)
    def _changed(self, event: Choices.Changed | SparsitySlider.Changed) -> None:
        event.stop()
        self.value = event.value if isinstance(event.value, float) else self.value
        self.post_message(self.Changed(self.value))
