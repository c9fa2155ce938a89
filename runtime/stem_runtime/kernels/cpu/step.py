"""The engine's compiled unit: its steps for one instruction set, and the team's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import blocks, decode, ffn, ffn_alone, matmul, prefill, team
from . import layout as L
from .isa import VARIANTS
from .simd import address_of, i64_at


def entries(variant: str) -> dict[str, Callable[..., Any]]:
    """Entries for `load_unit`: decode, prefill, ffn, work (a worker's loop), post (wake it)."""
    isa = VARIANTS[variant]
    barrier, grab, wait_for_job, post_job = team.build(variant)
    multiply, parts = matmul.build(isa), blocks.build(isa)
    sparse_ffn = ffn.build(isa, parts, multiply, barrier)
    decode_step = decode.build(isa, parts, multiply, barrier, sparse_ffn)
    ffn_step = ffn_alone.build(sparse_ffn, barrier)
    prefill_step = prefill.build(parts, multiply, barrier, grab, isa.tokens)

    def run_decode(ctx: Any, tid: int) -> None:
        decode_step(address_of(ctx), tid)

    def run_prefill(ctx: Any, tid: int) -> None:
        prefill_step(address_of(ctx), tid)

    def run_ffn(ctx: Any, tid: int) -> None:
        ffn_step(address_of(ctx), tid)

    def work(ctx: Any, tid: int) -> None:
        while True:
            job = wait_for_job(ctx[L.TEAM], tid)
            if job == L.JOB_DECODE:
                decode_step(address_of(ctx), tid)
            elif job == L.JOB_PREFILL:
                prefill_step(address_of(ctx), tid)
            elif job == L.JOB_FFN:
                ffn_step(address_of(ctx), tid)
            else:
                return

    def post(ctx: Any, job: int) -> None:
        """`job` comes in the thread number's place; the answer goes beside the JOB word."""
        words = i64_at(ctx[L.TEAM])
        words[L.JOB + 1] = post_job(ctx[L.TEAM], ctx[L.THREADS], job)

    return {
        "decode": run_decode,
        "prefill": run_prefill,
        "ffn": run_ffn,
        "work": work,
        "post": post,
    }
