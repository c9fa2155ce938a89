"""Lines of text as strips in the styles of a widget."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.strip import Strip
from textual.style import Style
from textual.widget import Widget

from .blocks import Line


class Painter:
    """Draws for a widget. The style ".code" is its component class `<prefix>--code`."""

    def __init__(self, widget: Widget, prefix: str) -> None:
        self._widget = widget
        self._prefix = prefix
        self._styles: dict[str, Style] = {}

    def forget(self) -> None:
        """Look the styles up again: the theme is another one."""
        self._styles.clear()

    def strip(self, line: Line, width: int = 0) -> Strip:
        """A line, filled up to the width where it has a style for that."""
        base = self._widget.visual_style
        rendered = line.text.render(base, end="", parse_style=self.style)
        strip = Strip([Segment(text, (base + style).rich_style) for text, style in rendered])
        if line.fill:
            return strip.extend_cell_length(width, (base + self.style(line.fill)).rich_style)
        return strip

    def style(self, name: str | Style) -> Style:
        """A style by its name: only what it sets, to be added to another."""
        if isinstance(name, Style):
            return name
        style = self._styles.get(name)
        if style is None:
            style = self._component(name[1:]) if name.startswith(".") else Style.parse(name)
            self._styles[name] = style
        return style

    def _component(self, name: str) -> Style:
        # Widget.get_visual_style(partial=True) would lose a background that is opaque, and a
        # colour that is to stand out against it.
        styles = self._widget.get_component_styles(f"{self._prefix}--{name}")
        colour: Color | None = None
        if styles.has_rule("auto_color") and styles.auto_color:
            colour = Color(0, 0, 0, styles.color.a, auto=True)
        elif styles.has_rule("color"):
            colour = styles.color
        text = styles.text_style
        return Style(
            background=styles.background if styles.has_rule("background") else None,
            foreground=colour,
            bold=text.bold,
            italic=text.italic,
            underline=text.underline,
            strike=text.strike,
        )
