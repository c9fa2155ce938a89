"""Compiling, keeping and loading units: by two at once, from damaged files, without numba."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stem_runtime import paths
from stem_runtime.errors import KernelError
from stem_runtime.kernels import available, compiler, host, jit
from tests.conftest import USER_CACHE

VARIANTS = [name for name, lacks in available().items() if not lacks]
STEP = "stem_runtime.kernels.cpu.step"
UNIT = """
from numba import njit

@njit
def doubled(x):
    return 2 * x

def entries(variant):
    def fill(ctx, tid):
        for i in range(ctx[0]):
            ctx[1 + i] = doubled(i) + tid
    return {"fill": fill, "mark": lambda ctx, tid: mark(ctx, tid)}

@njit
def mark(ctx, tid):
    ctx[0] = 77 + doubled(tid)
"""
PROGRAM = """
import sys
import numpy as np
from stem_runtime.kernels import jit
said = []
block = np.array([3, 0, 0, 0], np.int64)
jit.load_unit("small_unit", "x", said.append)["fill"](block.ctypes.data, 5)
print(block.tolist(), len(said), "numba" in sys.modules)
"""


@pytest.fixture(autouse=True)
def small_unit(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A unit outside of the package, on a path that only this process has, and an empty cache."""
    (home / "cache" / "kernels").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "small_unit", raising=False)
    path = tmp_path / "small_unit.py"
    path.write_text(UNIT)
    return path


def cached() -> list[Path]:
    return sorted((paths.cache_dir() / "kernels").iterdir())


def fill(entries: dict[str, jit.Entry]) -> list[int]:
    block = np.array([3, 0, 0, 0], np.int64)
    entries["fill"](block.ctypes.data, 5)
    return [int(word) for word in block]


def start(program: str = PROGRAM) -> subprocess.Popen[str]:
    lines = f"import sys; sys.path[:] = {sys.path!r}\n{program}"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", lines], stdout=pipe, stderr=pipe, text=True)


def test_a_unit_is_compiled_once_and_then_loaded() -> None:
    said: list[str] = []
    entries = jit.load_unit("small_unit", "x", said.append)
    assert fill(entries) == [3, 5, 7, 9]
    block = np.zeros(1, np.int64)
    entries["mark"](block.ctypes.data, 1)
    assert block[0] == 79
    (path,) = cached()
    before = path.stat().st_mtime_ns
    assert fill(jit.load_unit("small_unit", "x", said.append)) == [3, 5, 7, 9]
    assert cached() == [path]
    assert path.stat().st_mtime_ns == before
    assert said == ["Compiling the x kernels for this machine (once)..."]


def test_two_processes_at_once_both_get_kernels() -> None:
    first, second = start(), start()
    for process in (first, second):
        out, error = process.communicate()
        assert (out, error) == ("[3, 5, 7, 9] 1 False\n", "")
    assert len(cached()) == 1
    out, error = start().communicate()
    assert (out, error) == ("[3, 5, 7, 9] 0 False\n", "")


def test_threads_at_once_get_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_can_start_python", lambda: False)
    results: list[list[int]] = []
    load = lambda: results.append(fill(jit.load_unit("small_unit")))  # noqa: E731
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[3, 5, 7, 9]] * 3


def test_what_is_compiled_ahead_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    begun, waited_for = threading.Event(), threading.Event()
    compile_apart = jit._compile

    def compile_late(module: str, variant: str) -> bytes:
        compiled.append(variant)
        begun.set()
        waited_for.wait(60)
        return compile_apart(module, variant)

    monkeypatch.setattr(jit, "_compile", compile_late)
    jit.compile_ahead(("small_unit", "x"), ("small_unit", "y"))
    assert begun.wait(60)
    entries = jit.load_unit("small_unit", "x", lambda _: waited_for.set())
    assert fill(entries) == [3, 5, 7, 9]
    assert fill(jit.load_unit("small_unit", "y")) == [3, 5, 7, 9]
    assert compiled == ["x", "y"]


def test_what_fails_ahead_is_told_when_it_is_wanted(small_unit: Path) -> None:
    small_unit.write_text("import nowhere_to_be_found\n" + UNIT)
    jit.compile_ahead(("small_unit", ""))
    with pytest.raises(KernelError, match="nowhere_to_be_found"):
        jit.load_unit("small_unit")


