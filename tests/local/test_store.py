"""Installed models: whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stem_local import store
from stem_local.errors import BusyError, NotInstalledError
from stem_runtime.errors import UsageError

from ..runtime.tiny import random_packed, tiny_config
from .installing import install


def leftovers() -> list[str]:
    return [entry.name for entry in store.models_dir().iterdir() if entry.name != ".locks"]


def test_install_find_and_remove() -> None:
    assert store.installed() == []
    model = install("tiny")
    assert model.damage is None
    assert model.size > 60_000
    assert model.info["quant"] == "random"
    assert store.installed() == [model] == [store.find("TINY")]
    assert store.remove("tiny") == model
    assert store.installed() == []
    assert leftovers() == []


def test_replacing_keeps_one_version() -> None:
    first, second = install("tiny", 1), install("tiny", 2)
    assert first.info["weights_sha256"] != second.info["weights_sha256"]
    assert not first.folder.exists()
    assert store.find("tiny") == second
    assert [entry.name for entry in second.folder.parent.iterdir()] == [second.folder.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_build_leaves_the_old_model_and_nothing_else(error: type[BaseException]) -> None:
    old = install("tiny")

    def build(out: Path) -> None:
        random_packed(out, tiny_config())
        raise error

    with pytest.raises(error), store.locked("tiny"):
        store.install("tiny", build)
    assert store.find("tiny") == old
    assert leftovers() == ["tiny"]


def test_a_damaged_build_is_not_installed() -> None:
    old = install("tiny")

    def build(out: Path) -> None:
        random_packed(out, tiny_config())
        (out / "model.safetensors").write_bytes(b"short")

    with pytest.raises(store.StemError), store.locked("tiny"):
        store.install("tiny", build)
    assert store.find("tiny") == old


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "stem.json").unlink(),
        lambda folder: (folder / "stem.json").write_text("{"),
        lambda folder: (folder / "stem.json").write_text("[1]"),
        lambda folder: (folder / "stem.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100),
    ],
)
def test_damaged_models_are_listed_with_the_reason(damage) -> None:
    install("good")
    damage(install("tiny").folder)
    good, tiny = store.installed()
    assert good.damage is None
    assert tiny.damage
    assert tiny.damage.endswith("Pull it again.")
    assert tiny.info == {}
    assert install("tiny").damage is None


@pytest.mark.parametrize("what", ["model", "version"])
def test_models_that_cannot_be_looked_into_are_listed_and_removed(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, tiny = install("good"), install("tiny")
    unreadable = tiny.folder.parent if what == "model" else tiny.folder
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path == unreadable and path.exists():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(store.os, "scandir", refusing)
    found = store.installed()
    assert found[0] == good
    assert (found[1].name, found[1].size, found[1].info) == ("tiny", 0, {})
    assert found[1].damage
    assert found[1].damage.startswith(f"{unreadable} cannot be read (Permission denied); make it")
    assert store.remove("tiny") == found[1]
    assert leftovers() == ["good"]


def test_what_cannot_be_deleted_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    install("tiny")
    monkeypatch.setattr(store.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(BusyError, match=r"trash-tiny-\d+ could not be deleted"):
        store.remove("tiny")
    assert store.find("tiny") is None


def test_other_things_in_the_folder_are_ignored() -> None:
    install("tiny")
    (store.models_dir() / "empty").mkdir()
    (store.models_dir() / "note.txt").touch()
    (store.models_dir() / "tiny" / "junk").mkdir()
    assert [model.name for model in store.installed()] == ["tiny"]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "../x", "CON", "nul.gguf", "com1"])
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        store.check_name(name)


@given(st.text(max_size=100))
def test_accepted_names_are_one_plain_path_part(name: str) -> None:
    try:
        stored = store.check_name(name)
    except UsageError:
        return
    assert Path("x", stored).name == stored
    assert stored == stored.lower()
    assert not stored.startswith(".")
    assert not stored.endswith((".", " "))


def test_resolve_names_aliases_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = install("smollm2-135m")
    for name in (None, "smollm2-135m", "SmolLM2-135M-Instruct"):
        assert store.resolve(name) == model.folder
    packed = random_packed(tmp_path / "packed", tiny_config())
    assert store.resolve(packed) == store.resolve(str(packed)) == packed
    assert store.resolve("./packed") == Path("packed") == store.resolve("packed")


def test_an_installed_name_comes_before_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = install("tiny")
    random_packed(tmp_path / "tiny", tiny_config())
    assert store.resolve("tiny") == model.folder
    assert store.resolve("./tiny") == Path("tiny")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135m", "stem-local pull smollm2-135m"),
        ("qwen3-0.6b", "stem-local pull qwen3-0.6b"),
        ("smolm2-135m", "did you mean smollm2-135m"),
        ("zzzz", "list --catalog"),
        ("hf:a/b", "stem-local pull hf:a/b"),
        ("./nothing", "stem.json"),
    ],
)
def test_what_is_not_installed_says_how_to_get_it(name: str, hint: str) -> None:
    with pytest.raises(NotInstalledError, match=hint):
        store.resolve(name)


def test_an_unpacked_file_says_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(UsageError, match="stem-local convert"):
        store.resolve(tmp_path / "m.gguf")


def test_leftovers_of_a_killed_process_are_swept_but_not_those_of_a_running_one() -> None:
    model = install("a")
    for name in ("a", "a-b", "c"):
        (store.models_dir() / f".staging-{name}-123" / "x").mkdir(parents=True)
    (store.models_dir() / ".trash-gone-5").mkdir()
    with store.locked("c"):
        store.sweep_all()
        assert sorted(leftovers()) == [".staging-c-123", "a"]
    store.sweep_all()
    assert leftovers() == ["a"]
    assert store.find("a") == model


def test_other_things_in_the_folder_are_no_models() -> None:
    model = install("tiny")
    for name in ("My notes", "Tiny", ".git", "con"):
        (store.models_dir() / name / "1").mkdir(parents=True)
    (store.models_dir() / "file").touch()
    assert store.installed() == [model]


def test_removal_refuses_while_a_pull_runs() -> None:
    install("tiny")
    with store.locked("tiny"), pytest.raises(BusyError):
        store.remove("tiny")
    with pytest.raises(NotInstalledError):
        store.remove("other")


def test_a_lock_dies_with_its_process() -> None:
    hold = "import os; from stem_local import store\nwith store.locked('tiny'): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", hold], check=False).returncode == 9
    with store.locked("tiny"):
        pass


def test_waiting_is_told_once() -> None:
    hold = (
        "import sys; from stem_local import store\n"
        "with store.locked('tiny'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin and other.stdout
        other.stdout.readline()
        told: list[str] = []

        def waiting() -> None:
            told.append("waiting")
            assert other.stdin
            other.stdin.close()

        with store.locked("tiny", waiting):
            assert told == ["waiting"]
