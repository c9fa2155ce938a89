"""Models chosen, downloaded, calibrated and removed on the screen, and all that can go wrong."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.pilot import Pilot
from textual.widgets import Footer, Input

from stem_local import calibration, hub, learning, machine, store
from stem_local.errors import (
    AccessError,
    Cancelled,
    DiskSpaceError,
    OfflineError,
)
from stem_local.progress import LEARN, Reporter
from stem_local.units import size
from stem_tui.screens.dialog import one_line
from stem_tui.screens.model_jobs import Job, ModelJobs, sentence
from stem_tui.screens.model_table import ModelTable
from stem_tui.screens.models import ModelsScreen

from ..local.installing import install
from ..runtime.files import tiny_gguf
from ..runtime.looks import add_profile
from ..runtime.tiny import random_packed, tiny_config
from .conftest import Host, run_app, shown, until

FRAME = dict.fromkeys(map(ord, "│▌▐"), " ")
MEMORY = 8_000_000_000


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: MEMORY)


def installed_size(name: str) -> str:
    model = store.find(name)
    assert model is not None
    return size(model.size)


class Work:
    """Stands in for a pull or a calibration: goes on when it is let, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.wanted: list[tuple[str, str | None]] = []
        self.go_on = threading.Event()
        self.ended = threading.Event()

    def pull(
        self,
        spec: str,
        *,
        name: str | None,
        progress: Reporter,
        calibrate: bool,
        cancel: Callable[[], bool],
    ) -> store.InstalledModel:
        assert not calibrate  # that comes after, unless the engine is at work
        self.wanted.append((spec, name))
        progress.note(f"Getting {spec} from nowhere.")
        progress.update("download", 0, 100_000_000)
        progress.update("download", 42_000_000, 100_000_000)
        self._wait(cancel)
        return install(name or spec)

    def calibrate(
        self,
        model: str,
        *,
        notify: Callable[[str], None],
        progress: Callable[[str, int, int], None],
        cancel: Callable[[], bool],
    ) -> None:
        self.wanted.append((model, None))
        notify("Compiling.")
        progress("Watching", 1, 4)
        self._wait(cancel)
        add_profile(store.resolve(model))

    def _wait(self, cancel: Callable[[], bool]) -> None:
        if self.error is not None:
            raise self.error
        while not self.go_on.wait(0.01):
            if cancel():
                self.ended.set()
                raise Cancelled("It was cancelled; the next one goes on from there.")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    monkeypatch.setattr(hub, "pull", work.pull)
    monkeypatch.setattr(calibration, "calibrate", work.calibrate)
    return work


class Opened:
    """The screen over a host app, what it returned, and what can be seen of it."""

    def __init__(self, pilot: Pilot[Any]) -> None:
        self.pilot = pilot
        self.results: list[str | None] = []

    @property
    def text(self) -> str:
        return shown(self.pilot.app)

    @property
    def job(self) -> Job | None:
        return ModelJobs.of(self.pilot.app).current

    @property
    def table(self) -> ModelTable:
        return self.screen.query_one(ModelTable)

    def row(self, name: str) -> list[str]:
        return [str(cell) for cell in self.table.get_row(name)]

    async def open(self, *args: Any, **options: Any) -> None:
        self.screen = ModelsScreen(*args, **options)
        await self.pilot.app.push_screen(self.screen, self.results.append)
        await until(self.pilot, lambda: self.table.row_count)

    async def on(self, name: str, *keys: str) -> None:
        """Move the cursor to a model, which is there or will be, and press keys."""
        await until(self.pilot, lambda: self.table.model(name))
        self.table.move_cursor(row=self.table.get_row_index(name))
        await self.pilot.pause()
        await self.press(*keys)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def said(self, text: str) -> None:
        await until(self.pilot, lambda: text in " ".join(self.text.translate(FRAME).split()))

    async def returned(self) -> str | None:
        await until(self.pilot, lambda: self.results)
        return self.results[0]


def check(test: Callable[[Opened], Any]) -> None:
    async def session(pilot: Pilot[Any]) -> None:
        await test(Opened(pilot))

    run_app(Host(), session)


