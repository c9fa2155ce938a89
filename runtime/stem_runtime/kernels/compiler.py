"""Compiles kernel units with numba. The only module of the runtime that imports it.

Numba translates the Python functions of a unit into LLVM's language one by one; all that it does
beyond that (wrappers for Python, optimizing every function with all that it calls, once for each
caller) is left out, since only the whole unit is ever run. LLVM then optimizes the unit once.

As a program, `python -m stem_runtime.kernels.compiler MODULE VARIANT` writes the compiled unit to
standard output, sealed. `jit` runs it so, to keep numba out of the process that answers.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..errors import KernelError
from .host import host_machine
from .jit import sealed

MEMORY_FUNCTIONS = frozenset({"memset", "memcpy", "memmove", "bzero", "memset_pattern16"})
"""What LLVM makes of some loops; every process has these, the last two on macOS."""

_lock = threading.Lock()


def compile_unit(module: str, variant: str) -> bytes:
    """Compile a unit for this CPU. Returns the names of its entries, a NUL, and object code."""
    with _lock:
        names, unit = translate(module, variant)
        machine = host_machine()
        optimize(unit, machine)
        return " ".join(names).encode() + b"\0" + bytes(machine.emit_object(unit))


def translate(module: str, variant: str) -> tuple[list[str], Any]:
    """The names of a unit's entries, and all their code as one LLVM module, not yet optimized.

    Entry NAME is the function `stem_NAME(address, thread number)`; the rest is internal.
    """
    import numba
    from llvmlite import binding
    from numba import types

    signature = types.void(types.CPointer(types.int64), types.int64)
    libraries: dict[Any, None] = {}
    shims = []
    with _translation_only():
        functions = importlib.import_module(module).entries(variant)
        for name, function in functions.items():
            dispatcher = numba.njit(
                signature,
                nogil=True,
                error_model="numpy",
                no_cpython_wrapper=True,
                no_cfunc_wrapper=True,
            )(function)
            result = next(iter(dispatcher.overloads.values()))
            _gather(result.library, libraries)
            shims.append(_shim(name, result.fndesc.llvm_func_name))
    unit = binding.parse_assembly("")
    for text in (*(text for library in libraries for text in library.texts), *shims):
        unit.link_in(binding.parse_assembly(text))
    unit.verify()
    for function in unit.functions:
        if not function.is_declaration and not function.name.startswith("stem_"):
            function.linkage = "internal"
    return list(functions), unit


def optimize(unit: Any, machine: Any) -> None:
    """Optimize an LLVM module in place for a target machine.

    Raises KernelError if the code needs anything from outside: nothing could be linked to it.
    """
    from llvmlite import binding

    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(unit, builder)
    for function in unit.functions:
        known = function.name.startswith("llvm.") or function.name in MEMORY_FUNCTIONS
        if function.is_declaration and not known:
            raise KernelError(f"Kernels must not call {function.name}, which is not among them.")


@cache
def _library_class() -> Any:
    from numba.core.codegen import CodeLibrary, JITCodeLibrary

    class Library(JITCodeLibrary):  # type: ignore[misc]
        """Keeps the text of one function and the libraries of those that it calls."""

        def __init__(self, *args: Any) -> None:
            CodeLibrary.__init__(self, *args)
            self.texts: list[str] = []
            self.called: list[Any] = []

        def add_ir_module(self, ir_module: Any) -> None:
            self.texts.append(str(ir_module))

        def add_linking_library(self, library: Any) -> None:
            if isinstance(library, Library):  # and not numba's runtime, which kernels never call
                self.called.append(library)

        def finalize(self) -> None:
            self._finalized = True

        def get_pointer_to_function(self, _name: str) -> int:
            return 0

    return Library


@contextmanager
def _translation_only() -> Iterator[None]:
    """Let numba's compilations end with LLVM text, by the few steps that kernels need."""
    from numba.core.compiler import DefaultPassBuilder
    from numba.core.dispatcher import Dispatcher
    from numba.core.registry import cpu_target
    from numba.core.types.misc import unliteral

    # numba's own runtime is made at the first compilation, and must be made in full
    cpu_target.target_context.refresh()
    codegen = cpu_target.target_context.codegen()
    usual_template = Dispatcher.get_call_template

    def get_call_template(self: Any, args: Any, kws: Any) -> Any:
        # a literal argument would get a function of its own, which LLVM can make where it pays
        return usual_template(self, tuple(map(unliteral, args)), kws)

    changes = (
        (codegen, "_library_class", _library_class()),
        (codegen, "set_env", lambda _name, _env: None),
        (DefaultPassBuilder, "define_nopython_pipeline", staticmethod(_pipeline)),
        (Dispatcher, "get_call_template", get_call_template),
    )
    with _replaced(changes):
        yield


@contextmanager
def _replaced(changes: tuple[tuple[Any, str, Any], ...]) -> Iterator[None]:
    before = [vars(place).get(name) for place, name, _ in changes]
    for place, name, value in changes:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(changes, before, strict=True):
            if value is None:
                delattr(place, name)
            else:
                setattr(place, name, value)


def _pipeline(_state: Any, name: str = "nopython") -> Any:
    """Numba's passes without those for what kernels do not use: closures, literals, arrays."""
    from numba.core import typed_passes, untyped_passes
    from numba.core.compiler_machinery import PassManager

    passes = PassManager(name)
    for step in (
        untyped_passes.TranslateByteCode,
        untyped_passes.FixupArgs,
        untyped_passes.IRProcessing,
        untyped_passes.GenericRewrites,
        untyped_passes.ReconstructSSA,
        typed_passes.NopythonTypeInference,
        typed_passes.PreLowerStripPhis,
        typed_passes.IRLegalization,
        typed_passes.AnnotateTypes,
        typed_passes.NativeLowering,
        typed_passes.NoPythonBackend,
    ):
        passes.add_pass(step, step.__name__)
    passes.finalize()
    return passes


def _gather(library: Any, found: dict[Any, None]) -> None:
    """Add a library and all that it calls, once each."""
    if library not in found:
        found[library] = None
        for called in library.called:
            _gather(called, found)


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


def main() -> None:
    module, variant = sys.argv[1:]
    output = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing that a library prints may get between the bytes
    output.write(sealed(compile_unit(module, variant)))


if __name__ == "__main__":
    main()
