"""Compiles kernel units with numba once per machine and loads them without numba ever after.

A unit is a module with `entries(variant) -> {name: function(ctx, tid)}`, where `ctx` is a pointer to
int64 arguments (addresses, sizes) and `tid` the thread's number. The functions are plain numba
Python; they use raw pointers only, so the object code that numba's LLVM makes of them stands alone.
That object code is kept in the user's cache and linked by llvmlite in a few milliseconds, where
importing numba and reading its own cache would cost a warm start most of a second.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import KernelError
from ..paths import cache_dir

Entry = Callable[[int, int], None]
"""Compiled function: (address of its int64 argument block, thread number). Releases the GIL."""

_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_DIGEST_SIZE = 32
_engines: list[Any] = []  # code lives as long as its engine, and entries are kept by everyone


def load_unit(
    module: str, variant: str = "", notify: Callable[[str], None] | None = None
) -> dict[str, Entry]:
    """Return the unit's entries by name, compiled for this CPU.

    `module` is the full module name, `variant` goes to its `entries`. `notify` receives one
    sentence if a compilation (seconds) has to be waited for. Raises KernelError.
    """
    path = cache_dir() / "kernels" / f"{module.rpartition('.')[2]}-{_key(module, variant)}.o"
    code = _read(path)
    if code is None:
        if notify:
            notify(f"Compiling the {variant or 'CPU'} kernels for this machine (once)...")
        code = compile_unit(module, variant)
        _write(path, code)
    try:
        return _link(code)
    except RuntimeError as error:
        raise KernelError(
            f"The compiled kernels in {path} could not be loaded ({error}); delete that file."
        ) from error


def compile_unit(module: str, variant: str) -> bytes:
    """Compile a unit with numba. Returns the names of its entries, a NUL, and object code."""
    import numba
    from llvmlite import binding
    from numba import types
    from numba.core.registry import cpu_target

    functions = importlib.import_module(module).entries(variant)
    signature = types.void(types.CPointer(types.int64), types.int64)
    codegen = cpu_target.target_context.codegen()
    linked = binding.parse_assembly("")
    with _translation_only(codegen):
        for name, function in functions.items():
            dispatcher = numba.njit(
                signature,
                nogil=True,
                error_model="numpy",
                no_cpython_wrapper=True,
                no_cfunc_wrapper=True,
            )(function)
            result = next(iter(dispatcher.overloads.values()))
            linked.link_in(binding.parse_bitcode(result.library._final_module.as_bitcode()))
            linked.link_in(binding.parse_assembly(_shim(name, result.fndesc.llvm_func_name)))
    _optimize(linked, codegen._tm)
    return " ".join(functions).encode() + b"\0" + bytes(codegen._tm.emit_object(linked))


@contextmanager
def _translation_only(codegen: Any) -> Iterator[None]:
    """Keep numba from optimizing and emitting every helper by itself, with all that it calls.

    Only the whole unit is ever run, so one pass over it at the end does in seconds what would
    take most of a minute.
    """
    usual = codegen._library_class

    class Library(usual):  # type: ignore[misc]
        def _optimize_functions(self, _module: Any) -> None:
            pass

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalized = True

        def get_pointer_to_function(self, _name: str) -> int:
            self._ensure_finalized()
            return 0

    codegen._library_class = Library
    codegen.set_env = lambda _name, _env: None
    try:
        yield
    finally:
        codegen._library_class = usual
        del codegen.set_env


def _optimize(module: Any, machine: Any) -> None:
    from llvmlite import binding

    for function in module.functions:
        if not function.is_declaration and not function.name.startswith("stem_"):
            function.linkage = "internal"
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)


def _shim(name: str, target: str) -> str:
    # numba passes a return slot and an exception slot before the arguments; callers need neither
    return f"""
    declare i32 @"{target}"(ptr, ptr, ptr, i64)
    define void @"stem_{name}"(ptr %ctx, i64 %tid) {{
      %result = alloca ptr
      %error = alloca ptr
      %status = call i32 @"{target}"(ptr %result, ptr %error, ptr %ctx, i64 %tid)
      ret void
    }}
    """


def _link(unit: bytes) -> dict[str, Entry]:
    from llvmlite import binding

    names, _, code = unit.partition(b"\0")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(_triple()).create_target_machine(opt=3, jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    entries: dict[str, Entry] = {}
    for name in names.decode().split():
        entries[name] = _PROTOTYPE(engine.get_function_address(f"stem_{name}"))
    return entries


def _triple() -> str:
    from llvmlite import binding

    triple = str(binding.get_process_triple())
    # llvmlite's loader reads ELF on Windows, and numba emits it there
    return triple + "-elf" if os.name == "nt" else triple


@cache
def host_cpu() -> tuple[str, frozenset[str]]:
    """LLVM's name of this CPU and the features it has. NUMBA_CPU_* override both, as in numba."""
    from llvmlite import binding

    name = os.environ.get("NUMBA_CPU_NAME") or str(binding.get_host_cpu_name())
    flags = os.environ.get("NUMBA_CPU_FEATURES")
    if flags is None:
        found = binding.get_host_cpu_features()
        return name, frozenset(feature for feature, there in found.items() if there)
    return name, frozenset(flag[1:] for flag in flags.split(",") if flag.startswith("+"))


@cache
def _sources_digest() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def _key(module: str, variant: str) -> str:
    from importlib.metadata import version

    name, features = host_cpu()
    parts = (module, variant, name, *sorted(features), version("numba"), version("llvmlite"))
    digest = hashlib.sha256(_sources_digest() + "\n".join(parts).encode() + _triple().encode())
    return digest.hexdigest()[:24]


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, code = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    # Each process writes its own file and renames it, so two compiling at once cannot mix theirs.
    # A cache that cannot be written costs the next start its compilation, nothing else.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(file.name).replace(path)
    except OSError:
        return
