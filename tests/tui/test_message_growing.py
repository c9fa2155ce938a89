"""Answers that grow: however they come in pieces, they look like the finished ones."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from stem_tui.widgets.blocks import Code
from stem_tui.widgets.growing_markdown import LONG_PARAGRAPH, GrowingMarkdown
from stem_tui.widgets.markdown_blocks import parse_answer

from .message_lines import block_lines

WORDS = st.sampled_from(["alpha", "beta", "**bold**", "`code`", "gamma", "*it*"])
TEXTS = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)
SEVERAL = st.lists(TEXTS, min_size=1, max_size=4)
BLOCKS = st.one_of(
    TEXTS,
    TEXTS.map("## {}".format),
    TEXTS.map("> {}".format),
    SEVERAL.map(lambda items: "\n".join(f"- {item}" for item in items)),
    SEVERAL.map(lambda items: "\n\n".join(f"- {item}" for item in items)),
    SEVERAL.map(lambda items: "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1))),
    SEVERAL.map(lambda items: "- a\n" + "\n".join(f"  - {item}" for item in items) + "\n- b"),
    SEVERAL.map(lambda items: "```python\n" + "\n\n".join(items) + "\n```"),
    SEVERAL.map(lambda items: "~~~\n```\n" + "\n".join(items) + "\n~~~"),
    st.just("| a | b |\n|---|---|\n| 1 | 2 |"),
    st.just("---"),
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def grown(source: str, cuts: list[int]) -> list[str]:
    """The lines of a text that came in pieces, laid out after each as the screen does."""
    growing = GrowingMarkdown()
    places = sorted({*(cut for cut in cuts if cut < len(source)), len(source)})
    start = 0
    for place in places:
        for block in growing.blocks[growing.append(source[start:place]) :]:
            block.lay_out(40)
        start = place
    return block_lines(growing.blocks)


def finished(source: str) -> list[str]:
    """The lines of the finished text, without the numbers that only finished code has."""
    return [
        re.sub(r"^ \d+ (python|code)$", r" \1", line) for line in block_lines(parse_answer(source))
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(BLOCKS, max_size=5).map("\n\nplain\n\n".join), CUTS)
def test_pieces_come_to_the_same_as_the_whole(source: str, cuts: list[int]) -> None:
    assert grown(source, cuts) == finished(source)


@settings(max_examples=60, deadline=None)
@given(st.text("ab *`#->\n1.|~_()\t", max_size=120), CUTS)
def test_no_letter_is_lost_on_the_way(source: str, cuts: list[int]) -> None:
    letters = [c for line in grown(source, cuts) for c in line if c in "ab"]
    assert letters == [c for line in finished(source) for c in line if c in "ab"]


def token_by_token(source: str) -> GrowingMarkdown:
    growing = GrowingMarkdown()
    for start in range(0, len(source), 31):
        for block in growing.blocks[growing.append(source[start : start + 31]) :]:
            block.lay_out(40)
    return growing


def test_a_long_paragraph_wraps_as_if_it_had_come_at_once() -> None:
    source = " ".join(f"word{'s' * (n % 7)}{n}" for n in range(3 * LONG_PARAGRAPH // 8))
    assert block_lines(token_by_token(source).blocks) == finished(source)


def test_a_long_paragraph_is_not_read_from_its_beginning_again() -> None:
    growing = token_by_token("lorem ipsum " * (LONG_PARAGRAPH // 2))
    assert len(growing._rest) <= 2 * LONG_PARAGRAPH


def test_a_long_paragraph_without_spaces_goes_on_too() -> None:
    source = "漢字" * (2 * LONG_PARAGRAPH)
    growing = token_by_token(source)
    assert len(growing._rest) <= 2 * LONG_PARAGRAPH
    assert "".join(block_lines(growing.blocks)) == source


def test_what_follows_a_long_paragraph_is_read_as_ever() -> None:
    source = "lorem ipsum " * (LONG_PARAGRAPH // 6) + "\n\n- a\n- b\n\n# end"
    assert block_lines(token_by_token(source).blocks) == finished(source)


def test_a_long_fence_goes_on_in_pieces_that_look_like_one() -> None:
    source = (
        "```python\n" + "".join(f"value_{n} = {n}\n" for n in range(LONG_PARAGRAPH // 4)) + "```"
    )
    growing = token_by_token(source + "\n\nafter")
    assert sum(isinstance(block, Code) for block in growing.blocks) > 2
    assert block_lines(growing.blocks) == finished(source + "\n\nafter")


def test_the_end_of_a_fence_is_not_shown_as_code_while_it_comes() -> None:
    growing = GrowingMarkdown()
    growing.append("```\nx\n``")
    assert block_lines(growing.blocks) == [" code", " x"]
    growing.append("y")
    assert block_lines(growing.blocks) == [" code", " x", " ``y"]


def test_only_what_may_have_changed_is_told() -> None:
    growing = GrowingMarkdown()
    growing.append("one\n\ntwo\n\nthr")
    first, second, _ = growing.blocks
    assert growing.append("ee") == 2
    assert growing.blocks[:2] == [first, second]


def test_a_huge_table_is_read_again_only_now_and_then() -> None:
    growing = GrowingMarkdown()
    growing.append("| a |\n|---|\n" + "| cell of some length |\n" * 400)
    before = growing.blocks[0]
    assert growing.append("| more |\n") == len(growing.blocks)
    assert growing.blocks[0] is before
