"""stem-chat outside the screen: one answer in a pipe, its options and settings, its errors."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from stem_local import api
from stem_local.chat_settings import ChatSettings
from stem_local.config import Config, config_file, from_toml
from stem_local.errors import NotInstalledError
from stem_local.model import Model
from stem_tui import app, cli

from ..local.command import fails
from ..local.fakes import FakeEngine, fake_model, interrupt_after, reopened
from ..runtime.tiny import random_packed, tiny_config

Made = tuple[Model, FakeEngine]


def stem_chat(*args: str, piped: bytes | str = "") -> Result:
    return CliRunner().invoke(cli.main, args, input=piped)


def configure(text: str) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text(text, encoding="utf-8")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return fake_model(tmp_path, reply="Hello there.\x1b[2J")


@pytest.fixture
def asked(made: Made, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What models were loaded and streamed from: every call's arguments."""
    calls: list[dict[str, Any]] = []

    def load(name: object = None, **options: Any) -> Model:
        calls.append({"name": name, **options})
        model = reopened(*made)
        stream = model.stream

        def streamed(prompt: str, **options: Any) -> Any:
            calls.append({"prompt": prompt, **options})
            return stream(prompt, **options)

        monkeypatch.setattr(model, "stream", streamed)
        return model

    monkeypatch.setattr(api, "load", load)
    return calls


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What apps were opened, as on a terminal: every one's arguments and whether it has a mouse."""
    apps: list[dict[str, Any]] = []

    class App:
        return_code = 0

        def __init__(self, config: Config, **options: Any) -> None:
            apps.append({"config": config, **options})

        def run(self, *, mouse: bool) -> None:
            apps[-1]["mouse"] = mouse

    monkeypatch.setattr(app, "ChatApp", App)
    monkeypatch.setattr(cli, "_has_screen", lambda: True)
    return apps


@pytest.mark.usefixtures("asked")
def test_a_question_is_answered_and_nothing_is_saved(home: Path, made: Made) -> None:
    configure("[chat]\ntemperature = 0")
    result = stem_chat("Hi", "--model=tiny")
    assert (result.stdout, result.stderr, result.exit_code) == ("Hello there.\x1b[2J\n", "", 0)
    assert made[1].closed
    assert not (home / "data").exists()


def test_piped_text_follows_the_question_or_is_it(asked: list[dict[str, Any]]) -> None:
    stem_chat("Summarise:", piped="Long\ntext.\n")
    stem_chat(piped="Only this.\n")
    prompts = [call["prompt"] for call in asked if "prompt" in call]
    assert prompts == ["Summarise:\n\nLong\ntext.", "Only this."]


def test_settings_and_options_reach_the_model(asked: list[dict[str, Any]]) -> None:
    configure(
        "model = 'theirs'\nthreads = 1\ncontext = 64\nkv_cache = 'int8'\ndraft = false\n"
        "[chat]\nsystem = 'Be kind.'\nmax_tokens = 3\nsparsity = 'off'\nquality = 0.02\nseed = 5"
    )
    stem_chat("Hi")
    stem_chat("Hi", "--model=mine", "--threads=2", "--context=99", "--system=Be brief.")
    (theirs, first, mine, second) = asked
    same = {"sparsity": "off", "quality": 0.02, "kernels": None}
    same |= {"device": "auto", "gpu_memory": None, "kv_cache": "int8"}
    assert theirs == {"name": "theirs", "threads": 1, "context": 64, **same}
    assert mine == {"name": "mine", "threads": 2, "context": 99, **same}
    chat = ChatSettings(max_tokens=3, sparsity="off", quality=0.02, seed=5).options()
    assert first.items() >= {**chat, "prompt": "Hi", "system": "Be kind.", "draft": False}.items()
    assert second["system"] == "Be brief."
    stem_chat("Hi", "--sparsity=auto")
    assert asked[-1]["sparsity"] == "auto"


@pytest.mark.usefixtures("asked")
def test_no_system_prompt_is_none(asked: list[dict[str, Any]]) -> None:
    stem_chat("Hi")
    assert asked[-1]["system"] is None


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("question", "most", "says"), [("Hi", 3, "max_tokens"), ("x" * 170, 100, "context is full")]
)
def test_an_answer_that_is_cut_off_says_so(question: str, most: int, says: str) -> None:
    configure(f"[chat]\ntemperature = 0\nmax_tokens = {most}")
    result = stem_chat(question)
    assert result.stdout.startswith("Hel")
    assert result.stderr.startswith("(cut off: ")
    assert says in result.stderr
    assert result.exit_code == 0


