"""stem-local bench"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import cycle, islice
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from stem_runtime.errors import StemError, UsageError

from ._output import as_json as print_json

if TYPE_CHECKING:
    from pathlib import Path

    from ..model import Model
    from ..sparsity import Sparsity

PREFILLS = (128, 512)
START_SECONDS = 600


@click.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--contexts", default="128", metavar="N,N", help="Contexts to decode at (128).")
@click.option("--tokens", default=64, type=click.IntRange(1), help="Tokens per decode run (64).")
@click.option("--repeats", default=5, type=click.IntRange(1), help="Runs per figure (5).")
@click.option("--start/--no-start", default=True, help="Time fresh starts too; cold ones compile.")
@click.option(
    "--sparsity",
    type=click.Choice(["auto", "off"]),
    default="auto",
    help="Measure decoding with what stem-local calibrate learned too (auto).",
)
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.")
@click.option("--kernels", metavar="NAME", help="Kernel variant; see stem-local doctor.")
def command(
    model: str | None,
    as_json: bool,
    contexts: str,
    tokens: int,
    repeats: int,
    start: bool,
    sparsity: Sparsity,
    threads: int | None,
    kernels: str | None,
) -> None:
    """Measure the prefill and decode speed of MODEL, its memory, and its time to start.

    Speeds are medians over several runs and leave sampling out. Memory bandwidth is the ceiling
    of decoding: a token cannot come faster than its weights are read.

    \b
    Examples:
      stem-local bench smollm2-135m
      stem-local bench smollm2-135m --contexts 128,4096 --json
    """
    from ..api import load

    places = parse_contexts(contexts)
    with load(model, threads=threads, kernels=kernels, sparsity=sparsity) as loaded:
        report = measure(loaded, places, tokens, repeats)
        folder = loaded.packed.folder
    if start:
        report["first_token_seconds"] = time_starts(folder, threads, kernels)
    if as_json:
        print_json(report)
    else:
        click.echo(table(report))


def parse_contexts(text: str) -> list[int]:
    try:
        places = [int(part) for part in text.split(",")]
    except ValueError:
        places = []
    if not places or min(places) < 1:
        raise UsageError(f"--contexts takes positive numbers with commas between, not {text!r}.")
    return places


def measure(model: Model, contexts: list[int], tokens: int, repeats: int) -> dict[str, Any]:
    """Speeds, bandwidth and memory of a loaded model, as plain data."""
    from stem_runtime import bandwidth

    from ..calibration import built_in_texts

    engine, longest = model.engine, model.config.context_length
    room = max(contexts) + tokens
    if room > longest:
        raise UsageError(f"{model.name} has a context of {longest} tokens; {room} were asked for.")
    prompts = [count for count in PREFILLS if count <= longest]
    cache = engine.new_cache(max(room, *prompts))
    # real text: how many rows of a sparse head are computed hangs on it
    ids = list(islice(cycle(model.tokenize("".join(built_in_texts()))), cache.capacity + tokens))

    def prefill(count: int) -> float:
        cache.truncate(0)
        start = time.perf_counter()
        engine.prefill(cache, ids[:count])
        return count / (time.perf_counter() - start)

    def decode(context: int, look: bool) -> tuple[float, float]:
        """Tokens per second, and rows of the head computed per token."""
        cache.truncate(context)
        rows = 0
        start = time.perf_counter()
        for token in ids[context : context + tokens]:
            engine.decode(cache, token, look=look)
            rows += engine.last_rows
        return tokens / (time.perf_counter() - start), rows / tokens

    prefill(min(contexts))
    prefills = [
        {"tokens": count, "tokens_per_second": median(prefill(count) for _ in range(repeats))}
        for count in prompts
    ]
    looks = (False,) if model.sparse.head is None else (False, True)
    decodes: list[dict[str, Any]] = []
    for context in contexts:
        prefill(context)
        # in turns, so that whatever else the machine does meets both
        runs = [[decode(context, look) for look in looks] for _ in range(repeats)]
        for look, tries in zip(looks, zip(*runs, strict=True), strict=True):
            speed, rows = median(s for s, _ in tries), tries[0][1]
            reads = engine.weight_bytes_per_token(context + tokens // 2, rows if look else None)
            decodes.append(
                {
                    "context": context,
                    "head": "sparse" if look else "dense",
                    "head_rows": rows,
                    "tokens_per_second": speed,
                    "gb_per_second": speed * reads / 1e9,
                }
            )
    # the peak is read before the bandwidth probe, whose buffer is not the model's doing
    peak = peak_memory()
    ceiling = bandwidth.measure(engine.threads, model.packed.nbytes)
    for row in decodes:
        row["bandwidth_share"] = row["gb_per_second"] / ceiling.gb_per_second
    return {
        "model": model.info.to_dict(),
        "prefill": prefills,
        "decode": decodes,
        "sparsity": model.sparse.reason,
        "memory_gb_per_second": ceiling.gb_per_second,
        "peak_memory_bytes": peak,
    }


def time_starts(folder: Path, threads: int | None, kernels: str | None) -> dict[str, float]:
    """Seconds from starting a process to the first piece of its answer.

    Cold has an empty kernel cache and compiles; warm is the median of three after it.
    """
    with tempfile.TemporaryDirectory(prefix="stem-bench-") as home:
        extra = [f"--threads={threads}"] if threads else []
        extra += [f"--kernels={kernels}"] if kernels else []
        times = [first_token(folder, extra, home) for _ in range(4)]
    return {"cold": times[0], "warm": median(times[1:])}


def first_token(folder: Path, options: list[str], home: str) -> float:
    """Time one fresh `stem-local run` whose caches live under `home`."""
    code = "from stem_local.cli import main; main()"
    fixed = ["--max-tokens=1", "--seed=0"]
    command = [sys.executable, "-c", code, "run", str(folder), "Hi", *fixed, *options]
    environment = {**os.environ, "STEM_HOME": home}
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        limit = threading.Timer(START_SECONDS, process.kill)
        limit.start()
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        _, complaint = process.communicate()
        limit.cancel()
    if process.returncode:
        told = complaint.decode(errors="replace").strip()[-400:]
        raise StemError(f"A fresh start failed with exit code {process.returncode}: {told}")
    return seconds


if sys.platform == "win32":

    def peak_memory() -> int | None:
        """The most memory this process has held, in bytes; None where the system does not tell.

        PeakWorkingSetSize of PROCESS_MEMORY_COUNTERS (psapi.h).
        """
        import ctypes

        class Counters(ctypes.Structure):
            _fields_ = (
                ("cb", ctypes.c_uint32),
                ("page_faults", ctypes.c_uint32),
                ("peak_working_set", ctypes.c_size_t),
                ("others", ctypes.c_size_t * 7),
            )

        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel32 = ctypes.windll.kernel32
        kernel32.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel32.GetCurrentProcess())
        done = kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb)
        return int(counters.peak_working_set) if done else None

else:

    def peak_memory() -> int | None:
        """The most memory this process has held, in bytes; None where the system does not tell."""
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _rows(row: dict[str, Any]) -> str:
    return f", {row['head_rows']:.0f} rows of the head" if row["head"] == "sparse" else ""


def table(report: dict[str, Any]) -> str:
    """The report as aligned lines for a person."""
    model = report["model"]
    lines = [
        f"{model['name']}  {model['parameters'] / 1e6:.0f}M parameters, {model['quant']}, "
        f"{model['nbytes'] / 1e6:.0f} MB; {model['kernels']} on {model['threads']} threads",
        "",
    ]
    lines += [
        f"prefill  {row['tokens']:>6} tokens   {row['tokens_per_second']:>9.1f} tok/s"
        for row in report["prefill"]
    ]
    lines += [
        f"decode   at {row['context']:>6} ctx   {row['tokens_per_second']:>9.1f} tok/s"
        f"  {row['gb_per_second']:>6.1f} GB/s  {row['bandwidth_share']:>4.0%} of memory bandwidth"
        f"{_rows(row)}"
        for row in report["decode"]
    ]
    lines.append(f"sparsity              {report['sparsity']}")
    lines.append(f"memory bandwidth      {report['memory_gb_per_second']:>11.1f} GB/s")
    if report["peak_memory_bytes"] is not None:
        lines.append(f"peak memory           {report['peak_memory_bytes'] / 1e6:>11.1f} MB")
    for kind, seconds in report.get("first_token_seconds", {}).items():
        lines.append(f"first token, {kind:<9}{seconds:>11.2f} s")
    return "\n".join(lines)
