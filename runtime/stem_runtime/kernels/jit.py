"""Loads compiled kernel units, compiling each once per machine.

A unit is a module with `entries(variant) -> {name: function(ctx, tid)}`, where `ctx` is a pointer
to int64 arguments (addresses, sizes) and `tid` the thread's number. The functions are plain numba
Python; they use raw pointers only, so the object code that is made of them stands alone. That
object code is kept in the user's cache and linked by llvmlite in a few milliseconds, where
importing numba and reading its own cache would cost a warm start most of a second.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KernelError
from ..paths import cache_dir
from ..renaming import rename
from .host import host_cpu, host_triple

if TYPE_CHECKING:
    from concurrent.futures import Future

Entry = Callable[[int, int], None]
"""Compiled function: (address of its int64 argument block, thread number). Releases the GIL."""

_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_DIGEST_SIZE = 32
_compiling: dict[Path, Future[bytes]] = {}
_engines: list[Any] = []  # code lives as long as its engine, and entries are kept by everyone


def load_unit(
    module: str, variant: str = "", notify: Callable[[str], None] | None = None
) -> dict[str, Entry]:
    """Return the unit's entries by name, compiled for this CPU.

    `module` is the full module name, `variant` goes to its `entries`. `notify` receives one
    sentence if a compilation (seconds) has to be waited for. Raises KernelError.
    """
    path = _place(module, variant)
    code = _code(path, module, variant, notify)
    try:
        return _link(code)
    except RuntimeError as error:
        raise KernelError(
            f"The compiled kernels in {path} could not be loaded ({error}); delete that file."
        ) from error


def compile_ahead(*units: tuple[str, str]) -> None:
    """Begin to compile those (module, variant) that this machine lacks, one after another, aside.

    Returns at once. `load_unit` waits for what is under way instead of compiling it once more, and
    raises what ends it.
    """
    wanted = [(_place(*unit), *unit) for unit in units]

    def work() -> None:
        with contextlib.suppress(KernelError):
            for path, module, variant in wanted:
                _code(path, module, variant)

    if _can_start_python():
        threading.Thread(target=work, daemon=True, name="stem-compile").start()


def _place(module: str, variant: str) -> Path:
    return cache_dir() / "kernels" / f"{module.rpartition('.')[2]}-{_key(module, variant)}.o"


def _code(
    path: Path, module: str, variant: str, notify: Callable[[str], None] | None = None
) -> bytes:
    """What `path` holds, compiled before where that is nothing that can be used."""
    code = _read(path)
    if code is not None:
        return code
    if notify:
        notify(f"Compiling the {variant or 'CPU'} kernels for this machine (once)...")
    from concurrent.futures import Future

    mine: Future[bytes] = Future()
    compiling = _compiling.setdefault(path, mine)
    if compiling is not mine:
        return compiling.result()
    try:
        code = _read(path) or _compile(module, variant)
        _write(path, code)
        mine.set_result(code)
    except BaseException as error:
        told = error if isinstance(error, KernelError) else _failed(variant, type(error).__name__)
        mine.set_exception(told)
        raise
    finally:
        del _compiling[path]
    return code


def _compile(module: str, variant: str) -> bytes:
    """Compile in a process of its own: this one stays small, and its threads keep running."""
    if _can_start_python():
        search = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 (absent ones too)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
        command = [sys.executable, "-P", "-m", f"{__package__}.compiler", module, variant]
        try:
            status, out, said = _run(command, environment)
        except OSError:
            return _compile_here(module, variant)
        code = unsealed(out)
        if status == 0 and code is not None:
            return code
        raise _failed(variant, said.decode(errors="replace") or f"exit status {status}")
    return _compile_here(module, variant)


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, bytes, bytes]:
    """A program's exit status and what it wrote. It does not outlive this one."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    ) as process:
        atexit.register(process.kill)
        try:
            out, said = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            atexit.unregister(process.kill)
        return process.returncode, out, said


def _can_start_python() -> bool:
    """Whether `sys.executable` is Python, and not a program that Python is a part of."""
    name = Path(sys.executable or "").name.lower()
    return not getattr(sys, "frozen", False) and name.startswith("python")


def _compile_here(module: str, variant: str) -> bytes:
    try:
        from .compiler import compile_unit

        return compile_unit(module, variant)
    except Exception as error:
        raise _failed(variant, f"{type(error).__name__}: {error}") from error


def _failed(variant: str, why: str) -> KernelError:
    return KernelError(
        f"The {variant or 'CPU'} kernels could not be compiled ({why.strip().splitlines()[-1]}); "
        "other kernels can be named in STEM_KERNELS, such as portable."
    )


def _link(unit: bytes) -> dict[str, Entry]:
    from llvmlite import binding

    names, _, code = unit.partition(b"\0")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(host_triple()).create_target_machine(opt=3, jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    entries: dict[str, Entry] = {}
    for name in names.decode().split():
        entries[name] = _PROTOTYPE(engine.get_function_address(f"stem_{name}"))
    return entries


@cache
def _sources_digest() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def _key(module: str, variant: str) -> str:
    """Names all that the object code depends on."""
    from importlib.metadata import version

    name, features = host_cpu()
    found = importlib.util.find_spec(module)
    source = Path(found.origin).read_bytes() if found and found.origin else b""
    parts = (module, variant, host_triple(), name, *sorted(features))
    digest = hashlib.sha256(_sources_digest() + hashlib.sha256(source).digest())
    digest.update("\n".join((*parts, version("numba"), version("llvmlite"))).encode())
    return digest.hexdigest()[:24]


def _read(path: Path) -> bytes | None:
    try:
        return unsealed(path.read_bytes())
    except OSError:
        return None


def sealed(code: bytes) -> bytes:
    """The code with its digest: LLVM trusts what it is given, so damage must be noticed before."""
    return hashlib.sha256(code).digest() + code


def unsealed(data: bytes) -> bytes | None:
    code = data[_DIGEST_SIZE:]
    return code if sealed(code) == data else None


def _write(path: Path, code: bytes) -> None:
    # Each process writes its own file and renames it, so two compiling at once cannot mix theirs.
    # A cache that cannot be written costs the next start its compilation, nothing else.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(sealed(code))
        rename(Path(file.name), path)
    except OSError:
        return
