"""How much of a calibrated model is in memory while it decodes, from a cold start.

    python benchmarks/resident.py PACKED_FOLDER [--setting resampled] [--look] [--warm]

The prompt is read first, which takes all weights. Then the files' pages are dropped, from the maps
and from the system's cache, and the maps are told not to read ahead, so that only what decoding
touches is resident. With --warm they are not: what the prompt touched is there until the engine
gives it back, and the system maps what lies around a page that is touched.

After every token that is added up: the files' pages that are mapped, and the copies of candidates'
records, which are in no file. Prints it beside the packed model's size, which is without the
profile, where the neurons have copies of their own. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import time
from pathlib import Path
from statistics import median

from stem_local import load
from stem_local.ablation import workloads
from stem_local.decoding import Decoding
from stem_local.sparsity import Choice

_DONTNEED, _RANDOM = 4, 1


def maps_of(folder: Path) -> list[tuple[int, int]]:
    """Addresses [start, end) of the maps of a folder's files."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, path = line.split(maxsplit=5)
        if path.startswith(f"{folder}/"):
            start, end = (int(part, 16) for part in place.split("-"))
            found.append((start, end))
    return found


def drop(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in maps_of(folder):
        for advice in (_RANDOM, _DONTNEED):
            if libc.madvise(start, end - start, advice):
                raise OSError(ctypes.get_errno(), "madvise failed")
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(folder: Path) -> dict[str, int]:
    """Bytes of every file of a folder that are mapped and in memory."""
    sizes: dict[str, int] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            parts = line.split(maxsplit=5)
            name = parts[5] if len(parts) == 6 else ""
        elif line.startswith("Rss:") and name.startswith(f"{folder}/"):
            base = Path(name).name
            sizes[base] = sizes.get(base, 0) + 1024 * int(line.split()[1])
    return sizes


def anonymous() -> int:
    """Bytes of this process that are in no file, whatever they are for."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def tell(when: str, sizes: dict[str, int], packed: int) -> None:
    total = sum(sizes.values())
    parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items())
    print(f"{when}: {total / 1e6:.1f} MB, {total / packed:.1%} of the packed weights ({parts})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--setting", default="resampled", help="a calibrated setting, or dense")
    parser.add_argument("--look", action="store_true", help="with the sparse head as well")
    parser.add_argument("--warm", action="store_true", help="drop nothing after the prompt")
    parser.add_argument("--text", default="prose", choices=sorted(workloads()))
    parser.add_argument("--prompt", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    folder = options.folder.resolve()
    with load(folder) as model:
        ffn, packed = model.calibrated.ffn, model.packed.nbytes
        settings = {} if ffn is None else {setting.name: setting for setting in ffn.settings}
        plan = None if options.setting == "dense" else settings[options.setting].plan
        tokens = model.tokenize(workloads()[options.text])[: options.prompt + options.tokens]
        cache = model.engine.new_cache(len(tokens))
        decoding = Decoding(model, Choice(options.look, plan, options.setting), cache)
        decoding.prefill(tokens[: options.prompt])
        if not options.warm:
            drop(folder)
        before, own = sum(resident(folder).values()), anonymous()
        found, times = [], []
        for token in tokens[options.prompt :]:
            began = time.perf_counter()
            decoding.step(token)
            times.append(time.perf_counter() - began)
            arena = 0 if plan is None else model.engine.arena_bytes
            found.append({**resident(folder), "arena": arena})
        own = anonymous() - own
        peak = max(range(len(found)), key=lambda place: sum(found[place].values()))
        cost = decoding.cost(len(tokens))
        resampler = model.resamplers.get(cache, ((), None))[1]
        account = decoding.account
    print(f"packed weights {packed / 1e6:.1f} MB; resident before {before / 1e6:.1f} MB")
    tell(f"most, after token {peak + 1} of {len(found)}", found[peak], packed)
    tell("at the end", found[-1], packed)
    print(f"memory of the process in no file: {own / 1e6:+.1f} MB since the prompt")
    if resampler is not None:
        print(f"sets of {resampler.share:.1%} of the neurons; looks had {resampler.recall:.2%} in")
    print(f"{account}; {cost.rules}")
    print(f"read per token {cost.bytes_per_token / 1e6:.0f} MB, {1e3 * median(times):.1f} ms")


if __name__ == "__main__":
    main()
