"""What LLVM calls this CPU and which instructions it may be given."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

_LINUX_ARM = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "asimdfhm": "fp16fml",
    "asimdrdm": "rdm",
    "atomics": "lse",
    "bf16": "bf16",
    "fcma": "complxnum",
    "i8mm": "i8mm",
    "jscvt": "jsconv",
    "sha3": "sha3",
    "sm4": "sm4",
    "sve": "sve",
    "sve2": "sve2",
}
"""LLVM's names of what /proc/cpuinfo lists: LLVM does not translate all of these, and says of none
that it is missing, though a hypervisor or kernel may hide what a CPU of that name has."""


@cache
def host_cpu() -> tuple[str, frozenset[str]]:
    """LLVM's name of this CPU and the features it has. NUMBA_CPU_* override both, as in numba."""
    _, name, flags = _host()
    return name, frozenset(flag[1:] for flag in flags.split(",") if flag.startswith("+"))


def host_triple() -> str:
    return _host()[0]


def host_machine() -> Any:
    """LLVM's target machine for code that runs in this process, on this CPU."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    triple, name, features = _host()
    # x86 code that is linked where it runs needs no detour to reach its own constants
    reloc = "static" if triple.startswith("x86_64") else "default"
    target = binding.Target.from_triple(triple)
    return target.create_target_machine(name, features, opt=3, reloc=reloc, jit=True)


def _host() -> tuple[str, str, str]:
    """Triple, CPU name and LLVM's list of features, those that it lacks included."""
    from llvmlite import binding

    name = os.environ.get("NUMBA_CPU_NAME") or str(binding.get_host_cpu_name())
    flags = os.environ.get("NUMBA_CPU_FEATURES")
    if flags is None:
        found = _llvm_features() | _arm_features()
        # a hypervisor may hide what the CPU's name promises, so what is missing is said too
        flags = ",".join(f"{'+' if there else '-'}{flag}" for flag, there in sorted(found.items()))
    return str(binding.get_process_triple()), name, flags


def _llvm_features() -> dict[str, bool]:
    from llvmlite import binding

    with contextlib.suppress(RuntimeError):  # where LLVM knows no way to ask
        return dict(binding.get_host_cpu_features())
    return {}


def _arm_features() -> dict[str, bool]:
    """What matters to kernels on 64-bit Arm, where LLVM may not find it by itself."""
    if platform.machine().lower() not in ("arm64", "aarch64"):
        return {}
    if sys.platform == "darwin":
        return dict.fromkeys(("neon", "dotprod", "fullfp16"), True)  # every Mac with such a CPU
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {"neon": True}
    # cores may differ; the process can be moved to any
    listed = [set(line.partition(":")[2].split()) for line in lines if line.startswith("Features")]
    common = set.intersection(*listed) if listed else {"asimd"}
    return {name: flag in common for flag, name in _LINUX_ARM.items()}
