"""Answers computed in a thread: what is drawn of them, what is kept, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from stem_local.errors import UsageError
from stem_local.generation import Stream
from stem_local.history import Entry
from stem_local.live import Live
from stem_tui.answering import Answering
from stem_tui.following import follow, sentence
from stem_tui.pace import FASTEST, SLOWEST, Pace
from tests.local.fakes import FakeCache

from .fake_model import Scripted

EMPTY = Entry(2, 1, "assistant", "", 0.0, state="streaming")


@pytest.fixture
def scripted(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


def starter(scripted: Scripted, **options: object) -> Callable[[], Stream]:
    model = scripted.load(None)
    return lambda: model.chat(**options).stream("Hi")  # type: ignore[arg-type]


class Screen:
    """What an answer tells a screen."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.lives: list[Live] = []
        self.saved: list[Entry] = []

    async def extend(self, text: str) -> None:
        self.text.append(text)

    async def save(self, entry: Entry) -> None:
        self.saved.append(entry)

    async def follow(self, start: Callable[[], Stream]) -> Entry:
        return await follow(Answering(start), EMPTY, self.extend, self.lives.append, self.save)


def test_an_answer_is_handed_on_and_kept_whole(scripted: Scripted) -> None:
    screen = Screen()
    entry = asyncio.run(screen.follow(starter(scripted)))
    assert "".join(screen.text) == entry.content == "Hello there."
    assert entry.state == "whole"
    assert entry.stats is not None
    assert entry.stats["completion_tokens"] == len("Hello there.")


@pytest.mark.parametrize(("tokens", "state"), [(4, "length"), (400, "context")])
def test_why_an_answer_was_cut_is_kept(tmp_path: Path, tokens: int, state: str) -> None:
    scripted = Scripted(tmp_path, "word " * 100, context=100)
    entry = asyncio.run(Screen().follow(starter(scripted, max_tokens=tokens)))
    assert entry.state == state
    assert "word ".startswith(entry.content[:5])


def test_figures_and_saves_come_while_it_runs(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stem_tui.following.SAVE_SECONDS", 0)
    screen = Screen()

    async def run() -> Entry:
        start = starter(scripted)
        # a step waits until something of those before it was saved
        steps = iter(range(100))

        def before(cache: FakeCache) -> None:
            if next(steps) == 12:
                scripted.hold()
            scripted.step(cache)

        scripted.engine.before_step = before
        following = asyncio.ensure_future(screen.follow(start))
        while not screen.saved:
            await asyncio.sleep(0)
        scripted.release()
        return await following

    entry = asyncio.run(run())
    partial = screen.saved[0]
    assert partial.state == "streaming"
    assert partial.content
    assert entry.content.startswith(partial.content) and entry.content != partial.content
    assert screen.lives[-1].total_parameters > 0


def test_stopping_keeps_what_there_is(scripted: Scripted) -> None:
    async def run() -> tuple[Entry, str]:
        start = starter(scripted)
        scripted.hold()
        answering = Answering(start)
        await asyncio.to_thread(scripted.started.wait)
        answering.stop()
        scripted.release()
        screen = Screen()
        entry = await follow(answering, EMPTY, screen.extend, screen.lives.append, screen.save)
        return entry, "".join(screen.text)

    entry, text = asyncio.run(run())
    assert (entry.state, entry.content) == ("stopped", text)
    assert len(text) < len("Hello there.")


def test_stopping_before_it_begins_ends_it(scripted: Scripted) -> None:
    model = scripted.load(None)

    async def run() -> Entry:
        begin = asyncio.Event()
        loop = asyncio.get_running_loop()

        def start() -> Stream:
            asyncio.run_coroutine_threadsafe(begin.wait(), loop).result()
            return model.stream("Hi")

        answering = Answering(start)
        answering.stop()
        begin.set()
        screen = Screen()
        return await follow(answering, EMPTY, screen.extend, screen.lives.append, screen.save)

    entry = asyncio.run(run())
    assert (entry.state, entry.content) == ("stopped", "")


def test_an_error_ends_an_answer_and_is_kept_with_what_came(scripted: Scripted) -> None:
    start = starter(scripted)

    steps = iter(range(100))

    def fail(_: object) -> None:
        if next(steps) == 9:
            raise UsageError("The lights went out.")

    scripted.engine.before_step = fail
    screen = Screen()
    entry = asyncio.run(screen.follow(start))
    assert entry.state == "failed"
    assert entry.stats == {"error": "The lights went out."}
    assert entry.content == "".join(screen.text) != ""


def test_errors_that_nobody_foresaw_are_told_as_such() -> None:
    assert sentence(UsageError("Too long.")) == "Too long."
    assert "ZeroDivisionError: by zero" in sentence(ZeroDivisionError("by zero"))


def test_costly_drawing_is_done_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("stem_tui.pace.time.thread_time", lambda: now[0])
    pace = Pace()
    assert pace.interval == FASTEST

    def drawn(cost: float, times: int) -> float:
        for _ in range(times):
            now[0] += cost
            pace.drawn()
        return pace.interval

    assert drawn(0.001, 5) == pytest.approx(FASTEST)
    # at 10 ms an update, five in a second take a twentieth of it
    assert drawn(0.010, 30) == pytest.approx(0.2, rel=0.01)
    assert drawn(1.0, 30) == pytest.approx(SLOWEST, rel=0.01)
    assert drawn(0.001, 40) == pytest.approx(FASTEST, rel=0.01)