def test_what_ends_a_compilation_ends_the_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the process that compiles: whoever waits must not begin anew."""
    begun, waited_for = threading.Event(), threading.Event()

    def interrupted(_module: str, variant: str) -> bytes:
        begun.set()
        waited_for.wait(60)
        raise jit._failed(variant, "KeyboardInterrupt")

    monkeypatch.setattr(jit, "_compile", interrupted)
    jit.compile_ahead(("small_unit", "x"))
    assert begun.wait(60)
    monkeypatch.setattr(jit, "_compile", _refuse)
    with pytest.raises(KernelError, match=r"x kernels could not be compiled \(KeyboardInterrupt"):
        jit.load_unit("small_unit", "x", lambda _: waited_for.set())


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_compiling_ahead_ends_with_the_program(small_unit: Path, tmp_path: Path) -> None:
    pipe, begun = tmp_path / "pipe", tmp_path / "begun"
    os.mkfifo(pipe)
    small_unit.write_text(
        f"held = open({str(pipe)!r}, 'w')\nopen({str(begun)!r}, 'w')\nimport time; time.sleep(600)"
    )
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    program = f"""
import atexit, threading
from pathlib import Path
from stem_runtime.kernels import jit
register, registered = atexit.register, threading.Event()
atexit.register = lambda *args: (register(*args), registered.set())
jit.compile_ahead(("small_unit", ""))
registered.wait(60)
while not Path({str(begun)!r}).exists():
    pass
"""
    out, error = start(program).communicate()
    assert (out, error) == ("", "")
    assert select.select([end], [], [], 60)[0], "the compiler still runs"
    assert os.read(end, 1) == b""
    os.close(end)


@pytest.fixture
def shared_cache(home: Path) -> None:
    """The cache that the other tests share, for units that take long to compile."""
    (home / "cache" / "kernels").symlink_to(USER_CACHE / "kernels", target_is_directory=True)


@pytest.mark.usefixtures("shared_cache")
def test_the_engine_starts_warm_without_numba() -> None:
    program = """
