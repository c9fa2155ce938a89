"""What the user can do with the messages: move among them, copy, edit, branch and answer anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from textual.binding import Binding
from textual.message import Message as Event
from textual.pilot import Pilot

from stem_local.history.entries import Entry
from stem_tui.widgets.transcript import Transcript

from .conftest import Host, run_app, shown

CODE = "First:\n\n```python\nx\t= 1\n```\n\nthen:\n\n```sh\nls\n```"
ENTRIES = (
    Entry(11, None, "user", "How?", 0.0),
    Entry(12, 11, "assistant", CODE, 0.0, model="m", branch=(2, 3)),
    Entry(13, 12, "user", "And\nthen?", 0.0),
    Entry(14, 13, "assistant", "So:\n\n" + "line\n\n" * 30 + "the end", 0.0, model="m"),
)


@dataclass
class Told(Event):
    """A toast."""

    text: str


class Listening(Host):
    """A transcript, and what it posts."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.posted: list[Event] = []
        super().__init__(self.transcript)

    def notify(self, message: str, **options: Any) -> None:
        del options
        self.posted.append(Told(message))

    def on_transcript_copy_requested(self, event: Transcript.CopyRequested) -> None:
        self.posted.append(event)

    def on_transcript_edit_requested(self, event: Transcript.EditRequested) -> None:
        self.posted.append(event)

    def on_transcript_regenerate_requested(self, event: Transcript.RegenerateRequested) -> None:
        self.posted.append(event)

    def on_transcript_branch_requested(self, event: Transcript.BranchRequested) -> None:
        self.posted.append(event)

    def on_transcript_link_requested(self, event: Transcript.LinkRequested) -> None:
        self.posted.append(event)

    def on_transcript_left(self, event: Transcript.Left) -> None:
        self.posted.append(event)


def pressed(
    *keys: str, entries: Sequence[Entry] = ENTRIES, start: int | None = None
) -> tuple[int | None, list[dict[str, Any]], str]:
    """The selected entry, what was posted, and the screen, after keys from a selected message."""
    app = Listening()

    async def test(pilot: Pilot[Any]) -> tuple[int | None, list[dict[str, Any]], str]:
        await app.transcript.show(entries)
        app.transcript.focus()
        app.transcript.selected = start
        await pilot.press(*keys)
        await pilot.pause()
        return app.transcript.selected, [told(event) for event in app.posted], shown(app)

    return run_app(app, test, (60, 16))


def told(event: Event) -> dict[str, Any]:
    names = {"entry", "step", "text", "what", "target"}
    fields = {name: value for name, value in vars(event).items() if name in names}
    return {"name": type(event).__name__, **fields}


@pytest.mark.parametrize(
    ("start", "keys", "selected"),
    [
        (None, ["up"], 14),
        (13, ["up"], 12),
        (12, ["k"], 11),
        (11, ["up"], 11),
        (11, ["down"], 12),
        (12, ["j"], 13),
        (14, ["home"], 11),
        (13, ["g"], 11),
        (11, ["end"], 14),
        (11, ["G"], 14),
    ],
)
def test_the_cursor_moves(start: int | None, keys: list[str], selected: int) -> None:
    assert pressed(*keys, start=start)[0] == selected


def test_the_selected_message_has_a_mark_beside_its_lines() -> None:
    screen = pressed("up", start=13)[2].splitlines()
    marked = [line for line in screen if line.startswith("▌")]
    assert marked[0].startswith("▌ ● m")
    assert not any("How?" in line for line in marked)


def test_a_long_message_is_scrolled_through_before_it_is_left() -> None:
    assert "the end" in pressed("up")[2]
    selected, _, screen = pressed("up", "up")
    assert selected == 14
    assert "the end" not in screen
    assert pressed(*["up"] * 6)[0] == 13


def test_going_on_after_the_last_message_leads_back_to_writing() -> None:
    selected, posted, _ = pressed("end", "down")
    assert selected is None
    assert posted == [{"name": "Left"}]


def test_escape_leads_back_to_writing() -> None:
    assert pressed("escape", start=12)[:2] == (None, [{"name": "Left"}])


def test_pages_and_lines_scroll() -> None:
    assert "the end" not in pressed("pageup")[2]
    assert "the end" in pressed("pageup", "pagedown")[2]
    assert "more below" in pressed("shift+up")[2]
    assert "more below" not in pressed("shift+up", "shift+down")[2]