def test_a_first_run_downloads_the_default_with_enter(work: Work) -> None:
    async def test(opened: Opened) -> None:
        await opened.open(first_run=True)
        await opened.said("none is installed yet")
        assert opened.table.highlighted == "smollm2-135m"
        await opened.said("⏎ downloads 273 MB from the Hub")
        await opened.said("or 93 MB from the Python package index")
        await opened.said(
            "Needs about 0.5 GB of memory with its context full, of 8.0 GB here: fits"
        )
        await opened.press("enter")
        await opened.said("Downloading smollm2-135m: 42 MB of 100 MB")
        await opened.said("Getting smollm2-135m from nowhere.")
        await opened.said("─ 42%")
        work.go_on.set()
        assert await opened.returned() == "smollm2-135m"
        assert work.wanted == [("smollm2-135m", None)]

    check(test)


def test_a_first_run_begins_with_what_is_there() -> None:
    install("zebra")

    async def test(opened: Opened) -> None:
        await opened.open(first_run=True)
        assert opened.table.highlighted == "zebra"
        await opened.said("⏎ chats with zebra")
        assert "none is installed" not in opened.text
        await opened.press("enter")
        assert await opened.returned() == "zebra"

    check(test)


def test_the_table_says_what_there_is_to_know_of_each_model() -> None:
    add_profile(install("zebra").folder)
    install("cat")
    install("dog")

    async def test(opened: Opened) -> None:
        await opened.open("dog")
        assert opened.table.highlighted == "dog"
        assert [opened.row(name)[-1] for name in ("cat", "dog", "zebra", "smollm2-360m")] == [
            *("installed", "in use", "calibrated", "-")
        ]
        about = ["prosparse-llama-2-7b", "6.74B", "13.5 GB", "llama2", "fatrelu 89%", "tight", "-"]
        assert opened.row("prosparse-llama-2-7b") == about
        assert opened.row("qwen3-0.6b")[3:6] == ["apache-2.0", "silu", "fits"]
        await opened.said("Not calibrated: a few minutes would show")
        await opened.on("zebra")
        await opened.said("Calibrated. Automatic: dense: calibrated with the portable kernels")
        await opened.on("llama-3.2-1b")
        await opened.said("Its licence must be accepted at the Hub first")
        await opened.on("relullama-7b")
        await opened.said("67% of neurons are zero (ProSparse, arXiv:2402.13516)")

    check(test)


def test_cancelling_leaves_what_can_be_gone_on_with(work: Work) -> None:
    async def test(opened: Opened) -> None:
        await opened.open(first_run=True)
        assert "Cancel work" not in opened.text
        await opened.press("x")
        await opened.press("enter")
        await opened.said("x Cancel work")
        await opened.press("x")
        await opened.said("the next one goes on from there")
        assert work.ended.is_set()
        assert opened.job is None
        assert "Cancel work" not in opened.text
        assert "42%" not in opened.text
        work.go_on.set()
        await opened.press("enter")
        assert await opened.returned() == "smollm2-135m"

    check(test)


ERRORS = (
    (OfflineError("The Hub could not be reached; check the connection."), "! The Hub could"),
    (AccessError("It is shown only to some: accept its licence."), "! It is shown only"),
    (DiskSpaceError("Not enough room in there; make some."), "! Not enough room"),
    (OSError(errno.ENOSPC, "No space left", "x"), "! The disk is full: make room"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), "! Permission denied (/x); put"),
    (MemoryError(), "! There is not enough memory"),
    (ValueError("[b]\x1b[31mboom"), "! ValueError: [b][31mboom (a fault of this program"),
)


def test_errors_are_sentences_and_nothing_ends(work: Work) -> None:
    async def test(opened: Opened) -> None:
        await opened.open(first_run=True)
        for error, says in ERRORS:
            work.error = error
            await opened.press("enter")
            await opened.said(says)
            assert opened.job is None
        assert not opened.results

    check(test)


def test_without_a_network_all_but_downloading_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    install("mine")

    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.on("smollm2-360m", "enter")
        await opened.said("! HF_HUB_OFFLINE is set and smollm2-360m is not in the Hub cache: unset")
        await opened.on("mine", "enter")
        assert await opened.returned() == "mine"

    check(test)


def test_a_file_is_installed_under_a_name_of_ones_own(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "tiny.gguf", tiny_config())

    async def test(opened: Opened) -> None:
        await opened.open("other")
        await opened.press("i")
        opened.screen.query_one(Input).value = f" {tmp_path / 'tiny.gguf'} as Mine "
        await opened.press("enter")
        await opened.said("mine is installed (")
        assert opened.table.highlighted == "mine"
        assert opened.screen.query_one(Input).value == ""
        await opened.press("enter")
        assert await opened.returned() == "mine"

    check(test)


