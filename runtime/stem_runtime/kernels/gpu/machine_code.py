"""Reading machine code: what it needs of a chip, and how wide it reads each argument."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")

_ADDRESS = re.compile(r"^\s*(?:@!?%p\d+\s+)?([\w.:]+)\s+(\{[^}]*\}|%rd\d+),\s*(.*);")
_REGISTER = re.compile(r"%rd\d+")
_SHARED = re.compile(r"\bst\.shared\.[\w.:]*b64\s+\[[^]]*\],\s*(.*);")
_PARAMETER = re.compile(r"\[\w+_param_(\d+)\]")
_LOAD = re.compile(r"\bld\.global((?:[.:]+\w+)*)\s+(?:\{[^}]*\}|%\w+),\s*\[\s*(%rd\d+)")
_COPY = re.compile(
    r"\bcp\.async\.c[ag]\.shared\.global[\w.:]*\s+\[[^]]*\],\s*\[\s*(%rd\d+)[^]]*\],\s*(\w+)"
)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of each thread, asked of the `cubin` itself."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        output = subprocess.run(
            [tool, "-res-usage", path], check=True, capture_output=True, text=True
        ).stdout
    found = _RESOURCES.search(output)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of a kernel: {output!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def loads_by_argument(ptx: str) -> dict[int, Counter[int]]:
    """For each pointer among a kernel's arguments, by its place: loads from global memory.

    They are counted by how many bytes one instruction brings to a thread, copies straight to shared
    memory among them. An address belongs to the arguments that it was computed from.
    """
    origins = _origins(ptx)
    loads: dict[int, Counter[int]] = {}
    for address, size in _loads(ptx):
        for argument in origins.get(address, ()):
            loads.setdefault(argument, Counter())[size] += 1
    return loads


def _loads(ptx: str) -> list[tuple[str, int]]:
    """(register of the address, bytes) of every load from global memory."""
    loads = []
    for found in _LOAD.finditer(ptx):
        words = found[1].split(".")
        lanes = max([int(word[1:]) for word in words if re.fullmatch(r"v\d", word)], default=1)
        (bits,) = [int(word[1:]) for word in words if re.fullmatch(r"[busf]\d+", word)]
        loads.append((found[2], lanes * bits // 8))
    loads += [(found[1], int(found[2], 0)) for found in _COPY.finditer(ptx)]
    return loads


def _origins(ptx: str) -> dict[str, set[int]]:
    """The arguments that each 64-bit register was computed from, by their places."""
    origins: dict[str, set[int]] = {}
    sources: dict[str, set[str]] = {}
    shared = {address for stored in _SHARED.findall(ptx) for address in _REGISTER.findall(stored)}
    for line in ptx.splitlines():
        found = _ADDRESS.match(line)
        if found is None:
            continue
        operation, results, operands = found.groups()
        parameter = _PARAMETER.search(operands)
        for register in _REGISTER.findall(results):
            if operation.startswith("ld.param") and parameter:
                origins.setdefault(register, set()).add(int(parameter[1]))
            elif operation.startswith("ld.shared"):
                # threads hand each other addresses through shared memory
                sources.setdefault(register, set()).update(shared)
            elif not operation.startswith("ld."):
                sources.setdefault(register, set()).update(_REGISTER.findall(operands))
    changed = True
    while changed:
        changed = False
        for register, others in sources.items():
            known = origins.setdefault(register, set())
            new = set().union(*(origins.get(other, ()) for other in others)) - known
            known |= new
            changed |= bool(new)
    return origins
