"""A unit that exposes single kernels to tests. Every entry takes its arguments from the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stem_runtime.kernels.cpu import (
    attention8,
    blocks,
    cache8,
    columns,
    head_rows,
    layout,
    masks,
    matmul,
    neuron,
    rows,
    vector,
)
from stem_runtime.kernels.cpu.attend import begin, end_of_chunk, join
from stem_runtime.kernels.cpu.attention import score_kernel, value_kernel
from stem_runtime.kernels.cpu.isa import VARIANTS
from stem_runtime.kernels.cpu.simd import (
    V16I16,
    half_to_float,
    i64_at,
    kernel,
    load,
    offset,
    store,
)
from stem_runtime.kernels.cpu.vector import float_of_bits

SCORE_ROWS = (8, 4, 3, 2, 1)
VALUE_SHAPES = tuple((rows, vectors) for rows in (4, 3, 2, 1) for vectors in (4, 1))

_ENTRIES: dict[int, Callable[[Any], Callable[..., Any]]] = {
    2: lambda f: lambda c, _tid: f(c[0], c[1]),
    3: lambda f: lambda c, _tid: f(c[0], c[1], c[2]),
    4: lambda f: lambda c, _tid: f(c[0], c[1], c[2], c[3]),
    5: lambda f: lambda c, _tid: f(c[0], c[1], c[2], c[3], c[4]),
    6: lambda f: lambda c, _tid: f(c[0], c[1], c[2], c[3], c[4], c[5]),
    7: lambda f: lambda c, _tid: f(c[0], c[1], c[2], c[3], c[4], c[5], c[6]),
    8: lambda f: lambda c, _tid: f(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]),
    9: lambda f: lambda c, _tid: f(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]),
    10: lambda f: lambda c, _tid: f(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9]),
    12: lambda f: (
        lambda c, _tid: f(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], c[10], c[11])
    ),
}


def _from_half(native: bool) -> Any:
    """Intrinsic (bits, out, n/16): float16 bits to float32."""

    def emit(b: Any, bits: Any, out: Any, vectors: Any) -> None:
        from stem_runtime.kernels.cpu.simd import counted_loop

        with counted_loop(b, vectors, []) as (i, _, _):
            half = load(b, offset(b, bits, i, 32), V16I16)
            store(b, half_to_float(b, half, native), offset(b, out, i, 64))

    return kernel(emit, 3)


def entries(variant: str) -> dict[str, Callable[..., Any]]:
    isa = VARIANTS[variant]
    parts = blocks.build(isa)
    embed, keep, ready, attend = parts.embed, parts.keep, parts.ready, parts.attend
    rope_head, deal = blocks.rope_head, masks.deal

    def run_embed(c: Any, _tid: int) -> None:
        embed(i64_at(c[0]), c[1], c[2])

    def run_keep(c: Any, _tid: int) -> None:
        keep(i64_at(c[0]), c[1], c[2], c[3], c[4], c[5], c[6], c[7])

    def run_rope(c: Any, _tid: int) -> None:
        rope_head(i64_at(c[0]), c[1], c[2], c[3], c[4], float_of_bits(c[5]), c[6])

    def run_attend(c: Any, _tid: int) -> None:
        args, rows, block, acc, stats, part = i64_at(c[0]), c[4], c[7], c[9], c[10], c[12]
        pad = args[layout.HEAD_PAD]
        sums = part + 4 * pad * rows
        ready(args, c[3], rows, c[11])
        for row in range(rows):
            begin(stats + 8 * row, acc + 4 * pad * row, pad)
        while block < c[8]:
            stop = end_of_chunk(block, c[8])
            attend(args, c[1], c[2], c[3], rows, c[5], c[6], block, stop, part, sums, c[11])
            for row in range(rows):
                at, line = 8 * row, 4 * pad * row
                join(stats + at, acc + line, sums + at, part + line, pad)
            block = stop

    def run_deal(c: Any, _tid: int) -> None:
        share = i64_at(c[4])
        share[0], share[1] = deal(c[0], c[1], c[2], c[3])

    kernels: dict[str, tuple[Any, int]] = {
        "quantize": (vector.quantize_group, 5),
        "take_largest": (vector.take_largest, 3),
        "rms_norm": (vector.rms_norm, 6),
        "axpy": (vector.axpy, 4),
        "exp_scores": (vector.exp_scores, 4),
        "max_scores": (vector.max_scores, 3),
        "passing": (neuron.passing, 3),
        "keep_masked": (neuron.keep_masked, 2),
        "spread": (neuron.spread, 3),
        "weigh": (neuron.weigh, 3),
        "total": (neuron.total, 2),
        "head_rows": (head_rows.head_rows_kernel(isa), 6),
    }
    for kind in matmul.KINDS:
        for tokens in {*layout.STEP_WIDTHS, isa.tokens}:
            kernels[f"tile_{kind}_{tokens}"] = matmul.tile_kernel(isa, kind, tokens), 10
        kernels[f"rows_{kind}"] = rows.rows_kernel(isa, kind), 8
        kernels[f"columns_{kind}"] = columns.columns_kernel(isa, kind), 12
    for name, gate in vector.gate_kernels.items():
        kernels[f"gate_{name}"] = gate, 5
    for native in {isa.native_half, False}:
        kernels[f"to_half_{native}"] = vector.to_half_kernel(native), 3
        kernels[f"from_half_{native}"] = _from_half(native), 3
    for count in SCORE_ROWS:
        kernels[f"score_{count}"] = score_kernel(count, isa.native_half), 6
    for count, vectors in VALUE_SHAPES:
        kernels[f"value_{count}_{vectors}"] = value_kernel(count, vectors, isa.native_half), 7
    for count in range(1, attention8.value_rows(isa) + 1):
        kernels[f"value8_{count}"] = attention8.value_kernel(isa, count), 8
    for native in {isa.native_half, False}:
        kernels[f"round8_{native}"] = cache8.round_kernel(native), 3
    calls = {name: _ENTRIES[count](intrinsic) for name, (intrinsic, count) in kernels.items()}
    return calls | {
        "embed": run_embed,
        "keep": run_keep,
        "rope_head": run_rope,
        "attend": run_attend,
        "deal": run_deal,
    }