def test_sources_that_cannot_be_are_refused_and_left_to_correct(work: Work) -> None:
    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.press("slash", "enter")
        source = opened.screen.query_one(Input)
        for text, says in (
            ("smolm2-135m", "did you mean smollm2-135m?"),
            ("./none.gguf", "does not exist"),
            ("hf:owner", "is not hf:owner/repo"),
            ("hf:owner/repo as ../x", "cannot name a model"),
            ("~nobody-of-that-name/x.gguf", "neither a path nor a name"),
            ("x" * 5000, "neither a path nor a name"),
        ):
            source.value = text
            await opened.press("enter")
            await opened.said(says)
            assert source.value == text
        await opened.press("escape")
        assert opened.screen.focused is opened.table
        assert work.wanted == []
        await opened.press("i")
        source.value = "hf:owner/Repo.gguf"
        await opened.press("enter")
        await opened.said("Downloading repo.gguf: 42 MB")
        assert work.wanted == [("hf:owner/Repo.gguf", "repo.gguf")]
        await opened.press("x")
        await opened.said("goes on from there")

    check(test)


def test_a_packed_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    random_packed(tmp_path / "packed", tiny_config())

    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.press("i")
        opened.screen.query_one(Input).value = str(tmp_path / "packed")
        await opened.press("enter")
        assert await opened.returned() == str(tmp_path / "packed")

    check(test)


def test_one_thing_at_a_time(work: Work) -> None:
    install("mine")

    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.on("qwen3-0.6b", "enter")
        await opened.said("Downloading qwen3-0.6b")
        await opened.on("qwen3-1.7b", "enter")
        await opened.said("One thing at a time: qwen3-0.6b comes first (x cancels).")
        await opened.on("mine", "c")
        await opened.said("One thing at a time")
        assert len(work.wanted) == 1
        await opened.press("enter")
        assert await opened.returned() == "mine"

    check(test)


def test_a_download_goes_on_when_the_screen_is_left(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Host, "notify", lambda _, message, **__: told.append(message))

    async def test(opened: Opened) -> None:
        await opened.open("other")
        await opened.on("qwen3-0.6b", "enter")
        await opened.said("42 MB of 100 MB")
        await opened.press("escape")
        assert await opened.returned() is None
        await opened.open("other")
        await opened.said("42 MB of 100 MB")
        await opened.press("escape")
        work.go_on.set()
        await until(opened.pilot, lambda: opened.job is None)
        assert told == [f"qwen3-0.6b is installed ({installed_size('qwen3-0.6b')})."]

    check(test)


def test_leaving_the_app_cancels_a_download(work: Work) -> None:
    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.on("qwen3-0.6b", "enter")
        await opened.said("42 MB of 100 MB")

    check(test)
    assert work.ended.is_set()


def test_too_big_a_model_is_downloaded_only_when_that_is_confirmed(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2_000_000_000)

    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.on("relullama-7b")
        assert "too big" in opened.row("relullama-7b")
        await opened.press("enter")
        await opened.said("very slow if it runs at all. Download 13.5 GB")
        await opened.press("n")
        assert work.wanted == []
        await opened.press("enter")
        await opened.said("nevertheless?")
        await opened.press("y")
        await opened.said("Downloading relullama-7b")

    check(test)


def test_removal_asks_first() -> None:
    install("one")
    install("two")

    async def test(opened: Opened) -> None:
        await opened.open("two")
        await opened.on("one", "d")
        await opened.said("Delete one (")
        await opened.press("n")
        assert store.find("one")
        await opened.press("delete", "y")
        await opened.said("one was deleted:")
        assert store.find("one") is None
        await until(opened.pilot, lambda: opened.table.model("one") is None)
        await opened.on("two", "d")
        await opened.said("two is in use: use another model before")
        await opened.on("qwen3-0.6b", "d")
        await opened.said("qwen3-0.6b is not installed.")
        assert store.find("two")

    check(test)


def test_a_model_that_another_program_installs_or_removed() -> None:
    install("one")
    install("two")

    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.on("one")
        with store.locked("one"):
            await opened.press("d", "y")
            await opened.said("! one is being installed by another process")
        store.remove("one")
        await opened.press("enter")
        await opened.said("! one is no longer there: another program removed it.")
        await until(opened.pilot, lambda: opened.table.model("one") is None)
        await opened.on("two")
        store.remove("two")
        await opened.press("d", "y")
        await opened.said("! No model called 'two' is installed")
        assert not opened.results

    check(test)


