"""Kernels for CPUs that this one is not: compiled by LLVM, judged by their assembly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from stem_runtime.kernels import TOKEN_BLOCK, compiler
from stem_runtime.kernels.cpu.attention8 import value_rows
from stem_runtime.kernels.cpu.isa import VARIANTS

from .test_jit import undefined_symbols

PROBE, STEP = "tests.runtime.kernel_probe", "stem_runtime.kernels.cpu.step"
CALL = re.compile(r"(?:callq?|bl|blr|b|jmpq?) _?(?!L[A-Za-z]+\d)([A-Za-z]\w+)$")


@dataclass(frozen=True, slots=True)
class Target:
    """A CPU, and regular expressions of the instructions that make its variant worth having."""

    variant: str
    triple: str
    cpu: str
    dot: str
    half: str = ""
    never: str = "$^"


TARGETS = {
    target.cpu: target
    for target in (
        Target(
            "avx512vnni",
            "x86_64-unknown-linux-gnu",
            "sapphirerapids",
            # the four bytes of an activation go from memory to all lanes without a register
            r"vpdpbusd (-?\d+)?\(.*\)\{1to16\}, %zmm\d+, %zmm\d+",
            r"vcvtph2psx? .*%zmm",
        ),
        Target(
            "avx512vnni",
            "x86_64-pc-windows-msvc-elf",
            "znver4",
            r"vpdpbusd (-?\d+)?\(.*\)\{1to16\}, %zmm\d+, %zmm\d+",
            "vcvtph2ps .*%zmm",
        ),
        Target(
            "avx2vnni",
            "x86_64-unknown-linux-gnu",
            "alderlake",
            r"\{vex\} vpdpbusd .*%ymm\d+$",
            "vcvtph2ps .*%ymm",
            "%zmm|%k[0-7]",
        ),
        Target(
            "avx2",
            "x86_64-unknown-linux-gnu",
            "haswell",
            r"vpmaddubsw .*%ymm\d+$",
            "vcvtph2ps .*%ymm",
            "%zmm|%k[0-7]|vpdpbusd",
        ),
        Target("neon", "aarch64-unknown-linux-gnu", "neoverse-n1", "sdot", "fcvtl2? "),
        Target("neon", "arm64-apple-darwin23.0.0", "apple-m1", "sdot", "fcvtl2? "),
        Target("portable", "x86_64-unknown-linux-gnu", "x86-64", "pmaddwd|pmuludq", "", "ymm|zmm"),
        Target("portable", "aarch64-unknown-linux-gnu", "cortex-a53", r"mla v\d+\.4s", "", "sdot"),
    )
}


@cache
def translated(variant: str, module: str) -> bytes:
    """A unit's LLVM code, which is the same for every CPU that runs the variant."""
    _, unit = compiler.translate(module, variant)
    return bytes(unit.as_bitcode())


def compiled(target: Target, module: str) -> tuple[Any, Any]:
    """The unit's optimized code and LLVM's machine for the target."""
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(target.triple).create_target_machine(
        target.cpu, opt=3, codemodel="default"
    )
    unit = binding.parse_bitcode(translated(target.variant, module))
    unit.triple, unit.data_layout = target.triple, str(machine.target_data)
    compiler.optimize(unit, machine)
    return unit, machine


