"""Markdown as blocks: what each construct looks like, and that no text is lost in any of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.content import Span

from stem_tui.widgets import code_highlight
from stem_tui.widgets.blocks import Block, Code, Verbatim
from stem_tui.widgets.code_highlight import spans
from stem_tui.widgets.markdown_blocks import parse, parse_answer

from .message_lines import block_lines

LOOKS = {
    "paragraphs": ("one\ntwo\n\nthree", ["one", "two", "", "three"]),
    "wrapping": ("word " * 6, ["word word word", "word word word"]),
    "heading": ("# Title\ntext", ["Title", "", "text"]),
    "emphasis": ("**b** *i* ~~s~~ `c*d*`", ["b i s c*d*"]),
    "bullets": ("- a\n- b\n  - c\n- d", ["• a", "• b", "  ◦ c", "• d"]),
    "loose bullets": ("- a\n\n- b", ["• a", "", "• b"]),
    "numbers": ("9. a\n10. b", ["9. a", "10. b"]),
    "empty item": ("- a\n-\n- b", ["• a", "•", "• b"]),
    "hanging": ("- a long item of it", ["• a long item", "  of it"]),
    "after a list": ("- a\n\nb", ["• a", "", "b"]),
    "quote": ("> a\n>\n> b", ["▎ a", "▎", "▎ b"]),
    "list in quote": ("> - a\n> - b", ["▎ • a", "▎ • b"]),
    "rule": ("a\n\n---", ["a", "", "─" * 14]),
    "table": ("| a | b |\n|---|---|\n| 1 | 2 |", ["a │ b", "──┼──", "1 │ 2"]),
    "html": ("<b>x</b>", ["<b>x</b>"]),
    "entity": ("a &lt; b", ["a < b"]),
    "markup of the screen": ("[red]x[/red] $text", ["[red]x[/red]", "$text"]),
    "image": ("![cat](c.png)", ["[cat](c.png)"]),
    "code": ("```py\nx = [1]\n\ny\n```", [" py", " x = [1]", "", " y"]),
    "indented code": ("    x\n     y", [" code", " x", "  y"]),
    "code in an item": ("1. a\n   ```\n   x\n   ```", ["1. a", "", "    code", "    x"]),
    "long code": ("```\n" + "x" * 15 + "\n```", [" code", " " + "x" * 12, " xxx"]),
    "tabs": ("```\na\tb\n```", [" code", " a   b"]),
}


@pytest.mark.parametrize("name", LOOKS)
def test_how_it_looks(name: str) -> None:
    source, lines = LOOKS[name]
    assert block_lines(parse_answer(source), 14) == lines


def test_a_link_shows_where_it_leads_and_can_be_clicked() -> None:
    (block,) = parse("see [this](https://example.org/'x)")
    block.lay_out(60)
    text = block.line(0).text
    assert text.plain == "see this (https://example.org/'x)"
    actions = [span.style.meta for span in text.spans if not isinstance(span.style, str)]
    assert actions == [{"@click": 'open_link("https://example.org/\'x")'}]


def test_a_script_is_no_link() -> None:
    assert block_lines(parse_answer("[x](javascript:alert)")) == ["[x](javascript:alert)"]


def test_several_code_blocks_are_numbered() -> None:
    blocks = parse_answer("```py\na\n```\n```\nb\n```")
    assert [line for line in block_lines(blocks) if line.strip()[:1].isdigit()] == [
        " 1 py",
        " 2 code",
    ]


def test_code_keeps_its_tabs_for_whoever_copies_it() -> None:
    (code,) = parse("```make\nall:\n\ttrue\n```")
    assert isinstance(code, Code)
    assert code.source == "all:\n\ttrue"


def test_a_wide_table_gives_way_where_it_is_widest() -> None:
    lines = block_lines(parse_answer("| n | text |\n|---|---|\n| 1 | a b c d e f g h |"), 12)
    assert lines == ["n │ text", "──┼─────────", "1 │ a b c d", "  │ e f g h"]


def test_a_table_of_many_columns_is_still_readable() -> None:
    source = "|" + "ab|" * 8 + "\n|" + "-|" * 8 + "\n|" + "cd|" * 8
    lines = block_lines(parse(source), 20)
    assert " ".join(lines).count("ab") == 8
    assert max(map(len, lines)) <= 20


def test_lines_know_what_wrapping_took_away() -> None:
    (block,) = parse("aaaa bbbb\ncccc")
    count = block.lay_out(8)
    assert [block.line(i).joint for i in range(count)] == ["\n", " ", "\n"]


def test_colours_are_cut_where_lines_are_broken() -> None:
    code = Verbatim("abcdefghijkl\nmn")
    code.lay_out(8)
    code.spans = [Span(0, 2, "bold"), Span(6, 10, "italic"), Span(12, 14, "underline")]
    assert [code.line(i).text.spans for i in range(3)] == [
        [Span(0, 2, "bold"), Span(6, 8, "italic")],
        [Span(0, 2, "italic")],
        [Span(0, 1, "underline")],
    ]


def test_python_is_coloured_and_an_unknown_language_is_not() -> None:
    found = spans("def f():\n    return 'x'\n", "python")
    coloured = {("def f():\n    return 'x'\n"[a:b], str(style)) for a, b, style in found}
    assert {"def", "return"} <= {text for text, _ in coloured}
    assert spans("def f(): pass", "no such language") == []


def test_a_lexer_that_fails_costs_only_the_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(code_highlight, "highlight", fail)
    assert spans("x", "python") == []


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n"), max_size=200),
    st.integers(8, 60),
)
def test_text_of_any_kind_is_kept_and_fits(text: str, width: int) -> None:
    block: Block = Verbatim(text)
    lines = [block.line(i).text for i in range(block.lay_out(width))]
    joints = [block.line(i).joint for i in range(len(lines))]
    whole = "".join(
        (joint if i else "") + line.plain
        for i, (line, joint) in enumerate(zip(lines, joints, strict=True))
    )
    assert whole == text
    assert all(line.cell_length <= width for line in lines)


@settings(max_examples=60, deadline=None)
@given(st.text("ab *#->\n1._\té漢", max_size=150), st.integers(8, 60))
def test_no_letter_is_lost(source: str, width: int) -> None:
    drawn = "".join(block_lines(parse_answer(source), width))
    assert [c for c in drawn if c in "abé漢"] == [c for c in source if c in "abé漢"]


@settings(max_examples=40, deadline=None)
@given(st.text("ab >-\n1.", max_size=60))
def test_lines_stay_within_the_width(source: str) -> None:
    assert all(len(line) <= 40 for line in block_lines(parse_answer(source), 40))
