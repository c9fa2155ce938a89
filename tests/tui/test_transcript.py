"""The transcript: what is in view, what stays in view, and answers that stream."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from textual import events
from textual.app import App
from textual.color import Color
from textual.pilot import Pilot

from stem_local.history.entries import Attachment, Entry
from stem_tui.widgets.message import LONG
from stem_tui.widgets.message_list import KEPT
from stem_tui.widgets.transcript import Transcript

from .conftest import STATS, Host, run_app, shown

SIZE = (60, 16)
SHORT = "Short **answer**."
CODE = "```python\n@decorated\ndef f(x):\n    '''doc'''\n    return 1.5  # why\n```"


def dialogue(turns: int, answer: str = SHORT) -> list[Entry]:
    """Questions and answers that say their number."""
    entries: list[Entry] = []
    for number in range(turns):
        parent = entries[-1].id if entries else None
        entries.append(Entry(2 * number + 1, parent, "user", f"Question {number}", 0.0))
        content = f"{answer}\n\nEnd {number}"
        entries.append(Entry(2 * number + 2, 2 * number + 1, "assistant", content, 0.0, model="m"))
    return entries


def streaming(number: int, parent: int | None = None) -> Entry:
    return Entry(number, parent, "assistant", "", 0.0, state="streaming", model="m")


def run(
    entries: Sequence[Entry],
    act: Callable[[Transcript, Pilot[Any]], Awaitable[None]],
    size: tuple[int, int] = SIZE,
    theme: str = "stem-dark",
) -> str:
    """The screen after `act` on a transcript that shows these entries."""
    transcript = Transcript()
    app = Host(transcript, theme=theme)

    async def test(pilot: Pilot[Any]) -> str:
        await transcript.show(entries)
        transcript.focus()
        await pilot.pause()
        await act(transcript, pilot)
        await settled(app, pilot)
        return shown(app)

    return run_app(app, test, size)


async def settled(app: App[Any], pilot: Pilot[Any]) -> None:
    await pilot.pause()
    await app.workers.wait_for_complete()
    await pilot.pause()


async def nothing(transcript: Transcript, pilot: Pilot[Any]) -> None:
    del transcript, pilot


def test_a_conversation_opens_at_its_end() -> None:
    screen = run(dialogue(50), nothing)
    assert "End 49" in screen.splitlines()[-1]
    assert "Question 0" not in screen


def test_only_what_is_in_view_is_laid_out() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        del pilot
        assert 0 < sum(m.laid_out > 0 for m in transcript.messages) < 12

    run(dialogue(1000), act)


def test_a_message_out_of_view_is_let_go_of() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        while transcript.scroll_y > 0:
            transcript.action_page(-1)
        await pilot.pause()
        assert sum(m.laid_out > 0 for m in transcript.messages) <= KEPT

    assert "Question 0" in run(dialogue(KEPT), act)


def test_an_empty_conversation_is_empty() -> None:
    assert run([], nothing).strip() == ""


def test_text_that_streams_stays_in_view() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await transcript.append(streaming(99))
        for number in range(40):
            await transcript.extend(f"Line {number}\n\n")
            assert f"Line {number}" in await text(pilot)

    assert "answering …" in run(dialogue(3), act)


async def text(pilot: Pilot[Any]) -> str:
    """The screen without the scroll bar."""
    await pilot.pause()
    return "\n".join(row[: SIZE[0] - 1].rstrip() for row in shown(pilot.app).splitlines())


def test_scrolling_up_lets_go_and_says_that_there_is_more() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await transcript.append(streaming(99))
        await transcript.extend("Line\n\n" * 20)
        assert "more below" not in await text(pilot)
        await pilot.press("pageup")
        before = await text(pilot)
        assert "↓ more below" in before.splitlines()[-1]
        await transcript.extend("Line\n\n" * 20)
        assert await text(pilot) == before
        await pilot.press("end")
        await transcript.extend("Last")
        assert transcript.following

    screen = run(dialogue(9), act)
    assert "Last" in screen
    assert "more below" not in screen


def test_coming_back_to_the_end_follows_again() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await pilot.press("shift+up", "shift+up")
        assert not transcript.following
        await pilot.press("shift+down", "shift+down")
        assert transcript.following

    run(dialogue(20), act)


def test_the_wheel_lets_go_too() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        wheel = events.MouseScrollUp(transcript, 5, 5, 0, -1, 0, False, False, False)
        transcript.post_message(wheel)
        await pilot.pause()
        assert not transcript.following

    run(dialogue(20), act)


def test_a_question_of_ones_own_is_always_seen() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await pilot.press("pageup")
        await transcript.append(Entry(99, None, "user", "Now this", 0.0))

    assert "Now this" in run(dialogue(20), act)


@pytest.mark.parametrize("seed", range(3))
def test_scrolling_shows_every_line_where_it_belongs(seed: int) -> None:
    """However heights were guessed at first, the lines that stay in view move by the step."""

    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        del pilot
        for step in random.Random(seed).choices([-14, -5, -3, -1, 1, 4, 9], k=80):
            before = lines(transcript)
            at_top = transcript.scroll_y + step < 0
            transcript.action_line(step)
            after = lines(transcript)
            if step < 0 and not at_top:
                assert after[-step:] == before[:step]
            elif step > 0 and not transcript.following:
                assert after[:-step] == before[step:]

    run(dialogue(12, "many words in one long paragraph " * 9), act)


def lines(transcript: Transcript) -> list[str]:
    height = transcript.size.height - 1
    return [transcript.render_line(y).text.rstrip() for y in range(height)]


def test_another_width_wraps_anew_and_stays_at_the_end() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        del transcript
        await pilot.resize_terminal(30, 16)

    screen = run(dialogue(9, "many words in one long paragraph " * 3), act)
    assert "End 8" in screen.splitlines()[-1]
    assert max(map(len, screen.splitlines())) <= 30


def test_another_width_keeps_the_place_of_a_reader() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        transcript.selected = 9
        assert "Question 4" in await text(pilot)
        await pilot.resize_terminal(40, 16)

    assert "Question 4" in run(dialogue(30), act)


def test_a_tiny_terminal_does_no_harm() -> None:
    assert run(dialogue(3), nothing, size=(5, 2))


def test_finishing_brings_figures_and_the_whole_markdown() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await transcript.append(streaming(99))
        await transcript.extend("See [it].\n\n[it]: https://example.org")
        await pilot.pause()
        content = "See [it].\n\n[it]: https://example.org"
        await transcript.finish(
            replace(streaming(99), content=content, state="stopped", stats=STATS)
        )

    screen = run([], act)
    assert "See it (https://example.org)." in screen
    assert "stopped before its end · 254 tok/s" in screen
    assert "answering" not in screen


def test_finishing_keeps_the_place_of_a_reader() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await transcript.append(streaming(99))
        await transcript.extend("Line\n\n" * 20)
        await pilot.press("pageup", "pageup")
        before = await text(pilot)
        await transcript.finish(replace(streaming(99), content="Line\n\n" * 20, state="whole"))
        assert await text(pilot) == before

    run(dialogue(9), act)


def test_an_answer_that_was_left_does_not_come_back() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await transcript.append(streaming(99))
        await transcript.extend("Old text")
        finishing = asyncio.ensure_future(
            transcript.finish(replace(streaming(99), content="Old text", state="stopped"))
        )
        await transcript.show(dialogue(1))
        await finishing
        await transcript.extend("later")
        await pilot.pause()

    screen = run([], act)
    assert "Old text" not in screen
    assert "End 0" in screen


def test_replacing_changes_one_message() -> None:
    entries = dialogue(2)

    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        del pilot
        await transcript.replace(replace(entries[1], content="Anew", branch=(2, 2)))

    screen = run(entries, act)
    assert "Anew" in screen
    assert "◂ 2/2 ▸" in screen
    assert "End 1" in screen


def test_a_notice_stands_at_the_end() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        del pilot
        transcript.notice("from here on with another model")

    assert "── from here on with another model ──" in run(dialogue(1), act)


def test_an_answer_goes_on_above_a_notice() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await transcript.append(streaming(99))
        await transcript.extend("one ")
        await pilot.pause()
        transcript.notice("the model has changed")
        await pilot.pause()
        await transcript.extend("two")

    screen = run([], act)
    assert screen.index("one two") < screen.index("── the model has changed")


def test_it_is_marked_from_where_on_the_model_saw_the_conversation() -> None:
    entries = dialogue(3)
    entries[-1] = replace(entries[-1], forgotten=2)
    screen = run(entries, nothing, size=(60, 40))
    mark = screen.index("── no longer seen by the model: 2 turns above ──")
    assert screen.index("End 1") < mark < screen.index("Question 2")
    assert "2 turns no longer seen" in screen


def test_the_mark_moves_on_with_the_conversation() -> None:
    entries = dialogue(3)

    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        del pilot
        await transcript.replace(replace(entries[3], forgotten=0))
        await transcript.replace(replace(entries[5], forgotten=2))

    entries[5] = replace(entries[5], forgotten=1)
    screen = run(entries, act, size=(60, 40))
    assert "1 turn above" not in screen
    assert "2 turns above" in screen


def test_code_gets_its_colours_while_the_fence_grows() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await transcript.append(streaming(99))
        await transcript.extend("```python\ndef f():\n    return 1\n\n")
        await settled(pilot.app, pilot)
        styles = {
            segment.text: segment.style
            for y in range(transcript.size.height)
            for segment in transcript.render_line(y)
        }
        assert styles["return"] != styles["1"]
        await transcript.finish(replace(streaming(99), content="```python\n1\n```", state="whole"))

    run([], act)


def test_a_long_answer_is_read_in_the_background() -> None:
    entry = Entry(1, None, "assistant", "**x** " * (LONG // 6 + 1), 0.0, model="m")
    screen = run([entry], nothing)
    assert "**" not in screen
    assert "x x x" in screen


def test_all_text_can_be_read(theme: str) -> None:
    """At least 4.5 to 1 between every text and what is behind it, code in its colours included."""
    entries = dialogue(2, f"# Head\n\n> quote\n\n- item `code`\n\n[l](https://e.org)\n\n{CODE}")
    entries[0] = replace(entries[0], attachments=(Attachment("a.txt", "x"),))
    entries[-1] = replace(entries[-1], forgotten=1, stats=STATS, branch=(1, 2))

    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        await settled(pilot.app, pilot)
        transcript.selected = 4
        transcript.following = False
        await pilot.pause()
        seen = set()
        for y in range(transcript.size.height):
            for segment in transcript.render_line(y):
                if segment.text.strip() and segment.style is not None:
                    assert contrast(segment.style) >= 4.5, segment
                    seen.add(segment.style.color)
        assert len(seen) > 8

    run(entries, act, size=(70, 70), theme=theme)


def contrast(style: Any) -> float:
    front, back = (Color.from_rich_color(colour) for colour in (style.color, style.bgcolor))
    lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: Color) -> float:
    """As WCAG 2 defines it."""
    parts = (part / 255 for part in (colour.r, colour.g, colour.b))
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_another_theme_is_drawn_at_once() -> None:
    async def act(transcript: Transcript, pilot: Pilot[Any]) -> None:
        before = transcript.render_line(14)
        pilot.app.theme = "stem-light"
        await pilot.pause()
        after = transcript.render_line(14)
        assert before.text == after.text
        assert before != after

    run(dialogue(9), act)
