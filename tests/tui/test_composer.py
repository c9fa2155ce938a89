"""Writing and sending messages: keys in the order they are typed, blocks, recall, edits, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual import events
from textual.pilot import Pilot
from textual.widgets import Static

from stem_local.errors import UsageError
from stem_local.history.entries import Attachment
from stem_tui import attachments
from stem_tui.widgets import chips, message_area, multiline
from stem_tui.widgets.composer import Composer
from stem_tui.widgets.recall import MOST, Recall

from .conftest import Host, run_app, shown

NOTES = Attachment("notes.txt", "milk\neggs\n")


class Desk(Host):
    """A composer under a wall of text, and what it asked for."""

    CSS = "Composer { dock: bottom; }"

    def __init__(self, theme: str = "stem-dark") -> None:
        super().__init__(Static("above"), Composer(), theme=theme)
        self.asked: list[Any] = []
        self.left = ""

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    def on_composer_submitted(self, event: Composer.Submitted) -> None:
        self.asked.append((event.text, event.attachments))

    def on_composer_command(self, event: Composer.Command) -> None:
        self.asked.append(f"/{event.name} {event.argument}")

    def on_composer_cancelled(self) -> None:
        self.asked.append("cancelled")

    @property
    def told(self) -> list[str]:
        return [note.message for note in self._notifications]


async def type_at_once(pilot: Pilot[Any], keys: Sequence[str]) -> None:
    """Keys as a program types them: all there before the first one is looked at."""
    for key in keys:
        character = key if len(key) == 1 else None
        pilot.app.post_message(events.Key(key, character))
    await pilot.pause()
    await pilot.pause()


def test_enter_sends_what_is_typed() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        await pilot.press(*"hi", "enter")
        await pilot.press("enter", *"   ", "enter")
        await pilot.pause()
        assert desk.asked == [("hi", ())]
        assert desk.composer.text == "   "

    run_app(Desk(), test)


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter", "alt+enter"])
def test_new_lines_by_key(key: str) -> None:
    async def test(pilot: Pilot[Any]) -> list[Any]:
        await pilot.press("a", key, "b", "enter")
        await pilot.pause()
        return pilot.app.asked  # type: ignore[attr-defined]

    assert run_app(Desk(), test) == [("a\nb", ())]


def test_keys_can_be_swapped() -> None:
    async def test(pilot: Pilot[Any]) -> list[Any]:
        pilot.app.set_keymap({"composer.send": "ctrl+j", "composer.newline": "enter"})
        await pilot.press("a", "enter", "b", "ctrl+j")
        await pilot.pause()
        return pilot.app.asked  # type: ignore[attr-defined]

    assert run_app(Desk(), test) == [("a\nb", ())]


def test_keys_of_the_text_can_be_remapped_too() -> None:
    async def test(pilot: Pilot[Any]) -> str:
        pilot.app.set_keymap({"composer.cursor_line_start": "ctrl+t"})
        await pilot.press(*"bc", "ctrl+t", "a")
        return pilot.app.composer.text  # type: ignore[attr-defined]

    assert run_app(Desk(), test) == "abc"


def test_keys_typed_faster_than_they_are_handled_keep_their_order() -> None:
    async def test(pilot: Pilot[Any]) -> Any:
        desk = pilot.app
        assert isinstance(desk, Desk)
        keys = [*"one", "enter", *"two", "ctrl+j", *"x", "backspace", *"y", "enter", *"/help"]
        await type_at_once(pilot, [*keys, "enter", *"rest"])
        return desk.asked, desk.composer.text

    asked, text = run_app(Desk(), test)
    assert asked == [("one", ()), ("two\ny", ()), "/help "]
    assert text == "rest"


def test_a_block_of_lines_is_sent_when_it_is_closed() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        await pilot.press(*'"""a', "enter")
        assert 'end it with """ to send it' in shown(desk)
        await pilot.press(*'b"""', "enter")
        await pilot.pause()
        assert desk.asked == [("a\nb", ())]

    run_app(Desk(), test)


