"""Speed, start and memory beside llama.cpp, on the same files, threads and tokens.

    python benchmarks/vs_llamacpp.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --llama-python PYTHON

The Q4_0 file is made from the given one by llama.cpp's own quantizer; the large model has the shape
of Llama-3.2-1B and random weights. The two engines take turns, one at work while the other sleeps,
and the medians of the rounds are compared. Prints a Markdown table. docs/performance.md says how to
build llama.cpp for this.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE

import answers
import make_random_gguf
import peak_memory
from llama_client import Llama
from questions import QUESTIONS, tasks
from sides import CalibratedSide, LlamaSide, Side, StemSide, packed_copy

from stem_runtime import bandwidth
from stem_runtime.engine import Engine
from stem_runtime.formats.packed import open_packed
from stem_runtime.tokenizer import Tokenizer

PROMPT = 32
DECODED = 128
PREFILLED = 512
SHORT, LONG, AFTER = 128, 4096, 64
ANSWERED = 2048  # positions that a question and its answer have room in
VOCABULARY = 49152  # of both models
MB = 1e6


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `bar` is what the project holds itself to."""

    what: str
    llama: str
    stem: str
    ratio: str
    bar: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every row needs: both engines, the two models, how often to repeat."""

    llama: LlamaSide
    stem: StemSide
    small: Path
    large: Path
    rounds: int
    threads: int

    @contextmanager
    def opened(self, gguf: Path, context: int) -> Iterator[tuple[Side, ...]]:
        """Both engines, ready with `gguf`."""
        sides = (self.llama, self.stem)
        for side in sides:
            side.open(gguf, context)
        yield sides
        for side in sides:
            side.close()

    def medians(self, sides: tuple[Side, ...], work: Callable[[Side], float]) -> list[float]:
        """Median of `work` on each engine, in turns, after one unmeasured turn."""
        times = [[work(side) for side in sides] for _ in range(self.rounds + 1)]
        return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def tokens(count: int) -> list[int]:
    """Tokens that stand for any text; the first ids are special."""
    rng = random.Random(0)
    return [rng.randrange(32, VOCABULARY) for _ in range(count)]


def decode_row(bench: Bench, gguf: Path, name: str, bar: float) -> Row:
    with bench.opened(gguf, PROMPT + DECODED) as sides:
        for side in sides:
            side.prefill(tokens(PROMPT))
        theirs, ours = bench.medians(sides, lambda side: side.decode(tokens(DECODED), PROMPT))
        bytes_read = bench.stem.engine.weight_bytes_per_token(PROMPT + DECODED // 2)
    speed = bytes_read * DECODED / ours / 1e9
    ceiling = bandwidth.measure(bench.threads, bytes_read).gb_per_second
    return Row(
        f"decode, {name}",
        f"{DECODED / theirs:.1f} tok/s",
        f"{DECODED / ours:.1f} tok/s",
        f"{theirs / ours:.2f}x",
        f"{bar}x",
        f"{speed:.1f} GB/s, {speed / ceiling:.0%} of what memory gives",
    )


def calibrated_row(bench: Bench, gguf: Path, name: str) -> Row:
    """Decode of real text as a calibrated model does by itself, beside dense decode of the same."""
    folder = packed_copy(gguf)
    info = open_packed(folder).info["tokenizer"]
    text = Tokenizer.from_file(folder / "tokenizer.json", info).encode(argparse.__doc__ or "")[
        : PROMPT + DECODED
    ]
    calibrated = CalibratedSide(bench.threads)
    sides = (bench.llama, bench.stem, calibrated)
    for side in sides:
        side.open(gguf, PROMPT + DECODED)
        side.prefill(text[:PROMPT])
    theirs, dense, ours = bench.medians(sides, lambda side: side.decode(text[PROMPT:], PROMPT))
    for side in sides:
        side.close()
    return Row(
        f"decode as calibrated, {name}",
        f"{DECODED / theirs:.1f} tok/s",
        f"{DECODED / ours:.1f} tok/s",
        f"{theirs / ours:.2f}x",
        "",
        f"{dense / ours:.2f}x dense; {calibrated.reason}",
    )


def answer_rows(bench: Bench, gguf: Path, name: str) -> Iterator[Row]:
    """Answers as a calibrated model gives them by itself, drafts included."""
    calibrated = CalibratedSide(bench.threads)
    for side in (bench.llama, calibrated):
        side.open(gguf, ANSWERED)
    model = calibrated.loaded
    for what, asked in (("20 questions", QUESTIONS), ("6 texts to shorten or correct", tasks())):
        found = answers.measure(model, bench.llama, asked, bench.rounds)
        yield Row(
            f"answers to {what}, {name}",
            f"{found.llama:.1f} tok/s",
            f"{found.drafted:.1f} tok/s",
            f"{found.drafted / found.llama:.2f}x",
            "",
            f"{found.per_step:.2f} tokens a step, "
            f"{found.drafted / found.plain:.2f}x without drafts, "
            f"{found.agreed:.0%} of the recorded tokens its own choice",
        )
    for side in (bench.llama, calibrated):
        side.close()


def prefill_row(bench: Bench, gguf: Path, name: str, bar: float) -> Row:
    with bench.opened(gguf, PREFILLED + 1) as sides:
        theirs, ours = bench.medians(sides, lambda side: side.prefill(tokens(PREFILLED)))
    return Row(
        f"prefill of {PREFILLED}, {name}",
        f"{PREFILLED / theirs:.0f} tok/s",
        f"{PREFILLED / ours:.0f} tok/s",
        f"{theirs / ours:.2f}x",
        f"{bar}x",
    )


def context_rows(bench: Bench, gguf: Path, name: str) -> Iterator[Row]:
    """Decode far into the context as a share of decode near its start, on both kinds of cache."""
    narrow = StemSide(bench.threads, "int8")
    narrow.open(gguf, LONG + AFTER)
    with bench.opened(gguf, LONG + AFTER) as opened:
        sides = (*opened, narrow)
        for side in sides:
            side.prefill(tokens(LONG))
        far = bench.medians(sides, lambda side: side.decode(tokens(AFTER), LONG))
        near = bench.medians(sides, lambda side: side.decode(tokens(AFTER), SHORT))
        engines = (bench.stem.engine, narrow.engine)
        limits = [
            reading_time(bench, engine, SHORT) / reading_time(bench, engine, LONG)
            for engine in engines
        ]
    narrow.close()
    theirs, *ours = (n / f for n, f in zip(near, far, strict=True))
    for at, (kind, share) in enumerate(zip(("fp16", "int8"), ours, strict=True), 1):
        yield Row(
            f"decode at {LONG} against at {SHORT}, {name}, {kind} KV cache",
            f"{theirs:.2f}",
            f"{share:.2f}",
            "",
            "0.6",
            f"{AFTER / far[at]:.0f} and {AFTER / near[at]:.0f} tok/s, "
            f"{limits[at - 1]:.2f} if both took as long as memory does",
        )


def reading_time(bench: Bench, engine: Engine, context: int) -> float:
    """Seconds in which memory gives what a token reads after `context` others.

    More bytes come more slowly, too, where part of them stays in a cache that others share.
    """
    read = engine.weight_bytes_per_token(context + AFTER // 2)
    return read / bandwidth.measure(bench.threads, read).gb_per_second


def start_row(bench: Bench) -> Row:
    """Process start to first byte of the answer, with everything cached."""
    command = [str(Path(sys.executable).with_name("stem-local")), "run"]
    command += [str(packed_copy(bench.small)), "Say hello.", "--max-tokens", "8"]

    def first_byte() -> float:
        start = time.perf_counter()
        with subprocess.Popen(command, stdin=DEVNULL, stdout=PIPE, bufsize=0) as process:
            assert process.stdout
            process.stdout.read(1)
            seconds = time.perf_counter() - start
            process.stdout.read()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}.")
        return seconds

    first_byte()
    seconds = statistics.median(first_byte() for _ in range(bench.rounds))
    return Row("warm start of `stem-local run` to first token", "", f"{seconds:.2f} s", "", "1.5 s")


def memory_row(bench: Bench) -> Row:
    command = [sys.executable, peak_memory.__file__, str(packed_copy(bench.small))]
    command += ["--context", str(LONG), "--threads", str(bench.threads)]
    output = subprocess.run(command, check=True, stdout=PIPE, text=True).stdout
    figures = json.loads(output)
    return Row(
        f"peak memory beyond packed weights and KV of {LONG} tokens",
        "",
        f"{figures['rest'] / MB:.0f} MB",
        "",
        "250 MB",
        f"{figures['peak'] / MB:.0f} = {figures['weights'] / MB:.0f} + {figures['kv'] / MB:.0f} "
        f"+ {figures['rest'] / MB:.0f} MB",
    )


SMALL, LARGE = "SmolLM2-135M Q4_0", "Llama-3.2-1B shape Q4_0"
ROWS: dict[str, Callable[[Bench], Iterable[Row]]] = {
    "decode": lambda bench: [decode_row(bench, bench.small, SMALL, 3.0)],
    "calibrated": lambda bench: [calibrated_row(bench, bench.small, SMALL)],
    "answers": lambda bench: answer_rows(bench, bench.small, SMALL),
    "prefill": lambda bench: [prefill_row(bench, bench.small, SMALL, 1.6)],
    "decode-1b": lambda bench: [decode_row(bench, bench.large, LARGE, 1.5)],
    "prefill-1b": lambda bench: [prefill_row(bench, bench.large, LARGE, 1.5)],
    "context": lambda bench: context_rows(bench, bench.small, SMALL),
    "context-1b": lambda bench: context_rows(bench, bench.large, LARGE),
    "start": lambda bench: [start_row(bench)],
    "memory": lambda bench: [memory_row(bench)],
}


def warn_of_company() -> None:
    """Two threads that wait for each other at barriers suffer badly from a third."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5:
        print(
            f"Others are using this machine (load {busy:.1f}): the figures will not hold.\n",
            file=sys.stderr,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--llama-python", required=True, help="interpreter with llama-cpp-python")
    parser.add_argument("--work", type=Path, help="where made files go (default: beside --gguf)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()

    work = args.work or args.gguf.parent
    small = work / "SmolLM2-135M-Instruct.Q4_0.gguf"
    large = work / "random-llama-1b.Q4_0.gguf"
    make_random_gguf.make(args.gguf, large)
    with Llama(args.llama_python) as llama:
        llama.quantize(args.gguf, small)
        warn_of_company()
        sides = LlamaSide(llama, args.threads), StemSide(args.threads)
        bench = Bench(*sides, small, large, args.rounds, args.threads)
        print(f"{args.threads} threads, medians of {args.rounds} rounds\n")
        print("| | llama.cpp | STEM Local | ratio | bar | |\n|---|---|---|---|---|---|")
        for name in args.only:
            for row in ROWS[name](bench):
                cells = (row.what, row.llama, row.stem, row.ratio, row.bar, row.note)
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
