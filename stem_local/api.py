"""The calls that a script makes: load a model, or just generate with one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Unpack, overload

from stem_runtime.cache_kinds import DEFAULT, CacheKind, check_kind
from stem_runtime.errors import KernelError
from stem_runtime.forking import new_lock
from stem_runtime.formats.packed import open_packed
from stem_runtime.kernels import Device, DeviceChoice, choose_device, on_cpu
from stem_runtime.kernels import choose as choose_kernels
from stem_runtime.limits import Limit
from stem_runtime.tokenizer import Tokenizer

from . import store
from .chat import Prompt
from .completion import Completion
from .equipment import BARE, build_engine
from .generate_options import GenerateOptions
from .generation import Stream
from .machine import GPU_MEMORY
from .model import Model
from .sparsity import QUALITY, Calibrated, Sparsity, check_quality, check_sparsity

DEFAULT_CONTEXT = 8192
"""Tokens a model's KV cache holds unless asked otherwise, or its own limit where that is less."""

_loaded: dict[Path, Model] = {}
_loading = new_lock()


def _forget() -> None:
    """Let a forked process load models of its own, since threads do not come along."""
    _loaded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def load(
    model: str | Path | None = None,
    *,
    threads: int | None = None,
    context: int | None = None,
    kernels: str | None = None,
    device: Device = "auto",
    gpu_memory: float | None = None,
    kv_cache: CacheKind | None = None,
    sparsity: Sparsity = "auto",
    quality: float = QUALITY,
    notify: Callable[[str], None] | None = None,
) -> Model:
    """Open an installed model, by name or by the path of its packed folder; None is the default.

    `threads` defaults to the physical cores. `context` is how many tokens of prompt and answer
    there is room for: 8192 unless told, and never more than the model was made for; memory for it
    is used only as it fills. `kernels` names a kernel variant instead of the best one here.
    `device` is "cpu", "cuda" or "mps"; "auto" is a CUDA card where one can be used, else the CPU.
    Of a card all memory that is free may be taken, or `gpu_memory` GB (1e9 bytes); layers or
    neurons that have no room there stay on the CPU, and `Model.info.placement` says which.
    `kv_cache` is what it keeps of the tokens read: "fp16", or "int8" on the CPU, which takes little
    more than half the memory and makes long conversations faster. None is "fp16".
    `sparsity` is what its answers leave out unless they are asked for otherwise: "auto" what its
    calibration showed not to matter, where that is faster, "off" nothing, 0.0 to 0.95 that share
    of the neurons. `quality` is how much of its perplexity auto may add (0.01 is +1%).
    `notify` receives a sentence when the kernels have to be compiled, which takes a while and
    happens once per machine; without it, a terminal is told. Raises NotInstalledError,
    FormatError, UsageError, KernelError.
    """
    folder = store.resolve(model)
    packed = open_packed(folder)
    longest = packed.config.context_length
    if context is None:
        context = min(longest, DEFAULT_CONTEXT)
    else:
        context = Limit(2, longest, whole=True).check("context", context)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", packed.info["tokenizer"])
    notify = notify or _tell
    sparsity, quality = check_sparsity(sparsity), check_quality(quality)
    check_kind(kv_cache or DEFAULT)

    def start(place: DeviceChoice) -> Model:
        variant = choose_kernels(kernels).name if place.backend == "cpu" else place.name
        calibrated = Calibrated(packed, variant)
        equipped = BARE.with_(calibrated.choose(sparsity, quality))
        engine = build_engine(
            packed,
            calibrated,
            equipped,
            context=context,
            threads=threads,
            kernels=kernels,
            kv_cache=kv_cache or (DEFAULT if place.backend == "cpu" else "fp16"),
            device=place,
            notify=notify,
        )
        return Model(
            packed,
            engine,
            tokenizer,
            context,
            notify,
            device=place,
            threads=threads,
            calibrated=calibrated,
            equipped=equipped,
            sparsity=sparsity,
            quality=quality,
        )

    limit = None
    if gpu_memory is not None:
        limit = round(GPU_MEMORY.check("gpu_memory", gpu_memory) * 1e9)
    place = choose_device(device if kernels is None else "cpu", limit)
    try:
        return start(place)
    except KernelError as error:
        if device != "auto" or place.backend == "cpu":
            raise
        return start(on_cpu(str(error)))


@overload
def generate(
    prompt: Prompt,
    *,
    model: str | Path | Model | None = None,
    system: str | None = None,
    raw: bool = False,
    stream: Literal[False] = False,
    **options: Unpack[GenerateOptions],
) -> Completion: ...
@overload
def generate(
    prompt: Prompt,
    *,
    model: str | Path | Model | None = None,
    system: str | None = None,
    raw: bool = False,
    stream: Literal[True],
    **options: Unpack[GenerateOptions],
) -> Stream: ...
@overload
def generate(
    prompt: Prompt,
    *,
    model: str | Path | Model | None = None,
    system: str | None = None,
    raw: bool = False,
    stream: bool,
    **options: Unpack[GenerateOptions],
) -> Completion | Stream: ...
def generate(
    prompt: Prompt,
    *,
    model: str | Path | Model | None = None,
    system: str | None = None,
    raw: bool = False,
    stream: bool = False,
    **options: Unpack[GenerateOptions],
) -> Completion | Stream:
    """Answer a prompt with a model that is loaded once per process.

    A string is one user message in the model's chat template, or with `raw`, and for a model
    without a template, the text to continue. A list of messages is a conversation.

    Options: `max_tokens` (512), `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`,
    `seed` (same seed, same text, with the same kernels), `stop` (strings that end the
    answer and are left out of it), `logprobs` (how many of the likeliest tokens to report at every
    place), `cancel` (a threading.Event or a function, asked between tokens), `context_policy`
    ("stop", or "drop_oldest" to leave out the oldest turns of a conversation that outgrows the
    context), `sparsity` ("auto" leaves out neurons and rows of the output head where the model was
    calibrated, quality allows it and that is faster, "off" nothing, 0.0 to 0.95 that share of the
    neurons; `stats.sparsity` says what and why), `quality` (how much of its perplexity auto may
    add: 0.01 is +1%), `draft` (True: guess the next tokens from the text so far and read them
    along, on the CPU and where that saves time; it changes no token).

    Returns a Completion, or with `stream` a Stream, which is an iterator of Chunks. Raises
    TypeError for an unknown option, UsageError for a bad one, NotInstalledError, ContextFullError.
    """
    chosen = model if isinstance(model, Model) else _shared(model)
    return chosen.generate(prompt, system=system, raw=raw, stream=stream, **options)


def stream(
    prompt: Prompt,
    *,
    model: str | Path | Model | None = None,
    system: str | None = None,
    raw: bool = False,
    **options: Unpack[GenerateOptions],
) -> Stream:
    """`generate(..., stream=True)`: the answer piece by piece."""
    return generate(prompt, model=model, system=system, raw=raw, stream=True, **options)


def _tell(text: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr)


def _shared(name: str | Path | None) -> Model:
    """The process's own copy of a model, loaded at its first use."""
    folder = store.resolve(name)
    with _loading:
        model = _loaded.get(folder)
        if model is None or model.closed:
            model = _loaded[folder] = load(folder)
        return model
