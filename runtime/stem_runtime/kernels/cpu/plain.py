"""What the compiled Python between the kernels needs everywhere."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

from .simd import Builder, exp, f32_at, ir, splat, types
from .vector import helper

MASKED = -1e30


@intrinsic
def exp_of(_context: Any, _x: Any) -> Any:
    """e**x of one float32."""

    def codegen(_context: Any, b: Builder, _signature: Any, args: Any) -> Any:
        return b.extract_element(exp(b, splat(b, args[0])), ir.Constant(ir.IntType(32), 0))

    return types.float32(types.float32), codegen


@helper
def clear(address: int, floats: int) -> None:
    values = f32_at(address)
    for i in range(floats):
        values[i] = 0.0


@helper
def copy(source: int, target: int, floats: int) -> None:
    x, y = f32_at(source), f32_at(target)
    for i in range(floats):
        y[i] = x[i]


@helper
def share(total: int, tid: int, threads: int) -> tuple[int, int]:
    """The range of `total` equal pieces that belongs to one thread."""
    return total * tid // threads, total * (tid + 1) // threads
