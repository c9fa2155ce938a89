"""How much of a calibrated model's files is in memory while it decodes, from a cold start.

    python benchmarks/resident.py PACKED_FOLDER [--setting resampled] [--tokens 64]

The prompt is read first, which takes all weights. Then the files' pages are dropped, from the maps
and from the system's cache, and the maps are told not to read ahead, so that only what decoding
touches is resident. Prints that beside the packed model's size, which is without the profile, where
the neurons have copies of their own. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
from pathlib import Path

from stem_local import load
from stem_local.ablation import workloads
from stem_local.decoding import Decoding
from stem_local.sparsity import Choice

_DONTNEED, _RANDOM = 4, 1
PROMPT = 96


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--setting", default="resampled", help="a calibrated setting, or dense")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    folder = options.folder.resolve()
    with load(folder) as model:
        ffn = model.calibrated.ffn
        settings = {} if ffn is None else {setting.name: setting for setting in ffn.settings}
        plan = None if options.setting == "dense" else settings[options.setting].plan
        tokens = model.tokenize(workloads()["prose"])[: PROMPT + options.tokens]
        cache = model.engine.new_cache(len(tokens))
        decoding = Decoding(model, Choice(False, plan, options.setting), cache)
        decoding.prefill(tokens[:PROMPT])
        drop(folder)
        before = sum(resident(folder).values())
        for token in tokens[PROMPT:]:
            decoding.step(token)
        after = resident(folder)
        total, packed = sum(after.values()), model.packed.nbytes
        cost = decoding.cost(len(tokens))
    print(f"packed weights {packed / 1e6:.0f} MB; resident before decoding {before / 1e6:.1f} MB")
    for name, size in after.items():
        print(f"  {name}: {size / 1e6:.0f} MB")
    share = total / packed
    print(
        f"resident while decoding {len(tokens) - PROMPT} tokens: {total / 1e6:.0f} MB ({share:.0%})"
    )
    print(f"{cost.rules}; read per token {cost.bytes_per_token / 1e6:.0f} MB{decoding.note}")


if __name__ == "__main__":
    main()
