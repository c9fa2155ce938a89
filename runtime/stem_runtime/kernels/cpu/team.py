"""The thread team: every thread runs the same function and meets the others at barriers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import layout as L
from .simd import I64, Builder, call, const, i64_at, pointer
from .vector import helper

_SPINS_BEFORE_YIELD = 2048


def _atomic(values: int, result: Any, emit: Any) -> Any:
    """Intrinsic (address of an int64, *values) for one atomic operation."""

    def make(signature: Any) -> Any:
        def codegen(context: Any, b: Builder, _signature: Any, args: Any) -> Any:
            out = emit(b, pointer(b, args[0], I64), *args[1:])
            return context.get_dummy_value() if out is None else out

        return signature, codegen

    if values == 0:
        return intrinsic(lambda _context, _address: make(result(types.int64)))
    if values == 1:
        return intrinsic(lambda _context, _address, _value: make(result(types.int64, types.int64)))
    signature = result(types.int64, types.int64, types.int64)
    return intrinsic(lambda _context, _address, _old, _new: make(signature))


def _store(b: Builder, target: Any, value: Any) -> None:
    b.store_atomic(value, target, "seq_cst", 8)


def _swap_if(b: Builder, target: Any, old: Any, new: Any) -> Any:
    pair = b.cmpxchg(target, old, new, "seq_cst", "seq_cst")
    return b.zext(b.extract_value(pair, 1), I64)


atomic_load = _atomic(0, types.int64, lambda b, target: b.load_atomic(target, "seq_cst", 8))
atomic_add = _atomic(1, types.int64, lambda b, target, v: b.atomic_rmw("add", target, v, "seq_cst"))
atomic_swap = _atomic(
    1, types.int64, lambda b, target, v: b.atomic_rmw("xchg", target, v, "seq_cst")
)
atomic_store = _atomic(1, types.void, _store)
atomic_swap_if = _atomic(2, types.int64, _swap_if)


def _pause_kernel(name: str) -> Any:
    def typed(_context: Any) -> Any:
        def codegen(context: Any, b: Builder, _signature: Any, _args: Any) -> Any:
            if name == "neon":
                call(b, "llvm.aarch64.hint", ir.VoidType(), [const(ir.IntType(32), 1)])
            elif name != "portable":
                call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
            return context.get_dummy_value()

        return types.void(), codegen

    return intrinsic(typed)


@intrinsic
def _call_yield(_context: Any, _address: Any) -> Any:
    """Call a C function without arguments, such as sched_yield, by its address."""

    def codegen(context: Any, b: Builder, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        b.call(b.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def build(variant: str) -> tuple[Any, Any, Any, Any]:
    """Return (barrier, grab, wait_for_job, post) for use inside kernels."""
    pause = _pause_kernel(variant)

    @helper
    def relax(team: int, spins: int) -> int:
        pause()
        spins += 1
        if spins >= _SPINS_BEFORE_YIELD:
            # more threads than free cores: let the one that is waited for run
            give_way = i64_at(team)[L.YIELD]
            if give_way != 0:
                _call_yield(give_way)
        return spins

    @helper
    def barrier(team: int, threads: int) -> None:
        if threads == 1:
            atomic_store(team + 8 * L.COUNTER, 0)
            return
        phase = atomic_load(team + 8 * L.PHASE)
        if atomic_add(team + 8 * L.ARRIVED, 1) == threads - 1:
            atomic_store(team + 8 * L.ARRIVED, 0)
            atomic_store(team + 8 * L.COUNTER, 0)
            atomic_store(team + 8 * L.PHASE, phase + 1)
            return
        spins = 0
        while atomic_load(team + 8 * L.PHASE) == phase:
            spins = relax(team, spins)

    @helper
    def grab(team: int) -> int:
        """The next piece of work of this phase; every barrier starts again from 0."""
        return atomic_add(team + 8 * L.COUNTER, 1)

    @helper
    def wait_for_job(team: int, tid: int) -> int:
        """Spin for the next job; -1 when idle too long and the thread should sleep in Python."""
        words = i64_at(team)
        own = L.WORKERS + tid * L.WORKER_WORDS
        state = team + 8 * (own + L.STATE)
        seen = words[own + L.SEEN]
        spins = 0
        while atomic_load(team + 8 * L.GENERATION) == seen:
            spins = relax(team, spins)
            if spins >= words[L.IDLE_SPINS]:
                spins = 0
                if atomic_swap_if(state, L.AWAKE, L.ASLEEP) == 0:
                    return -1
                if atomic_load(team + 8 * L.GENERATION) == seen:
                    return -1
                # a job came in between; unless its poster already saw us asleep, take it now
                if atomic_swap_if(state, L.ASLEEP, L.AWAKE) == 0:
                    return -1
        words[own + L.SEEN] = seen + 1
        return words[L.JOB]

    @helper
    def post(team: int, threads: int, job: int) -> int:
        """Announce a job. Returns a bit per thread that sleeps and must be woken from Python."""
        i64_at(team)[L.JOB] = job
        atomic_add(team + 8 * L.GENERATION, 1)
        asleep = 0
        for tid in range(1, threads):
            state = team + 8 * (L.WORKERS + tid * L.WORKER_WORDS + L.STATE)
            if atomic_swap(state, L.AWAKE) == L.ASLEEP:
                asleep |= 1 << tid
        return asleep

    return barrier, grab, wait_for_job, post
