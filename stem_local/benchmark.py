"""How fast a loaded model is on this machine: prefill, decode, memory, fresh starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from stem_runtime.errors import StemError

from .sparsity import DENSE
from .turns import check_room, decode_in_turns, real_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from .model import Model

PREFILLS = (128, 512)
START_SECONDS = 600


def measure(model: Model, contexts: list[int], tokens: int, repeats: int) -> dict[str, Any]:
    """Speeds, bandwidth and memory of a loaded model, as plain data."""
    from stem_runtime import bandwidth

    room = max(contexts) + tokens
    check_room(model, room)
    prompts = [count for count in PREFILLS if count <= model.config.context_length]
    cache = model.engine.new_cache(max(room, *prompts))
    ids = real_tokens(model, cache.capacity + tokens)

    def prefill(count: int) -> float:
        cache.truncate(0)
        start = time.perf_counter()
        with model.engine_lock:
            model.engine.prefill(cache, ids[:count])
        return count / (time.perf_counter() - start)

    prefill(min(contexts))
    prefills = [
        {"tokens": count, "tokens_per_second": median(prefill(count) for _ in range(repeats))}
        for count in prompts
    ]
    auto = model.choose()
    choices = {"off": DENSE}
    if auto.look or auto.plan is not None:
        choices[str(model.sparsity)] = auto
    decodes: list[dict[str, Any]] = []
    for context in contexts:
        prefill(context)
        part = ids[: context + tokens]
        runs = decode_in_turns(model, list(choices.values()), cache, part, context, repeats)
        decodes += [
            {"context": context, "sparsity": name, **run.to_dict()}
            for name, run in zip(choices, runs, strict=True)
        ]
    # the peak is read before the bandwidth probe, whose buffer is not the model's doing
    peak = peak_memory()
    ceiling = bandwidth.measure(model.engine.threads, model.packed.nbytes)
    for row in decodes:
        row["bandwidth_share"] = row["gb_per_second"] / ceiling.gb_per_second
    return {
        "model": model.info.to_dict(),
        "prefill": prefills,
        "decode": decodes,
        "sparsity": auto.reason,
        "memory_gb_per_second": ceiling.gb_per_second,
        "peak_memory_bytes": peak,
    }


def time_starts(folder: Path, threads: int | None, kernels: str | None) -> dict[str, float]:
    """Seconds from starting a process to the first piece of its answer.

    Cold has an empty kernel cache and compiles; warm is the median of three after it.
    """
    with tempfile.TemporaryDirectory(prefix="stem-bench-", ignore_cleanup_errors=True) as home:
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
