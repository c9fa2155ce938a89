"""One message as lines: who, what, attachments, figures and states in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stem_local.history.entries import Attachment, Entry, State
from stem_tui.widgets.backlog import read_answer
from stem_tui.widgets.blocks import Verbatim
from stem_tui.widgets.message import LONG, LONGEST, Message

from .conftest import STATS
from .message_lines import message_lines

ASKED = Entry(1, None, "user", "What is\n**this**?", 0.0)
ANSWER = Entry(2, 1, "assistant", "It is **that**.", 0.0, model="smollm2-135m")


def test_what_was_asked_is_shown_as_it_was_typed() -> None:
    assert message_lines(Message(ASKED)) == ["", "▶ You", "What is", "**this**?"]


def test_an_answer_is_markdown_below_the_name_of_its_model() -> None:
    assert message_lines(Message(ANSWER)) == ["", "● smollm2-135m", "It is that."]


def test_control_characters_do_nothing() -> None:
    evil = "a\x1b[31mred\x07\r\x9b1m\tb"
    for entry in (replace(ASKED, content=evil), replace(ANSWER, content=evil, model="m\x1b[2J\n")):
        text = "\n".join(message_lines(Message(entry)))
        assert "red" in text
        assert all(c.isprintable() for c in text.replace("\n", ""))


def test_attachments_are_chips_with_their_size() -> None:
    entry = replace(ASKED, content="", attachments=(Attachment("notes.txt", "é" * 1600),))
    assert message_lines(Message(entry))[2:] == ["+ notes.txt  3 kB"]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("whole", ""),
        ("stopped", "stopped before its end"),
        ("length", "cut off: the limit of tokens was reached"),
        ("context", "cut off: the context is full"),
        ("failed", "cut off by an error"),
        ("streaming", "cut off with the program"),
    ],
)
def test_how_an_answer_ended_is_said_in_words(state: State, words: str) -> None:
    lines = message_lines(Message(replace(ANSWER, state=state)))
    assert lines[3:] == ([words] if words else [])


def test_the_footer_has_branch_and_figures() -> None:
    message = Message(replace(ANSWER, branch=(2, 3), stats=STATS, forgotten=4))
    footer = " ".join(message_lines(message, 200)[3:])
    assert footer.startswith("◂ 2/3 ▸ · 4 turns no longer seen · 254 tok/s · 112M of 135M active")


def test_a_question_that_was_edited_says_so() -> None:
    assert message_lines(Message(replace(ASKED, branch=(1, 2))))[-1] == "◂ 1/2 ▸"


def test_a_notice_is_a_line_across() -> None:
    assert message_lines(Message(None, "here"), 20)[1] == "── here " + "─" * 12


def test_a_notice_stands_above_the_message_it_belongs_to() -> None:
    lines = message_lines(Message(ASKED, "here"))
    assert lines[1].startswith("── here ──")
    assert lines[3] == "▶ You"


def test_a_growing_answer_keeps_what_did_not_change() -> None:
    message = Message(replace(ANSWER, content="", state="streaming"))
    message.begin()
    message.extend("First.\n\nSec")
    assert message_lines(message)[1:] == ["● smollm2-135m", "First.", "", "Sec", "answering …"]
    changed = message.extend("ond.\x1b[2J")
    assert changed == 3
    assert message.line(4).text.plain == "Second.[2J"
    assert message.text == "First.\n\nSecond.[2J"


def test_a_finished_answer_is_read_as_a_whole() -> None:
    message = Message(replace(ANSWER, content="", state="streaming"))
    message.begin()
    message.extend("a [link]\n\n")
    message.put(replace(ANSWER, content="a [link]\n\n[link]: https://example.org\n"))
    assert message_lines(message)[2:] == ["a link (https://example.org)"]


def test_the_same_content_is_not_read_again() -> None:
    message = Message(ANSWER)
    message.lay_out(40)
    assert not message.differs(replace(ANSWER, stats=STATS))
    assert message.differs(replace(ANSWER, content="else"))


def test_a_long_answer_is_plain_until_it_was_read() -> None:
    content = "**x** " * (LONG // 6 + 1)
    message = Message(replace(ANSWER, content=content))
    assert message_lines(message)[2].startswith("**x** **x**")
    assert message.unread
    message.put(replace(ANSWER, content=content), read_answer(content, 60))
    assert not message.unread
    assert message_lines(message)[2].startswith("x x x")


def test_an_endless_answer_is_never_read_as_markdown() -> None:
    message = Message(replace(ANSWER, content="*" * (LONGEST + 1)))
    message.lay_out(60)
    assert isinstance(message.block_at(5), Verbatim)
    assert not message.unread


def test_a_pasted_megabyte_is_shown_without_wrapping_it_at_words() -> None:
    message = Message(replace(ASKED, content="word " * 200_000))
    message.lay_out(60)
    assert message.height > 16_000
    assert message.line(message.height - 1).text.plain


def test_folding_keeps_the_height_and_nothing_else() -> None:
    message = Message(replace(ANSWER, content="a\n\n" * 30))
    before = message_lines(message)
    height = message.height
    message.fold()
    assert (message.laid_out, message.height) == (0, height)
    assert message_lines(message) == before


def test_code_blocks_are_found_while_the_answer_grows_too() -> None:
    message = Message(replace(ANSWER, content="", state="streaming"))
    message.begin()
    message.extend("```py\nx = 1\n```\n\n```\ny")
    assert [code.source for code in message.codes()] == ["x = 1", "y"]
    assert Message(replace(ASKED, content="```\nx\n```")).codes() == []
