"""Messages as lines that scroll: wrapped when they come into view, and guessed at before that.

Drawing lines instead of mounting widgets is what lets a conversation of any length open at once,
and an answer of any length grow at the same cost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

from textual import events
from textual.content import Content
from textual.geometry import Size
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style

from .backlog import Backlog
from .blocks import EMPTY, Line
from .message import Message
from .painting import Painter

GUTTER = 2
"""Cells left of the text, where the mark of the selected message is drawn."""

MARGIN = 1
"""Cells right of the text."""

KEPT = 50
"""Messages that stay laid out when they are out of view."""

MORE = " ↓ more below "

STYLES = (
    *("user", "model", "mark", "more", "muted", "chip", "bullet", "quote", "rule", "heading"),
    *("strong", "em", "strike", "link", "code", "code-label", "code-inline"),
)


class MessageList(ScrollView, can_focus=True):
    """Draws messages below each other. `following`: what comes at the end is kept in view."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"messages--{name}" for name in STYLES}

    DEFAULT_CSS = """
    MessageList {
        width: 1fr;
        height: 1fr;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        background: $background;
        color: $foreground;

        & > .messages--user { color: $text-primary; text-style: bold; }
        & > .messages--model { color: $text-secondary; text-style: bold; }
        & > .messages--mark { color: $text-accent; text-style: bold; }
        & > .messages--more { color: $text; background: $primary-muted; text-style: bold; }
        & > .messages--muted { color: $text-muted; }
        & > .messages--chip { color: $text-secondary; }
        & > .messages--bullet { color: $text-primary; }
        & > .messages--quote { color: $text-muted; }
        & > .messages--rule { color: $text-muted; }
        & > .messages--heading { color: $text-primary; text-style: bold underline; }
        & > .messages--strong { text-style: bold; }
        & > .messages--em { text-style: italic; }
        & > .messages--strike { text-style: strike; }
        & > .messages--link { text-style: underline; }
        & > .messages--code { background: $panel; }
        & > .messages--code-label { color: $text-muted; text-style: italic; }
        & > .messages--code-inline { color: $text-warning; background: $panel; }
    }
    """

    following: reactive[bool] = reactive(True, init=False)

    def __init__(self, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self.messages: list[Message] = []
        self.marked: Message | None = None
        """The message that is drawn with the mark."""
        self._tops = [0]
        self._text_width = 0
        self._moving = False
        self._laid_out: dict[Message, None] = {}
        self._painter = Painter(self, "messages")
        self._backlog = Backlog(self, self._worked)

    @property
    def allow_select(self) -> bool:
        """Text can be selected with the mouse."""
        return True

    def show_messages(self, messages: Sequence[Message]) -> None:
        """Show these and no others, from their end."""
        self._backlog.clear()
        self._laid_out.clear()
        self.messages = list(messages)
        self._guess_all()
        self.following = True
        self._settle()
        self.refresh()

    def add_message(self, message: Message) -> None:
        """One more, at the end."""
        message.guess(max(self._text_width, 1))
        self.messages.append(message)
        self._settle()
        self.refresh()

    def changed(self, message: Message) -> None:
        """A message is to be wrapped anew; what is in view below it stays where it is."""
        index = self.messages.index(message)
        before = message.height
        if self._text_width:
            self._lay_out(message)
        above = self._tops[index] + before <= self.scroll_offset.y
        self._settle(message.height - before if above else 0)
        self.refresh()

    def grown(self, message: Message, first: int) -> None:
        """The lines of a message from `first` on are new, and there may be more of them."""
        self._settle()
        top = self.lines_of(message)[0] + first
        if top < self.scroll_offset.y + self.size.height:
            self.refresh_lines(top, self._tops[-1] - top)
        for block in message.fresh:
            self._backlog.notice(message, block)

    def lines_of(self, message: Message) -> tuple[int, int]:
        """The line on which a message begins, and the one after its last."""
        index = self.messages.index(message)
        return self._tops[index], self._tops[index + 1]

    def message_at(self, y: int) -> Message | None:
        """The message on a row of the widget."""
        place = self.scroll_offset.y + y
        return self.messages[self._index_at(place)] if place < self._tops[-1] else None

    def in_view(self, message: Message) -> bool:
        """Whether any line of a message is on the screen."""
        top, end = self.lines_of(message)
        return top < self.scroll_offset.y + self.size.height and end > self.scroll_offset.y

    def go_to(self, y: int) -> None:
        """Show the lines from `y` on."""
        self.scroll_to(y=y, animate=False, force=True)

    def go_to_end(self) -> None:
        """Show the end, and stay there."""
        self.following = True
        self._settle()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if not self._moving:
            self.following = new_value >= self.max_scroll_y
            self._settle()

    def watch_following(self) -> None:
        self.refresh()

    def on_resize(self, event: events.Resize) -> None:
        del event
        width = max(self.scrollable_content_region.width - GUTTER - MARGIN, 1)
        shift = 0
        if width != self._text_width:
            index, y = self._index_at(self.scroll_offset.y), self.scroll_offset.y
            self._text_width = width
            self._guess_all()
            shift = self._tops[index] - y
        self._settle(shift)
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._painter.forget()
        for message in self.messages:
            message.strips.clear()

    def _guess_all(self) -> None:
        for message in self.messages:
            message.guess(max(self._text_width, 1))
        self._measure()

    def _measure(self) -> None:
        self._tops = [0, *accumulate(message.height for message in self.messages)]

    def _index_at(self, y: int) -> int:
        return max(min(bisect_right(self._tops, y), len(self.messages)) - 1, 0)

    def _settle(self, shift: int = 0) -> None:
        """Lay out what is in view, and move the view where heights above it were misjudged."""
        self._measure()
        if not self._text_width:
            return
        height = self.size.height
        y = self.scroll_offset.y + shift
        while True:
            last = max(self._tops[-1] - height, 0)
            y = last if self.following else min(max(y, 0), last)
            index = self._first_guessed(y, y + height)
            if index is None:
                break
            message, guessed = self.messages[index], self.messages[index].height
            self._lay_out(message)
            if self._tops[index] < y:
                y += message.height - guessed
            self._measure()
        self._place(y)

    def _lay_out(self, message: Message) -> None:
        message.lay_out(self._text_width)
        self._laid_out.pop(message, None)
        self._laid_out[message] = None  # the last to have been laid out
        if len(self._laid_out) > max(KEPT, self.size.height):
            oldest = next(iter(self._laid_out))
            del self._laid_out[oldest]
            oldest.fold()

    def _first_guessed(self, top: int, bottom: int) -> int | None:
        """The first message between two lines that is not laid out; the last where following."""
        if not self.messages:
            return None
        inside = range(self._index_at(top), self._index_at(bottom - 1) + 1)
        guessed = [index for index in inside if not self.messages[index].laid_out]
        return guessed[-1 if self.following else 0] if guessed else None

    def _place(self, y: int) -> None:
        """Put line `y` at the top, without taking that for the user's own doing."""
        self._moving = True
        size = Size(self.size.width, self._tops[-1])
        if size != self.virtual_size:
            # Not through the reactive: it would have the whole screen arranged for every new line.
            self.set_reactive(MessageList.virtual_size, size)
            self.vertical_scrollbar.window_virtual_size = size.height
        self.scroll_target_y = self.scroll_y = y
        self._moving = False

    def _worked(self, message: Message, rows: range | None) -> None:
        """Draw some lines of a message anew, or wrap all of it where its blocks are others."""
        if message not in self.messages:
            return
        if rows is None:
            self.changed(message)
        elif rows:
            self.refresh_lines(self.lines_of(message)[0] + rows.start, len(rows))

    def render_line(self, y: int) -> Strip:
        place = self.scroll_offset.y + y
        strip = self._strip_at(place).apply_offsets(0, place)
        if y == self.size.height - 1 and not self.following:
            hint = self._painter.strip(Line(Content.styled(MORE, ".more")))
            return Strip.join([strip.crop(0, max(self.size.width - hint.cell_length, 0)), hint])
        return strip

    def _strip_at(self, place: int) -> Strip:
        index = self._index_at(place)
        if not 0 <= place < self._tops[-1] or not self.messages[index].laid_out:
            return self._with_gutter(EMPTY, False)
        message, row = self.messages[index], place - self._tops[index]
        marked = message is self.marked and row >= message.header
        selected = self._selected_cells(self.text_selection, place)
        drawn = message.strips.get(row)
        if drawn is not None and selected is None and not marked:
            return drawn[1]
        line = message.line(row)
        if selected is not None:
            style = Style.from_styles(self.screen.get_component_styles("screen--selection"))
            line = line._replace(text=line.text.stylize(style, *selected))
        strip = self._with_gutter(line, marked)
        if selected is None and not marked:
            message.strips[row] = line, strip
        self._backlog.notice(message, message.block_at(row))
        return strip

    def _with_gutter(self, line: Line, marked: bool) -> Strip:
        gutter = Line(Content.styled("▌ ", ".mark") if marked else Content("  "))
        text = self._painter.strip(line, self._text_width)
        strip = Strip.join([self._painter.strip(gutter), text])
        return strip.crop_extend(0, self.size.width, self.visual_style.rich_style)

    def _selected_cells(
        self, selection: Selection | None, place: int
    ) -> tuple[int, int | None] | None:
        span = selection.get_span(place) if selection is not None else None
        if span is None:
            return None
        start, end = span
        return max(start - GUTTER, 0), None if end == -1 else max(end - GUTTER, 0)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text between two places, without the line breaks that only wrapping made."""
        if selection.start is None and selection.end is None:
            return "\n\n".join(message.text for message in self.messages), "\n"
        first = selection.start.y if selection.start else 0
        last = min(selection.end.y if selection.end else self._tops[-1], self._tops[-1] - 1)
        text = ""
        for place in range(first, last + 1):
            index = self._index_at(place)
            if self.messages[index].laid_out:
                line = self.messages[index].line(place - self._tops[index])
                start, end = self._selected_cells(selection, place) or (0, 0)
                text += (line.joint if text else "") + line.text.plain[start:end]
        return text, "\n"