@pytest.mark.parametrize(
    ("text", "open_", "content"),
    [
        ('"""', True, '"""'),
        ('""""', True, '""""'),
        ('""""""', False, ""),
        ('"""one"""', False, "one"),
        ('"""\none\n"""\n', False, "one"),
        ('"""\n  one', True, '"""\n  one'),
        ('"""\ndef f():\n    """Doc."""', True, None),
        ('"""\ndef f():\n    """Doc."""\n"""', False, 'def f():\n    """Doc."""'),
        ('say """one', False, 'say """one'),
    ],
)
def test_blocks(text: str, open_: bool, content: str | None) -> None:
    assert multiline.is_open(text) is open_
    if content is not None:
        assert multiline.content(text) == content


@settings(max_examples=50)
@given(st.text(st.characters(exclude_characters='"', exclude_categories=["Cs"]), max_size=30))
def test_a_closed_block_holds_what_was_written(text: str) -> None:
    quoted = f'"""\n{text}\n"""'
    assert not multiline.is_open(quoted)
    assert multiline.content(quoted).strip("\n") == text.strip("\n")


def test_a_doubled_slash_begins_a_message() -> None:
    async def test(pilot: Pilot[Any]) -> list[Any]:
        for text in ("//etc is a folder", "/usr/bin too"):
            pilot.app.query_one(Composer).load(text)
            await pilot.press("enter")
        await pilot.pause()
        return pilot.app.asked  # type: ignore[attr-defined]

    assert run_app(Desk(), test) == [("/etc is a folder", ()), ("/usr/bin too", ())]


def test_arrows_go_through_what_was_sent_and_back_to_the_draft() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        composer = pilot.app.query_one(Composer)
        composer.remember(["first", "second\nline"])
        await pilot.press(*"draft", "up")
        assert composer.text == "second\nline"
        await pilot.press("up")
        assert composer.area.cursor_location[0] == 0
        assert composer.text == "second\nline"
        await pilot.press("up")
        assert composer.text == "first"
        await pilot.press("up", "down", "down")
        assert composer.text == "draft"
        await pilot.press("down")
        assert composer.text == "draft"

    run_app(Desk(), test)


@settings(max_examples=50)
@given(
    st.lists(st.text(min_size=1, max_size=3), max_size=6),
    st.lists(st.sampled_from([-1, 1]), max_size=20),
)
def test_recall_always_leads_back_to_the_draft(sent: list[str], steps: list[int]) -> None:
    recall = Recall()
    recall.load(sent)
    text = "draft"
    for step in [*steps, *[1] * len(sent)]:
        text = recall.step(step, text) or text
    assert text == "draft"


def test_recall_is_bounded_and_keeps_no_repetitions() -> None:
    recall = Recall()
    for number in range(MOST + 5):
        recall.add(str(number))
        recall.add(str(number))
    seen = 0
    while recall.step(-1, "") is not None:
        seen += 1
    assert seen == MOST


def test_an_edit_says_so_and_gives_the_draft_back() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        await pilot.press(*"draft")
        desk.composer.load("asked before", [NOTES], editing=True)
        await pilot.pause()
        assert "editing an earlier message: sending makes a branch, esc leaves" in shown(desk)
        assert "notes.txt" in shown(desk)
        await pilot.press("escape")
        await pilot.pause()
        assert desk.asked == ["cancelled"]
        assert desk.composer.text == "draft"
        assert "editing" not in shown(desk)
        assert "notes.txt" not in shown(desk)
        desk.composer.load("asked before", [NOTES], editing=True)
        await pilot.press("!", "enter")
        await pilot.pause()
        assert desk.asked[1:] == [("asked before!", (NOTES,))]
        assert (desk.composer.text, desk.composer.attachments) == ("draft", ())
        assert not desk.composer.editing

    run_app(Desk(), test)


def test_the_key_that_leaves_an_edit_is_the_users_own() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        desk.set_keymap({"composer.leave": "f5"})
        desk.set_focus(None)
        desk.composer.load("asked before", editing=True)
        await pilot.pause()
        assert "makes a branch ─" in shown(desk)
        desk.composer.focus()
        await pilot.pause()
        assert "makes a branch, f5 leaves it ─" in shown(desk)

    run_app(Desk(), test)