@pytest.mark.parametrize(
    ("start", "key", "event"),
    [
        (13, "c", {"name": "CopyRequested", "text": "And\nthen?", "what": "your message"}),
        (12, "c", {"name": "CopyRequested", "text": CODE, "what": "the answer"}),
        (None, "c", {"name": "CopyRequested", "text": ENTRIES[3].content, "what": "the answer"}),
        (13, "e", {"name": "EditRequested", "entry": 13}),
        (12, "e", {"name": "EditRequested", "entry": 11}),
        (None, "e", {"name": "EditRequested", "entry": 13}),
        (12, "r", {"name": "RegenerateRequested", "entry": 12}),
        (None, "r", {"name": "RegenerateRequested", "entry": 14}),
        (12, "left", {"name": "BranchRequested", "entry": 12, "step": -1}),
        (12, "right", {"name": "BranchRequested", "entry": 12, "step": 1}),
    ],
)
def test_what_is_asked_for(start: int | None, key: str, event: dict[str, Any]) -> None:
    assert pressed(key, start=start)[1] == [event]


def test_there_is_no_branch_beyond_the_last() -> None:
    entries = [replace(ENTRIES[1], branch=(3, 3), parent=None)]
    assert pressed("right", entries=entries, start=12)[1] == []
    assert pressed("right", "left", start=13)[1] == []


def test_code_blocks_are_copied_one_after_the_other() -> None:
    posted = pressed("y", "y", "y", start=12)[1]
    assert [event["text"] for event in posted] == ["x\t= 1", "ls", "x\t= 1"]
    assert posted[0]["what"] == "code block 1 of 2"


def test_where_there_is_no_code_that_is_said() -> None:
    posted = pressed("y", start=13)[1]
    assert posted == [{"name": "Told", "text": "There is no code in this message."}]


def test_nothing_happens_in_an_empty_conversation() -> None:
    keys = ["up", "down", "home", "end", "pageup", "c", "e", "r", "left", "right"]
    assert pressed(*keys, entries=())[:2] == (None, [])


def test_control_characters_are_not_copied() -> None:
    entries = [Entry(1, None, "user", "a\x1b]52;c;evil\x07b", 0.0)]
    assert pressed("c", entries=entries, start=1)[1][0]["text"] == "a]52;c;evilb"


def clicked(entries: Sequence[Entry], word: str) -> Listening:
    """The app after a click on a word."""
    app = Listening()

    async def test(pilot: Pilot[Any]) -> None:
        await app.transcript.show(entries)
        await pilot.pause()
        rows = shown(app).splitlines()
        y = next(y for y, row in enumerate(rows) if word in row)
        await pilot.click(offset=(rows[y].index(word) + 1, y))
        await pilot.pause()

    run_app(app, test, (60, 16))
    return app


def test_a_click_selects_a_message() -> None:
    assert clicked(ENTRIES[:3], "then?").transcript.selected == 13


def test_a_clicked_link_is_only_told_of() -> None:
    entries = [Entry(1, None, "assistant", "see [this](https://example.org)", 0.0)]
    assert [told(event) for event in clicked(entries, "this").posted] == [
        {"name": "LinkRequested", "target": "https://example.org"}
    ]


def test_the_hint_leads_to_the_end() -> None:
    app = Listening()

    async def test(pilot: Pilot[Any]) -> None:
        await app.transcript.show(ENTRIES)
        app.transcript.action_page(-1)
        await pilot.pause()
        assert not app.transcript.following
        await pilot.click(offset=(52, 15))
        assert app.transcript.following

    run_app(app, test, (60, 16))


def test_text_selected_with_the_mouse_has_no_breaks_of_wrapping() -> None:
    app = Listening()
    content = "one two three four five six seven eight nine ten eleven twelve thirteen"

    async def test(pilot: Pilot[Any]) -> str | None:
        await app.transcript.show([Entry(1, None, "assistant", content, 0.0)])
        await pilot.pause()
        await pilot.mouse_down(offset=(2, 2))
        await pilot.hover(offset=(6, 3))
        await pilot.mouse_up(offset=(6, 3))
        await pilot.pause()
        return app.screen.get_selected_text()

    selected = run_app(app, test, (40, 16))
    assert selected is not None
    assert content.startswith(selected)
    assert len(selected) > 34


def test_everything_can_be_selected() -> None:
    app = Listening()

    async def test(pilot: Pilot[Any]) -> str | None:
        await app.transcript.show(ENTRIES[:3])
        await pilot.pause()
        app.screen.text_select_all()
        return app.screen.get_selected_text()

    assert run_app(app, test) == f"How?\n\n{CODE}\n\nAnd\nthen?"


def test_every_binding_can_be_mapped_to_other_keys() -> None:
    bindings = [binding for binding in Transcript.BINDINGS if isinstance(binding, Binding)]
    assert len({binding.id for binding in bindings}) == len(Transcript.BINDINGS)
    assert all(binding.id and binding.id.startswith("transcript.") for binding in bindings)
    assert all(binding.description for binding in bindings)