def test_leaving_at_once_is_no_trouble() -> None:
    add_profile(install("mine").folder)

    async def test(opened: Opened) -> None:
        for _ in range(3):
            screen = ModelsScreen()
            opened.pilot.app.push_screen(screen, opened.results.append)
            await opened.press("escape")
        await opened.open()
        await opened.on("mine", "enter", "enter", "escape")
        await until(opened.pilot, lambda: len(opened.results) == 4)
        assert opened.results[:3] == [None] * 3

    check(test)


def test_a_calibrated_model_is_to_be_loaded_anew(work: Work) -> None:
    install("mine")

    async def test(opened: Opened) -> None:
        await opened.open("mine")
        await opened.press("c")
        await opened.said("Calibrating mine: watching")
        await opened.said("25%")
        await opened.press("escape")
        await opened.said("nothing else can be done meanwhile")
        await opened.press("enter")
        assert not opened.results
        work.go_on.set()
        await opened.said("mine is calibrated.")
        await opened.said("Calibrated. Automatic:")
        await opened.press("escape")
        assert await opened.returned() == "mine"

    check(test)


def test_a_calibration_that_was_cancelled_changes_nothing(work: Work) -> None:
    install("mine")

    async def test(opened: Opened) -> None:
        await opened.open("mine")
        await opened.press("c")
        await opened.said("watching")
        await opened.press("x")
        await opened.said("goes on from there")
        await opened.press("escape")
        assert await opened.returned() is None
        assert work.ended.is_set()

    check(test)


def test_what_cannot_be_calibrated_now(work: Work) -> None:
    install("mine")

    async def test(opened: Opened) -> None:
        await opened.open(answering=lambda: True)
        await opened.on("mine", "c")
        await opened.said("Calibrating measures speeds: stop the answer")
        await opened.on("qwen3-0.6b", "c")
        await opened.said("qwen3-0.6b must be installed before")
        assert work.wanted == []

    check(test)


def test_damaged_models_say_so_and_are_got_anew(work: Work) -> None:
    for name in ("smollm2-360m", "mine"):
        (install(name).folder / "stem.json").write_text('{"format": 99}')

    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.on("mine")
        await opened.said("Damaged:")
        assert opened.row("mine")[-1] == "damaged"
        await opened.press("enter")
        await opened.said("mine is damaged: remove it and get it again")
        await opened.press("c")
        await opened.said("mine must be installed")
        await opened.on("smollm2-360m")
        await opened.said("⏎ downloads smollm2-360m anew.")
        await opened.press("enter")
        await opened.said("Downloading smollm2-360m")
        work.go_on.set()
        await opened.said("smollm2-360m is installed (")
        assert opened.row("smollm2-360m")[-1] == "installed"

    check(test)


def test_what_a_model_says_of_itself_cannot_take_over_the_screen() -> None:
    import json

    model = install("mine")
    info = json.loads((model.folder / "stem.json").read_text())
    info["license"] = "\x1b[2J[red]free" + "x" * 500
    (model.folder / "stem.json").write_text(json.dumps(info))

    async def test(opened: Opened) -> None:
        await opened.open()
        await opened.on("mine")
        await opened.said("licence [2J[red]free")
        assert opened.row("mine")[3] == "[2J[red]f…"
        assert "⏎ Get or use" in opened.text

    check(test)


def test_keys_can_be_changed_and_are_named_as_they_are(work: Work) -> None:
    install("mine")

    async def test(opened: Opened) -> None:
        opened.pilot.app.set_keymap({"models.cancel": "f9", "models.choose": "g"})
        await opened.open()
        await opened.on("qwen3-0.6b")
        await opened.said("g downloads 1.5 GB")
        await opened.press("g")
        await opened.said("42 MB of")
        await opened.on("qwen3-1.7b", "g")
        await opened.said("(f9 cancels)")
        await opened.press("x")
        assert opened.job is not None
        await opened.press("f9")
        await opened.said("goes on from there")
        assert work.ended.is_set()

    check(test)


def test_the_footer_fits_the_smallest_terminal() -> None:
    async def test(opened: Opened) -> None:
        await opened.open()
        assert opened.screen.query_one(Footer).region.bottom <= 24
        for key in ("Get or use", "Calibrate", "Remove", "Other source", "Back"):
            assert key in opened.text

    check(test)


