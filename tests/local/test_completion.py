"""Shell completion: the scripts, and what they are answered with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.shell_completion import BashComplete, ZshComplete

from stem_local import store
from stem_local.cli import VERBS, main
from stem_local.commands.completion import COMMANDS

from .command import stem

Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What bash is offered for the last word of a line."""

    def offered(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - (not line.endswith(" "))))
        return BashComplete(main, {}, "stem-local", "X").complete().splitlines()

    return offered


@pytest.fixture
def installed() -> None:
    for name in ("tiny-one", "tiny-two", "other"):
        (store.models_dir() / name / "1").mkdir(parents=True)
    (store.models_dir() / "half-removed").mkdir()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_covers_both_commands(shell: str) -> None:
    result = stem("completion", shell)
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"_{name.upper().replace('-', '_')}_COMPLETE={shell}_complete" in result.stdout
        assert f"_{name.replace('-', '_')}_completion" in result.stdout


def test_other_shells_are_refused() -> None:
    result = stem("completion", "tcsh")
    assert result.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in result.stderr


def test_verbs_and_options(complete: Complete) -> None:
    assert complete("stem-local ") == [f"plain,{verb}" for verb in VERBS]
    assert complete("stem-local c") == ["plain,convert", "plain,calibrate", "plain,completion"]
    assert "plain,--temperature" in complete("stem-local run tiny --te")
    assert complete("stem-local completion z") == ["plain,zsh"]
    assert complete("stem-local nonsense sh") == ["plain,show"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("verb", ["run", "show", "rm", "calibrate", "bench", "eval"])
def test_installed_models(complete: Complete, verb: str) -> None:
    assert complete(f"stem-local {verb} ") == ["plain,other", "plain,tiny-one", "plain,tiny-two"]
    assert complete(f"stem-local {verb} TINY-t") == ["plain,tiny-two"]
    assert complete(f"stem-local {verb} ./m") == ["dir,./m"]


@pytest.mark.usefixtures("installed")
def test_several_models_can_be_removed(complete: Complete) -> None:
    assert complete("stem-local rm other tiny-o") == ["plain,tiny-one"]


def test_known_models_with_their_size_and_licence(
    complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete("stem-local pull smollm2-13") == ["plain,smollm2-135m"]
    assert complete("stem-local pull ~/m") == ["file,~/m"]
    monkeypatch.setenv("COMP_WORDS", "stem-local pull smollm2-13")
    monkeypatch.setenv("COMP_CWORD", "2")
    _, name, about = ZshComplete(main, {}, "stem-local", "X").complete().splitlines()
    assert (name, about.endswith(" MB · apache-2.0")) == ("smollm2-135m", True)


def test_names_are_listed_before_anything_is_installed() -> None:
    assert store.names() == []


def test_completing_a_verb_loads_no_verb() -> None:
    code = (
        "import sys; from stem_local.cli import main\n"
        "try: main(prog_name='stem-local')\n"
        "finally: print([m for m in sys.modules if m in ('numpy', 'textual', 'rich') "
        "or m.startswith('stem_local.commands')], file=sys.stderr)"
    )
    asked = {"COMP_WORDS": "stem-local sh", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked, "_STEM_LOCAL_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr.strip(), done.returncode) == ("plain,show\n", "[]", 0)