@pytest.mark.usefixtures("asked")
def test_interrupting_keeps_the_partial_answer(made: Made) -> None:
    interrupt_after(4, *made)
    configure("[chat]\ntemperature = 0")
    result = stem_chat("Hi")
    assert (result.stdout, result.exit_code) == ("Hello \n", 130)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "The prompt is empty"),
        (("  ",), 2, "The prompt is empty"),
        (("one", "two"), 2, "two"),
        (("Hi", "--resume"), 2, "--resume needs a terminal"),
        (("--resume", "Hi"), 2, "not 'Hi'; a question comes before it"),
        (("--resume", "9" * 4400), 2, "too large to be one in the history"),
        (("--sparsity", "Hi"), 2, "takes auto, off or shares"),
        (("--sparsity", "0.99", "Hi"), 2, "0.95"),
        (("--threads=0", "Hi"), 2, "threads must be a whole number from 1"),
        (("--context=1", "Hi"), 2, "context must be"),
        (("--config=none.toml", "Hi"), 2, "none.toml do not exist"),
        (("--nonsense",), 2, "--nonsense"),
        (("Hi", "--model=no-such-model"), 10, "no-such-model"),
        (("Hi", "--model=smollm2-135m"), 10, "stem-local pull smollm2-135m"),
    ],
)
def test_errors_are_one_line_with_a_code(
    args: tuple[str, ...], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(stem_chat(*args), code, says)


def test_wrong_settings_are_told_before_anything_is_loaded(asked: list[dict[str, Any]]) -> None:
    configure("[chat]\ntemprature = 1")
    fails(stem_chat("Hi"), 2, str(config_file()), "did you mean temperature?")
    assert asked == []


def test_without_any_terminal_or_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stem_local.oneshot.piped_input", lambda: None)
    fails(stem_chat(), 2, "no terminal to chat on")


def test_the_settings_in_force_can_be_saved(tmp_path: Path) -> None:
    configure("theme = 'nord'\n[chat]\ntemperature = 0.5")
    result = stem_chat(
        "--print-config", "--model=m", "--private", "--threads=2", "--sparsity=30%", "--system=Hi"
    )
    expected = Config(
        model="m",
        theme="nord",
        private=True,
        threads=2,
        chat=ChatSettings(system="Hi", sparsity=0.3, temperature=0.5),
    )
    assert from_toml(tomllib.loads(result.stdout)) == expected
    file = tmp_path / "saved.toml"
    file.write_text(result.stdout, encoding="utf-8")
    again = stem_chat("--print-config", "--config", str(file), "--no-private")
    assert from_toml(tomllib.loads(again.stdout)).private is False
    assert str(file) in again.stdout


def test_on_a_terminal_the_app_gets_what_was_asked(opened: list[dict[str, Any]]) -> None:
    configure("mouse = false\n[chat]\ntemperature = 0.5")
    assert stem_chat().exit_code == 0
    assert stem_chat("Hi", "--model=m", "--system=S", "--resume=7", "--context=99").exit_code == 0
    assert stem_chat("--resume", "--sparsity=off").exit_code == 0
    assert stem_chat("--private", "caf\udce9").exit_code == 0
    plain, full, latest, private = opened
    chat = ChatSettings(temperature=0.5)
    assert plain == {
        "config": Config(mouse=False, chat=chat),
        "model": None,
        "given": {},
        "resume": None,
        "first": None,
        "mouse": False,
    }
    assert (full["first"], full["model"], full["resume"]) == ("Hi", "m", 7)
    assert full["given"] == {"system": "S"}
    assert (full["config"].context, full["config"].chat.system) == (99, "S")
    assert (latest["resume"], latest["config"].chat.sparsity) == ("latest", "off")
    assert latest["given"] == {"sparsity": "off"}
    assert (private["config"].private, private["first"]) == (True, "caf\ufffd\ufffd\ufffd")


def test_private_chats_have_nothing_to_resume(opened: list[dict[str, Any]]) -> None:
    configure("private = true")
    fails(stem_chat("--resume"), 2, "--no-private")
    assert stem_chat("--resume", "--no-private").exit_code == 0
    assert opened[0]["config"].private is False


def test_the_apps_exit_code_is_the_commands(
    opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.ChatApp, "return_code", 3)
    assert stem_chat().exit_code == 3
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("theme = 'stem-drak'", "did you mean stem-dark?"),
        ("[keys]\n'composer.sned' = 'enter'", "did you mean composer.send?"),
    ],
)
def test_themes_and_bindings_that_there_are_not(
    opened: list[dict[str, Any]], text: str, says: str
) -> None:
    configure(text)
    fails(stem_chat(), 2, says, str(config_file()))
    configure("theme = 'nord'\n[keys]\n'composer.send' = 'ctrl+j'")
    assert stem_chat().exit_code == 0
    assert len(opened) == 1


def test_the_default_model_is_got_when_someone_watches(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled: list[str] = []
    load: Callable[..., Model] = api.load

    def missing(name: object = None, **options: Any) -> Model:
        if not pulled:
            raise NotInstalledError("smollm2-135m is not installed")
        return load(name, **options)

    monkeypatch.setattr(api, "load", missing)
    monkeypatch.setattr("stem_local.hub.pull", lambda spec, **_: pulled.append(spec))
    monkeypatch.setattr("stem_local.oneshot.watched", lambda: True)
    result = stem_chat("Hi")
    assert (pulled, result.exit_code) == (["smollm2-135m"], 0)
    assert "not on this machine yet" in result.stderr
    assert asked[-1]["prompt"] == "Hi"


def test_the_help_has_examples_and_is_found_as_a_module() -> None:
    result = stem_chat("--help")
    assert "Examples:\n    stem-chat\n" in result.stdout
    options = (o for p in cli.main.params if isinstance(p, click.Option) for o in p.opts)
    assert all(option in result.stdout for option in options)
    command = [sys.executable, "-m", "stem_tui", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("stem-chat, version")


def test_answering_in_a_pipe_loads_no_screen(tmp_path: Path) -> None:
    tiny = random_packed(tmp_path / "tiny", tiny_config())
    code = (
        "import sys\n"
        "from stem_tui.cli import main\n"
        "before = [m for m in ('numpy', 'textual', 'rich', 'jinja2') if m in sys.modules]\n"
        f"main(['Hi', '--model', {str(tiny)!r}, '--context=40'], standalone_mode=False)\n"
        "after = [m for m in ('textual', 'rich', 'numba', 'huggingface_hub') if m in sys.modules]\n"
        "print(before, after, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[] []"


@pytest.mark.real_model
def test_the_real_model_answers_through_a_pipe(real_model: Path) -> None:
    configure("[chat]\ntemperature = 0")
    command = [sys.executable, "-m", "stem_tui", "--model", str(real_model)]
    done = subprocess.run(command, input=b"Name the capital of Italy.\n", capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Rome" in done.stdout
