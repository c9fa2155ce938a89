"""Reading memory as the matrices of a decode step are read, and doing next to nothing with it."""

from __future__ import annotations

import numba

from .simd import I64, Builder, Value, const, counted_loop, ir, kernel, load, offset, store
from .vector import FETCH_AHEAD, fetch_lines

BLOCK_BYTES = 512
_LINE = ir.VectorType(I64, 8)


def _emit_sum(b: Builder, address: Value, blocks: Value, out: Value) -> None:
    lines = BLOCK_BYTES // 64
    with counted_loop(b, blocks, [const(_LINE, 0)] * lines) as (i, sums, results):
        here = offset(b, address, i, BLOCK_BYTES)
        fetch_lines(b, b.add(here, const(I64, FETCH_AHEAD)), BLOCK_BYTES)
        for line, so_far in enumerate(sums):
            place = b.add(here, const(I64, 64 * line))
            results.append(b.add(so_far, load(b, place, _LINE)))
    for line, total in enumerate(results):
        store(b, total, b.add(out, const(I64, 64 * line)))


_sum_blocks = kernel(_emit_sum, 3)


@numba.njit(nogil=True)
def sum_blocks(address: int, blocks: int, out: int) -> None:
    """Lane sums, int64 [64], of int64 [blocks, 64] at `address`, to `out`; all are addresses."""
    _sum_blocks(address, blocks, out)
