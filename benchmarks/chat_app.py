"""How the chat feels: when it is there, how soon keys show, and what drawing costs the answer.

    python benchmarks/chat_app.py [--model smollm2-135m] [--rounds 5] [--only paint,keys,...]

Writes a Markdown table. The app runs as its users run it, on a terminal of 80 x 24 that is read
and timed here, with the model that is installed; conversations go to a folder that is deleted.
What needs neither terminal nor model (opening 2,000 messages, drawing 10,000 tokens) is measured
in the app without a screen, by the processor time of its one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from terminal import Terminal

from stem_local import store
from stem_local.config import Config
from stem_local.history import History
from stem_runtime import paths

READY = "stops when full"
LONG = "Write a very long story about a lighthouse keeper. Do not stop."
CHAT = [sys.executable, "-m", "stem_tui"]


@contextmanager
def own_home(model: str) -> Iterator[dict[str, str]]:
    """A home with this model and the compiled kernels, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "data" / "models").mkdir(parents=True)
        (home / "cache").mkdir()
        shutil.copytree(store.resolve(model).parent, home / "data" / "models" / model)
        shutil.copytree(paths.cache_dir() / "kernels", home / "cache" / "kernels")
        yield {"STEM_HOME": folder, "HF_HUB_OFFLINE": "1"}


@contextmanager
def chat(environment: dict[str, str], model: str, *options: str) -> Iterator[Terminal]:
    with Terminal([*CHAT, "--model", model, *options], environment) as terminal:
        terminal.wait_for(READY)
        yield terminal


def milliseconds(times: list[float]) -> str:
    middle, worst = statistics.median(times), max(times)
    return f"{1000 * middle:.0f} ms (worst of {len(times)}: {1000 * worst:.0f})"


def first_paint(environment: dict[str, str], model: str, rounds: int) -> list[float]:
    """From the start of the process to the first picture."""
    times = []
    for _ in range(rounds + 1):
        with Terminal([*CHAT, "--model", model], environment) as terminal:
            times.append(terminal.wait_for("Write a message") - terminal.started)
            terminal.wait_for(READY)
    return times[1:]


def textual_import(rounds: int) -> list[float]:
    """Starting Python and importing the toolkit alone, to which first paint adds the rest."""
    command = [sys.executable, "-c", "import textual.app"]
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True)
        times.append(time.perf_counter() - start)
    return times


def keys(environment: dict[str, str], model: str, rounds: int, *, busy: bool) -> list[float]:
    """From a key to its letter on the screen, at rest or at full speed."""
    times = []
    with chat(environment, model, "--private") as terminal:
        if busy:
            terminal.type(f"{LONG}\r")
            terminal.wait_for("▶")
        for _ in range(8 * rounds):
            terminal.watch(0.11)
            sent = terminal.type("ξ")
            times.append(terminal.wait_for("ξ") - sent)
    return times


def escape(
    environment: dict[str, str], model: str, rounds: int, prompt: Path | None
) -> list[float]:
    """From Escape to a stopped answer, while it comes or while a prompt of a file is read."""
    times = []
    for _ in range(rounds):
        with chat(environment, model, "--private") as terminal:
            if prompt is not None:
                terminal.type(f"/read {prompt}\r")
                terminal.wait_for("kB")
            terminal.type(f"{LONG}\r")
            terminal.wait_for("Reading the prompt" if prompt else "▶")
            terminal.watch(0.3)
            sent = terminal.type("\x1b")
            times.append(terminal.wait_for("stopped") - sent)
    return times


def speeds(environment: dict[str, str], model: str, rounds: int) -> tuple[list[float], list[float]]:
    """Decode speed in the app and of `stem-local run`, in turns, tokens per second."""
    question = ["--temperature", "0", "--max-tokens", "400"]
    command = str(Path(sys.executable).with_name("stem-local"))
    run = [command, "run", model, LONG, "--json", *question]
    config = Path(environment["STEM_HOME"]) / "config"
    config.mkdir(exist_ok=True)
    (config / "config.toml").write_text("[chat]\ntemperature = 0\nmax_tokens = 400\n")
    database = Path(environment["STEM_HOME"]) / "data" / "history.db"
    in_app, outside = [], []
    for _ in range(rounds):
        done = subprocess.run(
            run, check=True, capture_output=True, env={**os.environ, **environment}
        )
        outside.append(json.loads(done.stdout)["stats"]["tokens_per_second"])
        with chat(environment, model) as terminal:
            terminal.type(f"{LONG}\r")
            terminal.wait_for("■")
            terminal.watch(0.5)
        history = History.open(database)
        answer = history.get(history.latest() or 0).entries[-1]
        history.close()
        in_app.append((answer.stats or {})["tokens_per_second"])
    (config / "config.toml").unlink()
    return in_app, outside