from stem_runtime.kernels import choose, jit
jit.load_unit("stem_runtime.kernels.cpu.step", choose().name)
jit.load_unit("stem_runtime.kernels.cpu.sample")
import stem_runtime.engine, stem_runtime.sampling
print("numba" in sys.modules)
"""
    for _ in range(2):  # the first may have to compile
        out, error = start(program).communicate()
        assert (out, error) == ("False\n", "")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _data: b"",
    "cut": lambda data: data[:-100],
    "bit": lambda data: data[:999] + bytes([data[999] ^ 1]) + data[1000:],
    "garbage": lambda data: b"\x7fELF" * (len(data) // 4),
    "longer": lambda data: data + b"more",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(damage: str) -> None:
    jit.load_unit("small_unit")
    (path,) = cached()
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    said: list[str] = []
    assert fill(jit.load_unit("small_unit", notify=said.append)) == [3, 5, 7, 9]
    assert len(said) == 1
    assert cached() == [path]
    assert len(path.read_bytes()) == len(whole)


def test_code_that_cannot_be_linked_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_link", _refuse_to_link)
    with pytest.raises(KernelError, match=r"small_unit-\w+\.o could not be loaded .* delete"):
        jit.load_unit("small_unit")


def _refuse_to_link(_code: bytes) -> Any:
    raise RuntimeError("no such symbol")


@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_cache_that_cannot_be_written_only_costs_time(home: Path, where: str) -> None:
    folder = home / "cache" / "kernels"
    if where == "folder":
        shutil.rmtree(home / "cache")
        (home / "cache").write_text("in the way")
    else:
        folder.mkdir(parents=True)
        folder.chmod(0o500)
        Path(folder / f"small_unit-{jit._key('small_unit', '')}.o").mkdir()
    try:
        assert fill(jit.load_unit("small_unit")) == [3, 5, 7, 9]
        if where == "file":
            assert [path.is_dir() for path in cached() if path.suffix == ".o"] == [True]
    finally:
        if where == "file":
            folder.chmod(0o700)


def test_what_the_code_depends_on_names_the_file(
    small_unit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [jit._key("small_unit", "x"), jit._key("small_unit", "y")]
    for cpu in (("znver4", frozenset({"avx2"})), ("znver4", frozenset({"avx2", "fma"}))):
        monkeypatch.setattr(jit, "host_cpu", lambda cpu=cpu: cpu)
        keys.append(jit._key("small_unit", "x"))
    monkeypatch.setattr(jit, "host_triple", lambda: "arm64-apple-darwin23.0.0")
    keys.append(jit._key("small_unit", "x"))
    small_unit.write_text(UNIT + "\n")
    keys.append(jit._key("small_unit", "x"))
    assert len(set(keys)) == len(keys)
    assert jit._key("small_unit", "x") == keys[-1]


OUTSIDE = """
from numba import types
getpid = types.ExternalFunction("getpid", types.int32())
"""
FAILURES = {
    "import": ("import nowhere_to_be_found\n" + UNIT, "No module named 'nowhere_to_be_found'"),
    "typing": (UNIT.replace("2 * x", "x.nothing"), "nopython_type_inference"),
    "outside": (OUTSIDE + UNIT.replace("2 * x", "getpid()"), "must not call getpid"),
}


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_says_why(
    small_unit: Path, failure: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, why = FAILURES[failure]
    small_unit.write_text(text)
    monkeypatch.setattr(jit, "_can_start_python", lambda: apart)
    with pytest.raises(KernelError, match=f"small kernels .*{why}.*STEM_KERNELS"):
        jit.load_unit("small_unit", "small")


def test_a_compiler_that_dies_is_reported(small_unit: Path) -> None:
    small_unit.write_text("import os\nos._exit(3)")
    with pytest.raises(KernelError, match="exit status 3"):
        jit.load_unit("small_unit")


def test_what_a_unit_prints_does_not_get_into_its_code(small_unit: Path) -> None:
    small_unit.write_text("print('hello')\n" + UNIT)
    assert fill(jit.load_unit("small_unit")) == [3, 5, 7, 9]


def _refuse(*_args: Any, **_kwargs: Any) -> Any:
    raise OSError("no more processes")


def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)


HINDRANCES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no processes": lambda patch: patch.setattr(subprocess, "Popen", _refuse),
    "frozen": _frozen,
    "embedded": lambda patch: patch.setattr(sys, "executable", "/opt/editor/editor.exe"),
    "unknown": lambda patch: patch.setattr(sys, "executable", ""),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_without_another_process_it_is_done_here(
    hindrance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def compile_unit(module: str, variant: str) -> bytes:
        done.append(module)
        return compile_here(module, variant)

    compile_here = compiler.compile_unit
    monkeypatch.setattr(compiler, "compile_unit", compile_unit)
    with monkeypatch.context() as patch:
        HINDRANCES[hindrance](patch)
        assert fill(jit.load_unit("small_unit")) == [3, 5, 7, 9]
    assert done == ["small_unit"]


def test_numba_works_as_ever_after_compiling_here() -> None:
    from numba import njit

    compiler.compile_unit("small_unit", "")
    compiler.compile_unit("small_unit", "")  # helpers that are compiled already come along

    total = njit(lambda values: np.sum(np.sqrt(values)))
    assert total(np.array([4.0, 9.0])) == 5.0


@pytest.mark.usefixtures("shared_cache")
@pytest.mark.parametrize("variant", VARIANTS)
def test_object_code_needs_nothing_but_memory_functions(variant: str) -> None:
    """LLVM may make calls of its own (memset for a loop that clears), which every libc has."""
    jit.load_unit(STEP, variant)
    unit = jit._read(paths.cache_dir() / "kernels" / f"step-{jit._key(STEP, variant)}.o")
    assert unit is not None
    _, _, code = unit.partition(b"\0")
    assert undefined_symbols(code) <= compiler.MEMORY_FUNCTIONS


def undefined_symbols(elf: bytes) -> set[str]:
    """Names that a 64-bit little-endian ELF object uses without defining them."""
    assert elf[:6] == b"\x7fELF\x02\x01"

    def word(at: int, size: int) -> int:
        return int.from_bytes(elf[at : at + size], "little")

    table, size, count = word(0x28, 8), word(0x3A, 2), word(0x3C, 2)
    found = set()
    for header in range(table, table + size * count, size):
        if word(header + 4, 4) != 2:  # SHT_SYMTAB
            continue
        start, length = word(header + 0x18, 8), word(header + 0x20, 8)
        names = word(table + size * word(header + 0x28, 4) + 0x18, 8)
        for symbol in range(start + 24, start + length, 24):
            if word(symbol + 6, 2) == 0:  # SHN_UNDEF
                name = names + word(symbol, 4)
                found.add(elf[name : elf.index(b"\0", name)].decode())
    return found


def test_host_is_what_units_are_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _, features = host.host_cpu()
    assert all(feature and feature[0] not in "+-" for feature in features)
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2,-avx512f")
    host.host_cpu.cache_clear()
    try:
        assert host.host_cpu() == ("haswell", frozenset({"avx2"}))
        assert host.host_machine().triple == host.host_triple()
    finally:
        host.host_cpu.cache_clear()
