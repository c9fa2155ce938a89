"""The choice of kernels, on CPUs that this one is not."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stem_runtime import kernels
from stem_runtime.errors import KernelError
from stem_runtime.kernels import host
from stem_runtime.kernels.cpu.isa import VARIANTS

HASWELL = {"sse2", "avx", "avx2", "fma", "f16c", "bmi2"}
SKYLAKE_X = HASWELL | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}
ICE_LAKE = SKYLAKE_X | {"avx512vnni", "avx512vbmi"}
ALDER_LAKE = HASWELL | {"avxvnni"}
CPUS: dict[str, tuple[set[str], str]] = {
    "core 2": ({"sse2", "ssse3"}, "portable"),
    "sandy bridge": ({"sse2", "avx"}, "portable"),
    "haswell": (HASWELL, "avx2"),
    "skylake-x": (SKYLAKE_X, "avx2"),
    "ice lake": (ICE_LAKE, "avx512vnni"),
    "alder lake": (ALDER_LAKE, "avx2vnni"),
    # 512-bit registers switched off, as some hypervisors do
    "narrow": (HASWELL | {"avx512vl", "avx512vnni"}, "avx2vnni"),
    "cortex-a53": ({"neon", "fp-armv8"}, "portable"),
    "neoverse-n1": ({"neon", "fp-armv8", "dotprod", "fullfp16"}, "neon"),
    "cortex-a75 without halves": ({"neon", "dotprod"}, "neon"),
    "riscv": ({"m", "a", "c"}, "portable"),
}


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (kernels.OVERRIDE, "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        monkeypatch.delenv(name, raising=False)
    host.host_cpu.cache_clear()
    yield
    host.host_cpu.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, features: Iterable[str]) -> None:
    monkeypatch.setattr(kernels, "host_cpu", lambda: ("some-cpu", frozenset(features)))


@pytest.mark.parametrize("cpu", CPUS)
def test_the_best_that_a_cpu_can_run(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, best = CPUS[cpu]
    pretend(monkeypatch, features)
    choice = kernels.choose()
    assert choice.name == best
    assert choice.token_block == VARIANTS[best].tokens
    arm = "neon" in features
    for name, lacks in kernels.available().items():
        passed_over = list(VARIANTS).index(name) < list(VARIANTS).index(best)
        told = f"{name} needs {lacks}" in choice.reason
        assert told == (passed_over and (name == "neon") == arm)


def test_variants_are_those_that_exist() -> None:
    assert list(kernels.available()) == list(VARIANTS) == list(kernels.TOKEN_BLOCK)
    assert kernels.available()["portable"] == ""


def test_an_override_is_followed_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, HASWELL)
    monkeypatch.setenv(kernels.OVERRIDE, "portable")
    assert kernels.choose() == kernels.KernelChoice("portable", "asked for by STEM_KERNELS")
    assert kernels.choose("avx2") == kernels.KernelChoice("avx2", "asked for")
    with pytest.raises(KernelError, match=r"avx512vnni kernels need avx512bw, .*avx512vnni, which"):
        kernels.choose("avx512vnni")
    with pytest.raises(KernelError, match="no kernels called 'sse9'; choose one of avx512vnni, "):
        kernels.choose("sse9")


def on(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, found: dict[str, bool] | None
) -> frozenset[str]:
    """The features that are found where LLVM tells `found`, or fails."""

    def told() -> dict[str, bool]:
        if found is None:
            raise RuntimeError("LLVM cannot tell")
        return found

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", told)
    host.host_cpu.cache_clear()
    return host.host_cpu()[1]


def cpuinfo(monkeypatch: pytest.MonkeyPatch, *cores: str) -> None:
    lines = "".join(f"processor\t: {i}\nFeatures\t: {core}\n\n" for i, core in enumerate(cores))
    read = Path.read_text

    def read_text(path: Path, *args: Any, **kwargs: Any) -> str:
        return lines if str(path) == "/proc/cpuinfo" else read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize("found", [{}, None, {"neon": True, "sve": False}])
def test_apple_silicon_has_dot_products_whatever_llvm_says(
    found: dict[str, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = on(monkeypatch, "darwin", "arm64", found)
    assert features == {"neon", "dotprod", "fullfp16"}
    pretend(monkeypatch, features)
    assert kernels.choose().name == "neon"


def test_linux_on_arm_tells_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(monkeypatch, "fp asimd crc32 asimdhp asimddp", "fp asimd crc32 asimdhp asimddp")
    assert on(monkeypatch, "linux", "aarch64", {"neon": True, "crc": True}) == {
        "neon",
        "crc",
        "dotprod",
        "fullfp16",
    }
    cpuinfo(monkeypatch, "fp asimd asimddp", "fp asimd")  # a big core with it, a little one without
    assert on(monkeypatch, "linux", "aarch64", {}) == {"neon"}
    cpuinfo(monkeypatch)
    assert on(monkeypatch, "linux", "aarch64", {}) == {"neon"}


def test_what_linux_on_arm_does_not_list_is_kept_from_llvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a CPU keeps a name that promises SVE, and faults at the first instruction of it."""
    cpuinfo(monkeypatch, "fp asimd asimddp")
    assert on(monkeypatch, "linux", "aarch64", {"neon": True}) == {"neon", "dotprod"}
    told = host._host()[2].split(",")
    assert {"+dotprod", "-sve", "-sve2", "-i8mm", "-bf16", "-lse"} <= set(told)


def test_x86_is_as_llvm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on(monkeypatch, "linux", "x86_64", {"avx2": True, "avx512f": False}) == {"avx2"}
    assert on(monkeypatch, "darwin", "x86_64", None) == frozenset()
    # what a hypervisor hides is kept from LLVM, whatever the CPU is called
    on(monkeypatch, "linux", "x86_64", {"sse2": True, "avx512f": False})
    assert host._host()[2] == "-avx512f,+sse2"


def test_numbas_own_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2,+fma,+f16c,-avx512f")
    assert host.host_cpu() == ("haswell", frozenset({"avx2", "fma", "f16c"}))
    assert kernels.choose().name == "avx2"
