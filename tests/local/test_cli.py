"""The command line: verbs, output for people and programs, errors and exit codes."""

from __future__ import annotations

import errno
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from stem_local import hub as pulling
from stem_local import store, units
from stem_local.cli import VERBS, main
from stem_local.commands import _output, rm
from stem_local.errors import NotInstalledError
from stem_runtime import bandwidth
from stem_runtime.errors import Cancelled
from stem_runtime.formats.packed import open_packed
from stem_runtime.gpu.memory import bytes_needed
from stem_runtime.kernels import DeviceChoice

from ..runtime.files import tiny_gguf
from ..runtime.tiny import random_packed, tiny_config
from .command import fails, stem
from .conftest import GGUF_REPO
from .installing import install

MANAGING = ("pull", "list", "show", "rm", "convert", "doctor")


def test_help_imports_no_verb() -> None:
    code = """
import sys
from stem_local.cli import main
main(["--help"], standalone_mode=False)
heavy = {"numba", "numpy", "llvmlite", "huggingface_hub", "textual", "rich", "tokenizers", "gguf"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
assert not [name for name in sys.modules if name.startswith("stem_local.commands")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb, line in VERBS.items():
        assert f"  {verb}" in done.stdout
        assert line in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = stem(verb, "--help")
    assert result.exit_code == 0
    assert "Examples:\n    stem-local" in result.stdout
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    assert command.help


def test_without_a_verb_the_help_is_shown() -> None:
    result = stem()
    assert result.exit_code == 2
    assert "Verbs:" in result.output


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("nonsense",), 2),
        (("--nonsense",), 2),
        (("list", "--nonsense"), 2),
        (("show",), 2),
        (("rm",), 2),
        (("pull", "a", "b"), 2),
        (("pull", "--quant", "int3"), 2),
        (("pull", "no-such-model"), 2),
        (("pull", "x", "--name", "../y"), 2),
        (("show", "no-such-model"), 10),
        (("rm", "no-such-model", "--yes"), 10),
        (("rm", "../../etc", "--yes"), 2),
        (("show", "~nobody-of-that-name/x"), 2),
        (("pull", "~nobody-of-that-name/x"), 2),
        (("convert", "missing.gguf", "out"), 2),
    ],
)
def test_errors_are_one_line_with_a_code(
    args: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(stem(*args), code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotInstalledError("two\nlines"), 10),
        (PermissionError(13, "Permission denied", "/somewhere"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/somewhere"), 15),
        (RuntimeError("boom"), 70),
    ],
)
def test_whatever_a_verb_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def raises() -> None:
        raise error

    monkeypatch.setattr(store, "installed", raises)
    fails(stem("list"), code)


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEM_DEBUG", "")
    result = stem("--debug", "show", "nothing")
    assert result.exit_code == 10
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Cancelled])
def test_an_interruption_exits_130(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise kind

    monkeypatch.setattr(pulling, "pull", interrupted)
    result = stem("pull")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("name", "args", "code"), [("stdout", ["list"], 0), ("stderr", ["pull", "no-such-model"], 2)]
)
def test_output_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, name: str, args: list[str], code: int
) -> None:
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == code


def test_a_closed_pipe_is_quiet() -> None:
    code = "from stem_local.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "list", "--catalog", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.usefixtures("hub")
def test_pull_list_show_and_remove() -> None:
    result = stem("pull", f"hf:{GGUF_REPO}", "--name", "mine")
    assert (result.exit_code, result.stdout) == (0, "mine\n")
    assert result.stderr.startswith("Getting ")
    assert "\r" not in result.stderr
    (line,) = stem("list").stdout.splitlines()
    assert line.split()[:3] == ["mine", "q4_0", "0M"]
    (about,) = json.loads(stem("list", "--json").stdout)
    assert (about["name"], about["damage"]) == ("mine", None)
    shown = stem("show", "mine").stdout
    assert "Hub, owner/tiny-GGUF@0123456789ab, tiny-Q4_0.gguf" in shown
    assert "silu is never exactly zero" in shown
    known = json.loads(stem("show", "mine", "--json").stdout)
    assert known["config"]["n_layers"] == 2
    assert known["source"]["repo"] == GGUF_REPO
    result = stem("rm", "mine", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Deleted mine\n")
    assert stem("list").stdout == ""


def test_an_empty_list_says_how_to_start() -> None:
    result = stem("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "stem-local pull" in result.stderr
    assert json.loads(stem("list", "--json").stdout) == []


def test_damaged_models_are_listed_and_not_shown() -> None:
    install("good")
    (install("bad").folder / "stem.json").unlink()
    result = stem("list")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["bad", "damaged"],
        ["good", "random"],
    ]
    assert "Pull it again" in result.stderr
    fails(stem("show", "bad"), 3, "stem.json")


def test_the_catalogue() -> None:
    lines = stem("list", "--catalog").stdout.splitlines()
    assert lines[0].split()[0] == "smollm2-135m"
    known = {
        about["name"]: about for about in json.loads(stem("list", "--catalog", "--json").stdout)
    }
    assert len(known) == len(lines)
    assert known["minicpm-s-1b"]["sparsity"] == 0.8789


def test_show_knows_the_published_sparsity() -> None:
    with store.locked("minicpm-s-1b"):
        store.install("minicpm-s-1b", build_minicpm)
    assert "88% of neurons zero" in stem("show", "MiniCPM-S-1B-sft").stdout


def build_minicpm(out: Path) -> None:
    random_packed(out, tiny_config("minicpm", activation="fatrelu"))
    info = json.loads((out / "stem.json").read_text())
    info["source"] = {"spec": "minicpm-s-1b"}
    (out / "stem.json").write_text(json.dumps(info))


def test_removal_asks_or_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    install("tiny")
    fails(stem("rm", "tiny"), 2, "--yes")
    monkeypatch.setattr(rm, "sys", SimpleNamespace(stdin=None))
    fails(stem("rm", "tiny"), 2, "--yes")
    monkeypatch.setattr(rm, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    assert stem("rm", "tiny", stdin="n\n").exit_code == 130
    assert store.find("tiny") is not None
    result = stem("rm", "tiny", stdin="y\n")
    assert result.exit_code == 0
    assert store.find("tiny") is None


def test_removing_several_checks_all_first() -> None:
    install("tiny")
    fails(stem("rm", "tiny", "missing", "--yes"), 10, "missing")
    assert store.find("tiny") is not None


def test_convert_makes_a_folder_that_works(tmp_path: Path) -> None:
    source, out = tmp_path / "m.gguf", tmp_path / "Packed Model"
    tiny_gguf(source, tiny_config())
    result = stem("convert", str(source), str(out))
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    assert "packed-model" in stem("show", str(out)).stdout
    fails(stem("convert", str(source), str(out)), 2, "exists already")
    source.write_bytes(b"GGUF")
    fails(stem("convert", str(source), str(tmp_path / "other")), 3, "m.gguf")
    assert not (tmp_path / "other").exists()


def test_convert_replaces_what_a_killed_one_left(tmp_path: Path) -> None:
    source, out = tmp_path / "m.gguf", tmp_path / "out"
    tiny_gguf(source, tiny_config())
    kill = (
        "import os, sys, stem_runtime.formats.packed as packed\n"
        "packed.PackedWriter.finish = lambda *_: os._exit(9)\n"
        "from stem_local.cli import main; main()"
    )
    command = [sys.executable, "-c", kill, "convert", str(source), str(out)]
    assert subprocess.run(command, check=False).returncode == 9
    assert out.exists()
    assert stem("show", str(out)).exit_code == 10
    assert stem("convert", str(source), str(out)).exit_code == 0
    assert stem("show", str(out)).exit_code == 0


def test_show_verifies_what_is_on_the_disk(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    tiny_gguf(source, tiny_config())
    out = tmp_path / "packed"
    assert stem("convert", source, out).exit_code == 0
    assert "intact" not in json.loads(stem("show", out, "--json").stdout)
    names = ["model.safetensors", "tokenizer.json"]
    assert json.loads(stem("show", out, "--verify", "--json").stdout)["intact"] == names
    assert re.search(
        r"^intact: +model\.saf.*, tokenizer", stem("show", out, "--verify").stdout, re.M
    )
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    assert stem("show", out).exit_code == 0
    fails(stem("show", out, "--verify", "--json"), 3, "not those that were written", "convert")


@pytest.mark.real_model
def test_the_real_model_from_its_file(real_model_gguf: Path) -> None:
    result = stem("pull", str(real_model_gguf), "--name", "real")
    assert (result.exit_code, result.stdout) == (0, "real\n")
    assert stem("list").stdout.split()[:3] == ["real", "q4_1", "135M"]
    known = json.loads(stem("show", "real", "--json").stdout)
    assert known["license"] == "apache-2.0"
    assert known["config"]["vocab_size"] == 49152


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "measure", lambda _: SimpleNamespace(gb_per_second=12.34))
    install("tiny")
    found = json.loads(stem("doctor", "--json").stdout)
    assert found["kernels"]["variant"] in found["kernels"]["missing_for"]
    assert found["memory_bandwidth"]["gb_per_second"] == 12.3
    assert (found["models"][0]["name"], found["models"][0]["damage"]) == ("tiny", None)
    assert found["folders"]["models"]["bytes"] > 60_000
    (store.resolve("tiny") / "profile.safetensors").touch()
    damaged = json.loads(stem("doctor", "--json").stdout)["models"][0]["damage"]
    assert "profile.safetensors: the file is empty" in damaged
    assert "tiny (damaged)" in stem("doctor").stdout
    (store.resolve("tiny") / "profile.safetensors").unlink()
    shown = stem("doctor").stdout
    for word in ("kernels:", "threads:", "12.3 GB/s", "device:", "tiny (", " kB)", "free)"):
        assert word in shown


def test_doctor_tells_what_goes_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "measure", lambda _: SimpleNamespace(gb_per_second=12.34))
    install("tiny")

    def on(choice: DeviceChoice, *options: str) -> str:
        monkeypatch.setattr("stem_runtime.kernels.choose_device", lambda: choice)
        return stem("doctor", *options).stdout

    def with_room(room: int) -> str:
        return on(DeviceChoice("cuda", "triton", "Some Card is there", room))

    shown = with_room(10**9)
    assert "cuda (Some Card is there), 1.0 GB of its memory free" in shown
    assert re.search(r"^tiny: +all 2 layers on the card$", shown, re.MULTILINE)
    found = bytes_needed(open_packed(store.resolve("tiny")), None, 256, layers=range(1, 2))
    assert re.search(
        r"^tiny: +the first 1 of 2 layers on the CPU, the others and the output head on the card; "
        r"all of it takes 0\.001 GB and 0\.001 GB are free there$",
        with_room(found),
        re.MULTILINE,
    )
    assert re.search(r"^tiny: +on the CPU: One layer and the .* take .* of the", with_room(0), re.M)
    on_cpu = json.loads(on(DeviceChoice("cpu", "cpu", "asked for"), "--json"))
    assert on_cpu["models"][0]["placement"] == "all 2 layers on the CPU"


def test_doctor_tells_of_wrong_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_little(_: int) -> None:
        raise MemoryError

    monkeypatch.setattr(bandwidth, "measure", too_little)
    monkeypatch.setenv("STEM_KERNELS", "abacus")
    result = stem("doctor")
    assert result.exit_code == 0
    assert "no kernels called 'abacus'" in result.stdout
    assert "too little" in result.stdout


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_doctor_comes_to_its_end(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    home = tmp_path / "home"
    home.touch()
    monkeypatch.setenv("STEM_HOME", str(home))
    monkeypatch.setattr(bandwidth, "measure", fails)
    monkeypatch.setattr("stem_runtime.kernels.choose_device", fails)
    result = stem("doctor", *options)
    assert result.exit_code == 0
    for trouble in ("Not a folder", "cannot be read: Not a directory", "start new thread"):
        assert trouble in result.stdout
    if options:
        found = json.loads(result.stdout)
        assert found["folders"]["models"] == {"problem": f"Not a folder ({home})"}
        assert "Not a directory" in found["models"]["problem"]
    else:
        for name in ("memory bandwidth", "device", "kernel cache", "settings", "hub", "installed"):
            assert f"\n{name}: " in result.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_draws_over_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    with _output.Bar() as bar:
        bar.note("Getting it.")
        for done in (10, 500_000, 1_000_000):
            bar.update("download", done, 1_000_000)
        bar.update("pack", 5, 5)
    lines = screen.getvalue().split("\n")
    assert lines[0] == "Getting it."
    drawn = lines[1].split("\r")
    assert [text[37:40] for text in drawn[1:]] == ["  0", " 50", "100"]
    assert max(len(text) for text in drawn) < 60
    assert lines[2].startswith("\rPacking")
    assert lines[3:] == [""]


def test_the_bar_is_silent_when_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with _output.Bar() as bar:
        bar.update("download", 1, 2)
    assert screen.getvalue() == ""


def test_tables_have_a_heading_only_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _output.table(("A", "B"), [("1", "22"), ("333", "4")])
    assert capsys.readouterr().out == "1    22\n333  4\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _output.table(("A", "B"), [("1", "22")])
    assert capsys.readouterr().out == "A  B\n1  22\n"


def test_sizes_for_people() -> None:
    assert [units.size(n) for n in (0, 999, 66_211, 98_362_432, 2_480_000_000)] == [
        *("0 B", "999 B", "66 kB", "98 MB", "2.5 GB")
    ]
    assert [units.parameters(n) for n in (134_515_008, 999_885_952)] == ["135M", "1.00B"]


def test_managing_verbs_are_registered() -> None:
    assert set(MANAGING) <= set(VERBS)