def test_what_a_load_pushes_aside_comes_back_with_the_arrows() -> None:
    async def test(pilot: Pilot[Any]) -> str:
        composer = pilot.app.query_one(Composer)
        await pilot.press(*"draft")
        composer.load("/stats")
        await pilot.press("escape", "up")
        return composer.text

    assert run_app(Desk(), test) == "draft"


def test_files_stay_where_a_load_brings_none() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        composer = pilot.app.query_one(Composer)
        composer.load("", [NOTES])
        composer.load("/read ")
        assert composer.attachments == (NOTES,)
        composer.load("other", [])
        assert composer.attachments == ()

    run_app(Desk(), test)


def test_a_text_too_long_to_edit_is_never_put_in_place() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        composer = pilot.app.query_one(Composer)
        composer.load("x" * 100_000, [NOTES], editing=True)
        assert composer.text == ""
        assert composer.attachments == (NOTES, Attachment("pasted-1.txt", "x" * 100_000))
        await pilot.press("escape")
        composer.remember(["short", "x" * 100_000])
        await pilot.press("up")
        assert composer.text == "short"

    run_app(Desk(), test)


def test_while_an_answer_comes_messages_wait_and_commands_run() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        desk.composer.busy = True
        await pilot.press(*"hi", "enter")
        await pilot.pause()
        assert (desk.asked, desk.composer.text) == ([], "hi")
        assert "An answer is under way" in desk.told[0]
        desk.composer.load("/stats")
        await pilot.press("enter")
        await pilot.pause()
        assert desk.asked == ["/stats "]

    run_app(Desk(), test)


def test_escape_is_the_screens_where_there_is_nothing_to_leave() -> None:
    class Below(Desk):
        BINDINGS = [("escape", "stop", "Stop")]  # noqa: RUF012

        def action_stop(self) -> None:
            self.asked.append("stop")

    async def test(pilot: Pilot[Any]) -> list[Any]:
        await pilot.press("escape")
        return pilot.app.asked  # type: ignore[attr-defined]

    assert run_app(Below(), test) == ["stop"]


def test_page_keys_are_the_screens_until_the_text_overflows() -> None:
    class Below(Desk):
        BINDINGS = [("pageup", "page", "Up")]  # noqa: RUF012

        def action_page(self) -> None:
            self.asked.append("page")

    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        desk.composer.load("\n" * 5)
        await pilot.pause()
        await pilot.press("pageup")
        assert desk.asked == ["page"]
        desk.composer.load("\n" * 50)
        await pilot.pause()
        await pilot.press("pageup")
        assert desk.asked == ["page"]
        assert desk.composer.area.cursor_location[0] < 50

    run_app(Below(), test)


@pytest.mark.parametrize(("rows", "most"), [(24, 8), (10, 2), (60, 23)])
def test_it_grows_with_the_text_to_a_share_of_the_screen(rows: int, most: int) -> None:
    async def test(pilot: Pilot[Any]) -> list[int]:
        composer = pilot.app.query_one(Composer)
        heights = []
        for lines in (1, 2, 100):
            composer.load("\n" * (lines - 1))
            await pilot.pause()
            heights.append(composer.area.size.height)
        return heights

    assert run_app(Desk(), test, size=(80, rows)) == [1, 2, most]


def test_control_characters_are_left_out() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        composer = pilot.app.query_one(Composer)
        composer.area.post_message(events.Paste("a\x1b[31m\r\nb\rc\x9b"))
        await pilot.pause()
        assert composer.text == "a[31m\nb\nc"
        composer.load("x\x1b]0;title\x07y")
        assert composer.text == "x]0;titley"

    run_app(Desk(), test)


