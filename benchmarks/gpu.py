"""How fast and how right a packed model runs on a CUDA GPU.

    python benchmarks/gpu.py MODEL_FOLDER [--gguf MODEL.gguf --llama-python PYTHON]

Greedy tokens and logits beside the CPU engine's; tokens per second of prompts and of decoding, by
itself and in batches, dense and at several shares of active neurons; bytes read per second beside
what the card copies.
With a GGUF of the same model llama.cpp is timed too (its Python package built for CUDA, which then
puts all layers on the card), and, where torch's int4 product takes the model's sizes, a model of
the same sizes as gpt-fast runs it. Prints a Markdown table for docs/gpu.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gpt_fast_int4 import GptFast
from llama_client import Llama
from sides import LlamaSide
from sparse_ffn import neurons_of, plan_of

from stem_runtime.engine import Engine
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.kernels import choose_device
from stem_runtime.sampling_params import SamplingParams

PROMPT, DECODED, PREFILLED, COMPARED = 32, 128, 512, 64
CONTEXT = PREFILLED + DECODED
SHARES = (0.5, 0.3, 0.1)
BATCHES = (1, 4, 8)
FFN = ("gate", "up", "down")
COPIED = 1 << 30
AnyEngine = Engine | GpuEngine
Row = tuple[str, str, float]
"""What was measured, the rate or finding, and bytes per second, or 0 where they are not known."""


def copy_gb_per_second(rounds: int) -> float:
    """Bytes read and written per second while the card copies its own memory: the best round."""
    source = torch.ones(COPIED // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * COPIED / best / 1e9


def agreement(cpu: AnyEngine, gpu: AnyEngine, tokens: list[int]) -> str:
    """How often both find the same likeliest token, and how far their logits lie apart."""
    same, apart = 0, 0.0
    caches = cpu.new_cache(CONTEXT), gpu.new_cache(CONTEXT)
    for token in tokens:
        wanted, found = (e.decode(c, token) for e, c in zip((cpu, gpu), caches, strict=True))
        same += int(wanted.argmax() == found.argmax())
        apart = max(apart, float(np.abs(wanted - found).max() / wanted.std()))
    return (
        f"{same} of {len(tokens)} tokens as on the CPU, logits within {apart:.1e} of their spread"
    )


def decode_seconds(gpu: GpuEngine, tokens: list[int], *, sparse: bool) -> float:
    """Of one token, after a prompt: it is sampled on the card, and nothing else leaves it."""
    cache = gpu.new_cache(CONTEXT)
    gpu.begin_text(cache, SamplingParams(seed=0), tokens[:PROMPT])
    gpu.prefill(cache, tokens[:PROMPT])
    token = gpu.follow(cache, gpu.choose(cache), sparse=sparse)  # the first one records the step
    start = time.perf_counter()
    for _ in range(DECODED - 2):
        token = gpu.follow(cache, token, sparse=sparse)
    return (time.perf_counter() - start) / (DECODED - 2)


def batch_seconds(gpu: GpuEngine, tokens: list[int], batch: int, *, sparse: bool) -> float:
    """Of one token of each of some texts, after prompts; all logits come to the host."""
    caches = gpu.new_caches(batch, CONTEXT)
    for shift, cache in enumerate(caches):
        gpu.prefill(cache, tokens[shift : shift + PROMPT])
    rows = [tokens[PROMPT + n : PROMPT + n + batch] for n in range(DECODED)]
    gpu.decode_batch(caches, rows[0], sparse=sparse)
    start = time.perf_counter()
    for row in rows[1:]:
        gpu.decode_batch(caches, row, sparse=sparse)
    return (time.perf_counter() - start) / (DECODED - 1)


def prefill_seconds(engine: AnyEngine, tokens: list[int]) -> float:
    cache = engine.new_cache(CONTEXT)
    start = time.perf_counter()
    engine.prefill(cache, tokens)
    return time.perf_counter() - start


def median(rounds: int, work: Callable[[], float]) -> float:
    """After one round that does not count."""
    return statistics.median([work() for _ in range(rounds + 1)][1:])


def measured(model: PackedModel, rounds: int) -> Iterator[Row]:
    """All rows of our engine."""
    rng = random.Random(0)
    vocab = model.config.vocab_size
    tokens = [rng.randrange(min(32, vocab // 2), vocab) for _ in range(PREFILLED)]
    choice = choose_device("cuda")
    with GpuEngine(model, choice, neurons=neurons_of(model)) as gpu:
        with Engine(model) as cpu:
            yield "correctness", agreement(cpu, gpu, tokens[:COMPARED]), 0
        seconds = median(rounds, lambda: prefill_seconds(gpu, tokens))
        yield f"prompt of {PREFILLED}", f"{PREFILLED / seconds:,.0f} tok/s", 0
        yield from dense_rows(gpu, tokens, rounds)
        yield from sparse_rows(model, gpu, tokens, rounds)


def dense_rows(gpu: GpuEngine, tokens: list[int], rounds: int) -> Iterator[Row]:
    whole = gpu.weight_bytes_per_token(PROMPT + DECODED // 2)
    seconds = median(rounds, lambda: decode_seconds(gpu, tokens, sparse=False))
    yield "decode, dense", f"{1 / seconds:,.1f} tok/s", whole / seconds
    context = whole - gpu.weight_bytes_per_token(0)
    for batch in BATCHES:
        timed = partial(batch_seconds, gpu, tokens, batch, sparse=False)
        seconds = median(rounds, timed)
        read = whole + (batch - 1) * context
        yield f"decode, batch of {batch}", f"{batch / seconds:,.1f} tok/s", read / seconds


def sparse_rows(
    model: PackedModel, gpu: GpuEngine, tokens: list[int], rounds: int
) -> Iterator[Row]:
    """What several texts read together of the neurons that any of them needs is not counted."""
    whole = gpu.weight_bytes_per_token(PROMPT + DECODED // 2)
    names = [f"layers.{i}.{n}" for i in range(model.config.n_layers) for n in FFN]
    dense = sum(model.matrix(name).nbytes for name in names)
    for share in SHARES:
        gpu.set_plan(plan_of(gpu, tokens[:PROMPT], share))  # type: ignore[arg-type]
        seconds = median(rounds, lambda: decode_seconds(gpu, tokens, sparse=True))
        active = f"{gpu.last_counts[:, 1].mean() / model.config.ffn_dim:.0%} active"
        read = whole - dense + gpu.ffn_bytes(gpu.last_counts)
        yield f"decode, {active}", f"{1 / seconds:,.1f} tok/s", read / seconds
        for batch in BATCHES[1:]:
            timed = partial(batch_seconds, gpu, tokens, batch, sparse=True)
            rate = batch / median(rounds, timed)
            yield f"decode, {active}, batch of {batch}", f"{rate:,.1f} tok/s", 0


def llama_seconds(gguf: Path, python: str, rounds: int, vocab: int) -> float:
    """Of one token by llama.cpp, whole on the card."""
    tokens = [random.Random(1).randrange(32, vocab) for _ in range(DECODED)]
    with Llama(python) as llama:
        side = LlamaSide(llama, threads=1)
        side.open(gguf, CONTEXT)
        side.prefill(tokens[:PROMPT])
        return median(rounds, lambda: side.decode(tokens, PROMPT)) / DECODED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a packed model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    parser.add_argument("--llama-python", help="interpreter with llama-cpp-python for CUDA")
    args = parser.parse_args()
    choice = choose_device("cuda")
    model = open_packed(args.model)
    ceiling = copy_gb_per_second(args.rounds)
    print(f"{torch.cuda.get_device_name()}, {choice.backend}, torch {torch.__version__}; ", end="")
    print(f"copies {ceiling:,.0f} GB/s; medians of {args.rounds} rounds\n")
    print(f"| {model.info['name']} | | GB/s | of copying |\n|---|---|---|---|")

    def show(what: str, found: str, speed: float) -> None:
        rate, share = f"{speed / 1e9:,.0f}", f"{speed / 1e9 / ceiling:.0%}"
        print(
            f"| {what} | {found} | {rate if speed else ''} | {share if speed else ''} |", flush=True
        )

    for row in measured(model, args.rounds):
        show(*row)
    if args.gguf and args.llama_python:
        vocab = model.config.vocab_size
        seconds = llama_seconds(args.gguf, args.llama_python, args.rounds, vocab)
        show("decode, llama.cpp", f"{1 / seconds:,.1f} tok/s", args.gguf.stat().st_size / seconds)
    if model.config.d_model % 64 == 0 and model.config.ffn_dim % 64 == 0:
        fast = GptFast(model.config, CONTEXT)
        tokens = list(range(DECODED))
        seconds = median(args.rounds, lambda: fast.seconds_per_token(tokens, PROMPT))
        show("decode as gpt-fast, int4", f"{1 / seconds:,.1f} tok/s", fast.nbytes / seconds)


if __name__ == "__main__":
    main()