def test_a_tiny_terminal_shows_the_progress_rather_than_the_details(work: Work) -> None:
    async def test(pilot: Pilot[Any]) -> None:
        opened = Opened(pilot)
        await opened.open(first_run=True)
        await opened.press("enter")
        await opened.said("Downloading smollm2-135m: 42 MB")
        await opened.said("42%")
        assert "parameters" not in opened.text
        work.go_on.set()
        assert await opened.returned() == "smollm2-135m"

    run_app(Host(), test, size=(40, 12))


def test_progress_in_words() -> None:
    job = Job("get", "a", "a")
    assert job.lines(40) == ("Getting a ...", "")
    job.note("Waiting\nfor\x1b it.")
    assert job.noted == "Waiting for it."
    job.update("download", 0, 10_000_000)
    job.since -= 10
    job.update("download", 2_000_000, 10_000_000)
    text, bar = job.lines(40)
    assert text == "Downloading a: 2 MB of 10 MB, 200 kB/s, 40 s left"
    assert len(bar) == 40
    assert bar.endswith(" 20%")
    job.since -= 990
    assert job.lines(40)[0].endswith("2 kB/s, 67 min left")
    job.update("pack", 10_000_000, 10_000_000)
    assert job.lines(40)[0] == "Packing a: 10 MB of 10 MB"
    other = Job("calibrate", "a", "a")
    other.begun -= 200
    other.update("Weighing", 1, 3)
    assert other.lines(40)[0] == "Calibrating a: weighing, 3 min so far"
    job.cancelled.set()
    assert job.lines(40) == ("Cancelling the work on a ...", "")


@settings(max_examples=60)
@given(st.text(), st.text(), st.integers(0), st.integers(1), st.integers(10, 200), st.booleans())
def test_progress_is_two_plain_lines_whatever_is_told(
    step: str, note: str, done: int, total: int, width: int, late: bool
) -> None:
    job = Job("get", "a", "a")
    job.note(note)
    job.update("download", 0, 5)
    job.since -= 30 * late
    for told in (step, "download"):
        job.update(told, min(done, total), total)
        text, bar = job.lines(width)
        assert len(bar) == width
        assert text.startswith(("Calibrating a: ", "Downloading a: "))
    assert one_line(job.noted) == job.noted


@given(st.text())
def test_sentences_are_one_plain_line(text: str) -> None:
    for error in (OfflineError(text), OSError(text), ValueError(text)):
        assert one_line(sentence(error)) == sentence(error)


def test_a_sentence_of_any_error() -> None:
    assert sentence(OSError("odd")) == "odd; put that right and try again."
    assert sentence(RuntimeError()) == "RuntimeError: (a fault of this program; try again)"


def test_it_looks_as_it_did(theme: str, work: Work, snap_compare: Callable[..., bool]) -> None:
    """A model in use, one that is calibrated, a damaged one, and a download that failed."""
    work.error = OfflineError("The Hub could not be reached; check the connection and try again.")
    install("smollm2-135m")
    add_profile(install("qwen3-0.6b").folder)
    (install("mine").folder / "stem.json").write_text("{")

    async def act(pilot: Pilot[Any]) -> None:
        opened = Opened(pilot)
        await opened.open("smollm2-135m")
        await opened.on("minicpm-s-1b", "enter")
        await opened.said("! The Hub could")

    assert snap_compare(Host(theme=theme), run_before=act)


def test_learning_comes_after_the_download_and_can_be_left_out(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def learn(model: store.InstalledModel, report: Reporter, cancel: Callable[[], bool]) -> None:
        report.update(LEARN, 3_000, 12_000)
        while not cancel():
            ended.wait(0.01)
        report.note(f"{model.name} is not calibrated.")

    monkeypatch.setattr(learning, "learn", learn)
    work.go_on.set()

    async def test(opened: Opened) -> None:
        answering = [False]
        await opened.open("other", answering=lambda: answering[0])
        await opened.on("smollm2-135m", "enter")
        await opened.said("Learning which words to look at: 9 s")
        await opened.said("─ 25%")
        await opened.press("escape")
        await opened.said("Calibrating measures speeds, so nothing else can be done meanwhile")
        await opened.press("x")
        await opened.said("smollm2-135m is not calibrated.")
        assert store.find("smollm2-135m") is not None
        # an answer that is being written would be slowed down, and spoil what is measured
        answering[0] = True
        await opened.on("smollm2-360m", "enter")
        await opened.said("smollm2-360m is installed (")

    check(test)

    async def left_out(opened: Opened) -> None:
        await opened.open("other", calibrate=False)
        await opened.on("qwen3-0.6b", "enter")
        await opened.said("qwen3-0.6b is installed (")

    check(left_out)
