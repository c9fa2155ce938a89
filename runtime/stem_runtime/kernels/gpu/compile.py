"""Machine code of the kernels for chips that are not there.

    python -m stem_runtime.kernels.gpu.compile [--chips 80 90] [--only matvec] [--quick] [--json]

Compiles what the launchers of `launches` launch, for every chip in CHIPS, without a driver, and
prints what the machine code needs. A stand-in for the driver names the chip, and launches end once
the kernel is compiled, so that types, alignments and constants are those of a real launch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from .launches import LAUNCHES, Launch
from .machine_code import loads_by_argument, resources


@dataclass(frozen=True, slots=True)
class Chip:
    """Chips of one compute capability; `shared_limit` is bytes of shared memory for one block.

    From the table of compute capabilities in NVIDIA's CUDA C++ programming guide.
    """

    examples: str
    shared_limit: int


CHIPS = {
    80: Chip("A100", 163 << 10),
    89: Chip("RTX 4090, L4", 99 << 10),
    90: Chip("H100", 227 << 10),
    120: Chip("RTX 5090", 99 << 10),
}
"""By compute capability, as Triton writes it: 80 is 8.0."""


@dataclass(frozen=True, slots=True)
class MachineCode:
    """What one kernel's machine code needs on one chip.

    `registers` per thread; `local_bytes` per thread is memory that registers were spilled to;
    `shared_bytes` per block. `stream_loads` counts the instructions that read the streams by how
    many bytes one of them brings to a thread.
    """

    launch: str
    kernel: str
    chip: int
    threads: int
    registers: int
    local_bytes: int
    shared_bytes: int
    stream_loads: dict[int, int]

    @property
    def wide_share(self) -> float | None:
        """Share of the streams' bytes that come by loads of 128 bits; None without streams."""
        total = sum(size * count for size, count in self.stream_loads.items())
        return 16 * self.stream_loads.get(16, 0) / total if total else None


def machine_code(launch: Launch, chip: int) -> list[MachineCode]:
    """Compile every kernel that `launch` launches, in their order, each once."""
    different = {id(kernel): kernel for kernel in compiled(launch.call, chip)}
    return [_examined(launch, chip, kernel) for kernel in different.values()]


def compiled(call: Callable[[], object], chip: int) -> list[Any]:
    """The `triton.compiler.CompiledKernel` of every launch that `call` makes."""
    kernels: list[Any] = []
    with _standing_in(chip, kernels.append):
        call()
    return kernels


class _Driver:
    """What Triton asks a driver before it compiles. Chips are numbered as devices, so that the
    kernels of each are kept apart."""

    def __init__(self, chip: int) -> None:
        self._chip = chip

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._chip, 32)

    def get_current_device(self) -> int:
        return self._chip

    def get_current_stream(self, _device: int) -> int:
        return 0


@contextmanager
def _standing_in(chip: int, keep: Callable[[Any], None]) -> Iterator[None]:
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> None:
        keep(launch(self, *args, **{**kwargs, "warmup": True}))

    before = driver._active
    driver.set_active(_Driver(chip))
    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = launch
        driver._active = before


def _examined(launch: Launch, chip: int, kernel: Any) -> MachineCode:
    signature = kernel.src.signature
    arguments = [name for name, kind in signature.items() if kind != "constexpr"]
    loads = loads_by_argument(kernel.asm["ptx"])
    stream_loads: dict[int, int] = {}
    for index, name in enumerate(arguments):
        if name in launch.streams:
            for size, count in loads.get(index, {}).items():
                stream_loads[size] = stream_loads.get(size, 0) + count
    registers, local = resources(kernel.asm["cubin"])
    return MachineCode(
        launch=launch.name,
        kernel=kernel.metadata.name,
        chip=chip,
        threads=32 * kernel.metadata.num_warps,
        registers=registers,
        local_bytes=local,
        shared_bytes=kernel.metadata.shared,
        stream_loads=stream_loads,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--only", nargs="+", default=[""], help="words that names begin with")
    parser.add_argument("--quick", action="store_true", help="every kernel, but not its variants")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args()
    wanted = [launch for launch in LAUNCHES if launch.name.startswith(tuple(args.only))]
    wanted = [launch for launch in wanted if not (args.quick and launch.variant)]
    codes = [
        code for launch in wanted for chip in args.chips for code in machine_code(launch, chip)
    ]
    if args.json:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(c) for c in codes]}))
        return
    for code in codes:
        share = "" if code.wide_share is None else f"{code.wide_share:.0%} by 128 bits"
        print(
            f"{code.launch:40} {code.kernel:18} {code.chip:3} {code.threads:4} threads "
            f"{code.registers:3} registers {code.local_bytes} spilled {code.shared_bytes:6} shared "
            f"{share}"
        )


if __name__ == "__main__":
    main()