def headless(measure: Callable[..., object]) -> list[float]:
    """Run the app without a terminal for a measurement on its own thread."""
    from stem_tui.app import ChatApp

    def no_model(*_: object, **__: object) -> None:
        from stem_local.errors import UsageError

        raise UsageError("no model is needed")

    async def session() -> list[float]:
        app = ChatApp(Config(private=True), load=no_model)
        async with app.run_test(size=(80, 24)) as pilot:
            await app.history_opened.wait()
            await pilot.pause()
            return await measure(app, pilot)

    return asyncio.run(session())


TEXT = (
    "The keeper of the lighthouse wrote down **what he saw**, every night, in a book.\n\n"
    "- the *ships* that passed\n- the weather, in `knots` and degrees\n\n"
    "```python\ndef passed(ships: list[str]) -> int:\n    return len(ships)\n```\n\n"
)


async def opening(app: object, pilot: object) -> list[float]:
    """Seconds from opening 2,000 messages to their picture, then processor time of pages up."""
    history = app.chat.history
    conversation = history.create({})
    parent = None
    for number in range(1000):
        parent = history.add(conversation, parent, "user", f"Question {number}?").id
        parent = history.add(conversation, parent, "assistant", TEXT).id
    times = []
    await app.chat.new_chat()
    await pilot.pause()
    start = time.perf_counter()
    await app.chat.open_conversation(conversation)
    await pilot.pause()
    times.append(time.perf_counter() - start)
    app.chat.transcript.focus()
    for _ in range(40):
        # the pilot takes pauses of its own, so only work counts
        start = time.thread_time()
        await pilot.press("pageup")
        times.append(time.thread_time() - start)
    return times


def streaming(text: str) -> Callable[..., object]:
    """Processor time of each update of an answer of 10,000 tokens, four letters each."""

    async def measure(app: object, pilot: object) -> list[float]:
        from stem_local.history import Entry

        transcript = app.chat.transcript
        await transcript.append(Entry(1, None, "assistant", "", 0.0, state="streaming"))
        whole = (text * (40_000 // len(text) + 1))[:40_000]
        times = []
        for start in range(0, len(whole), 80):
            before = time.thread_time()
            await transcript.extend(whole[start : start + 80])
            await pilot.pause()
            times.append(time.thread_time() - before)
        return times

    return measure


def rows(model: str, rounds: int, only: set[str]) -> Iterator[tuple[str, str, str]]:
    """What was measured, the figure, and what it should be."""
    with own_home(model) as environment:
        if "paint" in only:
            yield "first paint", milliseconds(first_paint(environment, model, rounds)), "400 ms"
            yield "importing Textual alone", milliseconds(textual_import(rounds)), ""
        if "keys" in only:
            for busy in (False, True):
                name = f"key to screen, {'answering' if busy else 'at rest'}"
                times = keys(environment, model, rounds, busy=busy)
                yield name, milliseconds(times), "50 ms"
        if "escape" in only:
            prompt = Path(environment["STEM_HOME"]) / "long.txt"
            prompt.write_text("All work and no play makes a dull text to read. " * 500)
            for file in (None, prompt):
                name = f"Escape to stopped, {'reading a prompt' if file else 'answering'}"
                times = escape(environment, model, rounds, file)
                yield name, milliseconds(times), "100 ms"
        if "speed" in only:
            in_app, outside = speeds(environment, model, rounds)
            ratios = [mine / other for mine, other in zip(in_app, outside, strict=True)]
            told = f"{statistics.median(in_app):.0f} of {statistics.median(outside):.0f} tok/s"
            yield "speed, of stem-local run's", f"{statistics.median(ratios):.2f} ({told})", "0.9"
        if "open" in only:
            os.environ.update(environment)
            opened, *pages = headless(opening)
            yield "2,000 messages open", milliseconds([opened]), "500 ms"
            yield "a page up in them, processor time", milliseconds(pages), ""
        if "stream" in only:
            os.environ.update(environment)
            kinds = {
                "paragraphs, lists and code": TEXT,
                "one paragraph": "and then he went on, and on, and ",
                "one block of code": "```python\n" + "x = [1, 2, 3]  # numbers\n" * 1700,
            }
            for kind, text in kinds.items():
                times = headless(streaming(text))
                first, last = (
                    1000 * statistics.median(part) for part in (times[20:120], times[-100:])
                )
                told = f"{first:.1f} ms an update at first, {last:.1f} at the end"
                yield f"10,000 tokens in {kind}", told, "no slower"


PARTS = ("paint", "keys", "escape", "speed", "open", "stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help="some of: " + ", ".join(PARTS))
    given = parser.parse_args()
    print("| | measured | bar |\n|---|---|---|")
    for name, figure, bar in rows(given.model, given.rounds, set(given.only.split(","))):
        print(f"| {name} | {figure} | {bar} |", flush=True)


if __name__ == "__main__":
    main()
