"""The house themes: every text that Textual draws with them can be read."""

from __future__ import annotations

import pytest
from textual.color import Color
from textual.pilot import Pilot
from textual.widgets import Button, Input, Label, Markdown, OptionList, TextArea
from textual.widgets.option_list import Option

from stem_tui import themes

from .conftest import Host, run_app

ENOUGH = 4.5
"""The contrast that WCAG 2 (AA) asks of text."""

DOCUMENT = """\
# One
## Two
### Three
#### Four
##### Five
###### Six
Text with `code`, **bold**, *slant* and [a link](https://example.org).

> a quotation

- a list

| a | table |
|---|---|
| 1 | 2 |

```python
# a comment
@decorated
class Name(Base):
    \"\"\"What it is.\"\"\"
    count: int = 3
    def method(self, *args) -> None:
        import os as o
        return None if x in "abc" + 'd' else print(1.5, True, self.count, __name__)
```
"""

GROUNDS = ["background", "surface", "panel"]
COLOURS = ["text", "text-muted", "foreground", "foreground-muted"]
COLOURS += [f"text-{name}" for name in ("primary", "secondary", "accent")]
COLOURS += [f"text-{name}" for name in ("warning", "error", "success")]
COLOURS += ["primary", "secondary", "accent", "warning", "error", "success"]


def luminance(color: Color) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in color.normalized]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: Color, other: Color) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_measured_as_defined() -> None:
    black, white = Color(0, 0, 0), Color(255, 255, 255)
    assert contrast(black, white) == pytest.approx(21)
    assert contrast(white, Color(118, 118, 118)) == pytest.approx(4.54, abs=0.01)


class Sample(Label):
    """A word in one colour of a theme on one of its grounds."""

    DEFAULT_CSS = "\n".join(
        f"Sample.{ground}-{name} {{ background: ${ground}; color: ${name}; }}"
        for ground in GROUNDS
        for name in COLOURS
    )

    def __init__(self, ground: str, name: str) -> None:
        super().__init__(f"{name} on {ground}", classes=f"{ground}-{name}")


async def hard_to_read(pilot: Pilot[object]) -> tuple[int, dict[str, float]]:
    """How many kinds of text are on the screen, and the contrast of those that lack it."""
    found: dict[str, float] = {}
    for row in pilot.app.screen._compositor.render_strips():
        for text, style, _ in row:
            if style is None or style.color is None or style.bgcolor is None:
                continue
            if any(c.isalnum() for c in text):
                colors = map(Color.from_rich_color, (style.color, style.bgcolor))
                found[f"{text.strip()}: {style}"] = contrast(*colors)
    return len(found), {text: ratio for text, ratio in found.items() if ratio < ENOUGH}


def test_every_colour_of_text_can_be_read_on_every_ground(theme: str) -> None:
    samples = [Sample(ground, name) for ground in GROUNDS for name in COLOURS]
    seen, hard = run_app(Host(*samples, theme=theme), hard_to_read, size=(60, len(samples)))
    assert hard == {}
    assert seen == len(samples)


def test_everything_that_textual_draws_can_be_read(theme: str) -> None:
    options = OptionList("one", "two", Option("not now", disabled=True))
    buttons = [Button("a"), Button.success("b"), Button.warning("c"), Button.error("d")]
    fields = [Input(placeholder="type here"), TextArea("abc", placeholder="or here")]

    async def drawn(pilot: Pilot[object]) -> tuple[int, dict[str, float]]:
        pilot.app.notify("said", title="by the way")
        pilot.app.notify("said", title="mind", severity="warning")
        pilot.app.notify("said", title="failed", severity="error")
        await pilot.pause()
        return await hard_to_read(pilot)

    app = Host(Markdown(DOCUMENT), options, *buttons, *fields, theme=theme)
    seen, hard = run_app(app, drawn, size=(90, 110))
    assert hard == {}
    assert seen > 40


def test_both_themes_are_offered() -> None:
    app = Host()
    themes.register(app)
    assert app.available_themes["stem-dark"].dark
    assert not app.available_themes["stem-light"].dark