def test_a_pasted_megabyte_becomes_a_file() -> None:
    megabyte = "0123456789abcde\n" * 65_536

    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        for key in "sum":
            desk.post_message(events.Key(key, key))
        desk.post_message(events.Paste(megabyte))
        desk.post_message(events.Key("enter", "\r"))
        await pilot.pause()
        await pilot.pause()
        assert desk.asked == [("sum", (Attachment("pasted-1.txt", megabyte),))]
        assert "pasted-1.txt" in desk.told[0]

    run_app(Desk(), test)


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("word " * (message_area.MAX_EDITED // 5), 1),
        ("x" * (message_area.MAX_LINE + 1), 1),
        ("x" * message_area.MAX_LINE + "\n", 0),
        ("y\n" * (message_area.MAX_EDITED // 2), 0),
        ("y\n" * (message_area.MAX_EDITED // 2) + "y", 1),
    ],
    ids=["long", "long line", "longest line", "longest", "a character too long"],
)
def test_pastes_are_edited_as_long_as_each_key_stays_quick(text: str, files: int) -> None:
    async def test(pilot: Pilot[Any]) -> None:
        composer = pilot.app.query_one(Composer)
        composer.area.post_message(events.Paste(text))
        await pilot.pause()
        assert len(composer.attachments) == files
        assert composer.text == ("" if files else text)

    run_app(Desk(), test)


def test_a_paste_beyond_all_measure_is_refused_with_what_was_typed_kept() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        await pilot.press("a")
        desk.composer.area.post_message(events.Paste("x" * (attachments.MAX_PASTE + 1)))
        await pilot.pause()
        assert (desk.composer.text, desk.composer.attachments) == ("a", ())
        assert "4,000,001 characters" in desk.told[0]

    run_app(Desk(), test)


def test_files_are_shown_and_taken_off_by_key_and_click(tmp_path: Path) -> None:
    (tmp_path / "list[x].txt").write_bytes(b"\xef\xbb\xbf" + b"x" * 3200)

    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        await desk.composer.attach(tmp_path / "list[x].txt")
        await desk.composer.attach(str(tmp_path / "list[x].txt"))
        await pilot.pause()
        assert shown(desk).count("+ list[x].txt 3 kB (x)") == 2
        await pilot.press("a", "backspace", "backspace")
        assert len(desk.composer.attachments) == 1
        await pilot.pause()
        await pilot.click(chips.Chips, offset=(4, 0))
        assert desk.composer.attachments == ()

    run_app(Desk(), test)


def test_a_message_takes_so_many_files() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        row = pilot.app.query_one(chips.Chips)
        for _ in range(chips.MOST):
            row.add(NOTES)
        with pytest.raises(UsageError, match="20 files"):
            row.add(NOTES)

    run_app(Desk(), test)


def test_files_alone_are_not_sent() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        desk = pilot.app
        assert isinstance(desk, Desk)
        desk.composer.load("", [NOTES])
        await pilot.press("enter")
        await pilot.pause()
        assert desk.asked == []
        assert desk.composer.attachments == (NOTES,)
        assert "Write what to do" in desk.told[0]

    run_app(Desk(), test)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a\0b", "not a text file"),
        ("é".encode("latin-1") * 9, r"not UTF-8 text \(byte 0\)"),
        (b"x" * (attachments.MAX_FILE + 1), r"larger than 1 MB"),
    ],
    ids=["binary", "latin-1", "too large"],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=sentence):
        attachments.read_text(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        attachments.read_text(tmp_path / "missing")
    with pytest.raises(UsageError, match="is a folder"):
        attachments.read_text(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        attachments.read_text("a\0b")
    with pytest.raises(UsageError, match="cannot be read"):
        attachments.read_text("x" * 5000)
    with pytest.raises(UsageError, match=r"cannot be read: .*[^.]\.$"):
        attachments.read_text("~nobody-of-that-name/notes.txt")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/stdin"])
def test_devices_are_not_waited_for(device: str) -> None:
    if Path(device).exists():
        with pytest.raises(UsageError, match="not an ordinary file"):
            attachments.read_text(device)


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_a_file_is_read_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.mktemp("read") / "file.txt"
    file.write_bytes(data)
    try:
        text = attachments.read_text(file).text
    except UsageError:
        with pytest.raises(UnicodeDecodeError):
            data.replace(b"\0", b"\xff").decode()
    else:
        assert text == data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