def functions(assembly: str) -> dict[str, list[str]]:
    """Instructions by function, with single blanks."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r'_?"?(?!L[A-Za-z]+\d)([A-Za-z]\w+)"?:', line):
            lines = found.setdefault(label[1], [])
        elif re.match(r"\s+[a-z{]", line):
            lines.append(" ".join(line.split()))
    return found


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


@pytest.fixture(scope="module")
def probe(target: Target) -> dict[str, list[str]]:
    unit, machine = compiled(target, PROBE)
    found = functions(machine.emit_assembly(unit))
    return {name.removeprefix("stem_"): lines for name, lines in found.items()}


def count(lines: list[str], pattern: str) -> int:
    return sum(bool(re.search(pattern, line)) for line in lines)


def tiles(variant: str) -> list[tuple[str, int]]:
    return [(f"tile_{kind}_{n}", n) for kind in range(3) for n in (1, TOKEN_BLOCK[variant])]


def test_products_are_made_of_the_right_instructions(
    target: Target, probe: dict[str, list[str]]
) -> None:
    for name, tokens in tiles(target.variant):
        lines = probe[name]
        # 16 rows by 32 columns; an instruction that does more than 64 products does not exist
        assert count(lines, target.dot) >= 8 * tokens, name
        if target.half:
            assert count(lines, target.half), name
    for name, lines in probe.items():
        assert not count(lines, target.never), name


def test_streams_are_asked_for_ahead(probe: dict[str, list[str]]) -> None:
    """Every line of a group of weights, of keys and of values, into the second level of cache."""
    streams = {"tile_0_1": 5, "tile_2_1": 9, "score_4": 1, "value_2_4": 2}
    for name, least in (streams | {"rows_0": 2, "columns_0": 4 + 4, "head_rows": 4}).items():
        assert count(probe[name], r"prefetcht1 |prfm pldl2keep") >= least, name


REGISTERS = r"vpdpbusd .*%zmm\d+, %zmm\d+$"

# of the loop that takes the most groups of a row (of four rows where registers are wide), or bytes
# of columns, at once
NEURON_DOTS = {
    "rows_0": 4,
    "rows_1": 4,
    "rows_2": 2,
    "columns_0": 8,
    "columns_1": 8,
    "columns_2": 4,
}


def test_products_with_single_neurons_too(target: Target, probe: dict[str, list[str]]) -> None:
    """Their activations come in registers, and fill whole ones."""
    dot = REGISTERS if target.variant == "avx512vnni" else target.dot
    for name, least in NEURON_DOTS.items():
        assert count(probe[name], dot) >= least, name
        if target.half:
            assert count(probe[name], target.half), name


def test_halves_are_read_by_the_cpu_itself(target: Target, probe: dict[str, list[str]]) -> None:
    if target.half:
        for name in ("score_4", "value_2_4", "from_half_True"):
            assert count(probe[name], target.half), name


def test_kernels_make_no_calls(probe: dict[str, list[str]]) -> None:
    """But of the unit's own functions."""
    for name, lines in probe.items():
        called = {call[1] for line in lines if (call := CALL.match(line))}
        assert called <= compiler.MEMORY_FUNCTIONS | probe.keys(), name


SPILL = r"st[rp] q\d+.*\[sp|vmov\w+ %[yz]mm\d+, -?\d*\(%r[sb]p\)"


def test_sums_stay_in_registers(target: Target, probe: dict[str, list[str]]) -> None:
    """And weights too, but for the few that the last of 32 wide registers are short of."""
    if target.variant in ("neon", "avx512vnni", "avx2vnni"):
        for name, tokens in tiles(target.variant):
            few = 16 if tokens == 16 else 0
            assert count(probe[name], SPILL) <= few, name


def test_arm_takes_activations_from_any_lane(target: Target, probe: dict[str, list[str]]) -> None:
    if target.variant == "neon":
        for name, tokens in tiles(target.variant):
            assert count(probe[name], r"sdot .*\[[0-3]\]$") >= 32 * tokens, name


def test_sums_of_single_neurons_stay_in_registers(
    target: Target, probe: dict[str, list[str]]
) -> None:
    """But for columns on CPUs with registers of 16 bytes: their sums alone take all of them."""
    for name in NEURON_DOTS:
        spills, dots = count(probe[name], SPILL), count(probe[name], target.dot)
        if target.variant in ("neon", "avx512vnni"):
            many = target.variant == "neon" and name.startswith("columns")
            assert spills <= (dots if many else 0), name


def test_values_of_an_int8_cache_are_products_of_integers(
    target: Target, probe: dict[str, list[str]]
) -> None:
    """A weight is brought to all lanes once for 32 dimensions, and the sums stay in registers."""
    dot = REGISTERS if target.variant == "avx512vnni" else target.dot
    for rows in range(1, value_rows(VARIANTS[target.variant]) + 1):
        lines = probe[f"value8_{rows}"]
        # 16 positions of 32 dimensions, in two parts
        assert count(lines, dot) >= 16 * rows, rows
        if target.half:
            assert count(lines, target.half), rows
        if target.variant in ("neon", "avx512vnni"):
            assert not count(lines, SPILL), rows


@pytest.mark.parametrize(
    ("cpu", "pause"), [("neoverse-n1", "yield"), ("alderlake", "pause"), ("x86-64", "ret.*")]
)
def test_the_whole_step(cpu: str, pause: str) -> None:
    """It needs nothing from outside, and its spinning threads give way to each other."""
    unit, machine = compiled(TARGETS[cpu], STEP)
    assert undefined_symbols(bytes(machine.emit_object(unit))) <= compiler.MEMORY_FUNCTIONS
    lines = [line for body in functions(machine.emit_assembly(unit)).values() for line in body]
    assert count(lines, TARGETS[cpu].dot) > 100
    assert not count(lines, TARGETS[cpu].never)
    assert count(lines, f"^{pause}$")
