from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stem_local import api, cli, hub, oneshot, terminal
from stem_local.commands import run
from stem_local.errors import NotInstalledError
from stem_local.model import Model
from stem_runtime.errors import Cancelled, KernelError
from tests.local.fakes import FakeEngine, fake_model, interrupt_after, reopened
from tests.runtime.tiny import random_packed, tiny_config

Made = tuple[Model, FakeEngine]
Invoke = Callable[..., Result]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return fake_model(tmp_path, reply="Hello there.\x1b[2J")


@pytest.fixture
def invoke(made: Made, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs the verb on the fake model, greedily."""
    asked: list[dict[str, Any]] = []

    def load(name: object = None, **options: Any) -> Model:
        asked.append({"name": name, **options})
        return reopened(*made)

    monkeypatch.setattr(api, "load", load)

    def call(*args: str, piped: bytes | str = b"") -> Result:
        asked.clear()
        result = CliRunner().invoke(run.command, [*args, "--temperature=0"], input=piped)
        result.asked = asked  # type: ignore[attr-defined]
        return result

    return call


def prompt_tokens(result: Result) -> int:
    return int(json.loads(result.stdout)["stats"]["prompt_tokens"])


def test_an_answer_is_streamed_and_ends_in_a_newline(invoke: Invoke, made: Made) -> None:
    result = invoke("tiny", "Hi")
    assert (result.stdout, result.stderr, result.exit_code) == ("Hello there.\x1b[2J\n", "", 0)
    assert made[1].closed


def test_json(invoke: Invoke) -> None:
    result = invoke("tiny", "Hi", "--json", "--max-tokens=5")
    fields = json.loads(result.stdout)
    assert (fields["text"], fields["finish_reason"]) == ("Hello", "length")
    assert len(fields["tokens"]) == 5
    assert fields["stats"]["completion_tokens"] == 5
    assert result.stdout.count("\n") == 1


def test_stats_go_to_standard_error(invoke: Invoke) -> None:
    result = invoke("tiny", "Hi", "--stats")
    assert "tok/s" in result.stderr
    assert "tok/s" not in result.stdout


def test_piped_text_is_the_prompt_or_follows_it() -> None:
    assert oneshot.full_prompt(None, "piped\n") == "piped"
    assert oneshot.full_prompt("Sum up:", "piped\r\n") == "Sum up:\n\npiped"
    assert oneshot.full_prompt("Sum up:", "") == oneshot.full_prompt("Sum up:", None) == "Sum up:"
    assert oneshot.full_prompt(None, None) is None
    assert oneshot.full_prompt("caf\udce9 ä", None) == "caf\ufffd\ufffd\ufffd ä"


def test_pipes_reach_the_model(invoke: Invoke) -> None:
    given = prompt_tokens(invoke("tiny", "a\n\nb", "--json"))
    assert given == prompt_tokens(invoke("tiny", "a", "--json", piped="b\n"))
    assert given == prompt_tokens(invoke("--json", piped="a\n\nb"))
    assert prompt_tokens(invoke("tiny", "--json", piped=b"\xff")) > 0


@pytest.mark.parametrize("args", [("tiny",), ("tiny", "  "), ()])
def test_an_empty_prompt_is_refused(invoke: Invoke, args: tuple[str, ...]) -> None:
    result = invoke(*args, piped="\n")
    assert "empty" in str(result.exception)


def test_input_without_end_is_refused(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oneshot, "MAX_INPUT", 10)
    assert "Standard input is over" in str(invoke("tiny", piped="x" * 11).exception)


def test_flags_reach_the_generation(invoke: Invoke) -> None:
    result = invoke("tiny", "Hi", "--stop= th", "--stop=ll", "--seed=3", "--threads=2")
    assert result.stdout == "He\n"
    result = invoke(
        "tiny", "Hi", "--context=99", "--kernels=portable", "--gpu-memory=5.5", "--kv-cache=int8"
    )
    assert result.asked[0]["name"] == "tiny"  # type: ignore[attr-defined]
    options = {"gpu_memory": 5.5, "context": 99, "kernels": "portable", "kv_cache": "int8"}
    assert result.asked[0].items() >= options.items()  # type: ignore[attr-defined]


def test_drafts_are_switched_off(invoke: Invoke) -> None:
    question = "Hello there. Hello there."
    for flags, drafts in (((), True), (("--draft",), True), (("--no-draft",), False)):
        fields = json.loads(invoke("tiny", question, "--json", *flags).stdout)
        assert fields["text"].startswith("Hello there.")
        assert (fields["stats"]["drafted_tokens"] > 0) == drafts


def test_raw_and_system(invoke: Invoke) -> None:
    assert prompt_tokens(invoke("tiny", "Hi", "--json", "--system=Be kind.")) > prompt_tokens(
        invoke("tiny", "Hi", "--json")
    )
    assert prompt_tokens(invoke("tiny", "Hi", "--json", "--raw", "--max-tokens=1")) == 2


def test_bad_flags_are_told_in_one_line() -> None:
    result = CliRunner().invoke(cli.main, ["run", "tiny", "Hi", "--max-tokens=many"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "many" in result.stderr
    assert result.stderr.count("\n") == 1


def test_interrupting_keeps_the_partial_answer(invoke: Invoke, made: Made) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt_after(4, *made)
    result = invoke("tiny", "Hi")
    assert (result.stdout, result.exit_code) == ("Hello \n", 130)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_fails_after_an_interrupt_is_the_interrupt(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the compiler of the kernels does: it is a process that gets the key as well."""

    def fails(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        raise KernelError("The kernels could not be compiled.")

    for module in (run, terminal):
        monkeypatch.setattr(module, "print_answer", fails)
    result = invoke("tiny", "Hi")
    assert isinstance(result.exception, Cancelled)
    assert chat(invoke, monkeypatch, "Hi", "/exit").stderr.endswith("\ninterrupted\n")


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), terminal.interruptible() as event:
        signal.raise_signal(signal.SIGINT)
        assert event.is_set()
        signal.raise_signal(signal.SIGINT)


def chat(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, *lines: str, args: str = "") -> Result:
    monkeypatch.setattr(run, "piped_input", lambda: None)
    return invoke("tiny", *args.split(), piped="".join(f"{line}\n" for line in lines))


def test_lines_are_answered_until_the_end(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    result = chat(invoke, monkeypatch, "One", "", "/help", "Two", "/clear", "/what", "Three")
    assert result.exit_code == 0
    assert result.stdout.count("Hello there.") == 3
    assert "Ctrl-C" in result.stderr
    assert "forgotten" in result.stderr
    assert "no command /what" in result.stderr


def test_exit_leaves(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    result = chat(invoke, monkeypatch, "One", "/exit", "Two", args="--stats")
    assert result.stdout.count("Hello there.") == 1
    assert result.stderr.count("first token after") == 1


def test_an_error_in_a_turn_does_not_end_the_chat(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = chat(invoke, monkeypatch, "x" * 300, "One")
    assert "holds 200" in result.stderr
    assert result.stdout.count("Hello there.") == 1


def test_a_full_context_is_told(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    result = chat(invoke, monkeypatch, "x" * 170)
    assert "the context is full" in result.stderr
    policy = "--context-policy=drop_oldest"
    result = chat(invoke, monkeypatch, "x" * 60, "y" * 60, "z" * 60, args=policy)
    assert "oldest turns" in result.stderr


@pytest.mark.parametrize("flag", ["--json", "--raw"])
def test_a_chat_has_no_json_and_no_raw(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    assert "need a prompt" in str(chat(invoke, monkeypatch, args=flag).exception)


def test_a_chat_needs_input(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "sys", SimpleNamespace(stdin=None))
    assert "no input to chat with" in str(chat(invoke, monkeypatch).exception)


def test_a_model_cannot_take_over_the_terminal() -> None:
    assert terminal.printable("a\x1b[31m\r\x07\x9b\tb\n") == "a[31m\tb\n"


def test_the_default_model_is_fetched_when_someone_watches(
    invoke: Invoke, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled: list[str] = []

    def load(name: object = None, **options: Any) -> Model:
        del options
        if not pulled:
            raise NotInstalledError(f"{name} is not installed")
        return made[0]

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(hub, "pull", lambda spec, **_: pulled.append(spec))
    assert isinstance(invoke(piped="Hi").exception, NotInstalledError)
    assert pulled == []
    monkeypatch.setattr(oneshot, "watched", lambda: True)
    assert isinstance(invoke("qwen3-0.6b", "Hi").exception, NotInstalledError)
    result = invoke(piped="Hi")
    assert pulled == ["smollm2-135m"]
    assert "not on this machine yet" in result.stderr
    assert "Hello" in result.stdout


def stem_local(*args: str, **options: Any) -> subprocess.Popen[bytes]:
    code = "from stem_local.cli import main; main()"
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, **options
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_packed(tmp_path_factory.mktemp("run") / "tiny", tiny_config())


def test_a_pipe_through_a_real_process(tiny: Path) -> None:
    with stem_local("run", str(tiny), "--json", "--seed=1", "--max-tokens=8") as process:
        out, err = process.communicate("Grüße".encode())
    assert (process.returncode, err) == (0, b"")
    fields = json.loads(out)
    assert fields["stats"]["completion_tokens"] == len(fields["tokens"]) > 0


def test_a_reader_that_goes_away_ends_the_run_quietly(tiny: Path) -> None:
    with stem_local("run", str(tiny), "Hi", "--seed=1", "--max-tokens=200") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdin is not None
        process.stdin.close()
        process.stdout.read(1)
        process.stdout.close()
        complaint = process.stderr.read()
    assert complaint == b""
    assert process.returncode != 0


def test_running_imports_nothing_it_does_not_use(tiny: Path) -> None:
    code = (
        "import sys; from stem_local.cli import main; "
        f"main(['run', {str(tiny)!r}, 'Hi', '--max-tokens=2'], standalone_mode=False); "
        "print([m for m in ('numba', 'huggingface_hub', 'textual', 'requests', 'rich', 'gguf') "
        "if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, stdin=subprocess.DEVNULL
    )
    assert result.stderr.decode().strip() == "[]"


@pytest.mark.real_model
def test_the_real_model_answers(real_model: Path) -> None:
    question = "Name the capital of Italy."
    with stem_local("run", str(real_model), question, "--temperature=0") as process:
        out, err = process.communicate(b"")
    assert (process.returncode, err) == (0, b"")
    assert b"Rome" in out


@pytest.mark.real_model
def test_the_real_model_answers_through_a_pipe(real_model: Path) -> None:
    with stem_local("run", str(real_model), "--json", "--temperature=0") as process:
        out, _ = process.communicate(b"Name the capital of Italy.\n")
    fields = json.loads(out)
    assert "Rome" in fields["text"]
    assert fields["finish_reason"] == "stop"
