"""One question from the command line or a pipe: its text, and the model that answers it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stem_runtime.errors import UsageError

from . import catalog
from .cli_types import as_text
from .errors import NotInstalledError
from .terminal import interruptible, tell

if TYPE_CHECKING:
    from stem_runtime.cache_kinds import CacheKind
    from stem_runtime.kernels import Device

    from .model import Model
    from .sparsity import Sparsity
    from .store import InstalledModel

MAX_INPUT = 16 << 20


def piped_input() -> str | None:
    """All of standard input, None when it is a terminal or closed."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise UsageError(f"Standard input is over {MAX_INPUT >> 20} MB; no context holds that.")
    # Windows marks the start of a text, and ends its lines otherwise
    return data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")


def full_prompt(prompt: str | None, piped: str | None) -> str | None:
    """The prompt and what was piped in as one text; None means to chat."""
    if piped is None and prompt is None:
        return None
    parts = [part for part in (prompt, (piped or "").rstrip("\r\n")) if part and part.strip()]
    if not parts:
        raise UsageError("The prompt is empty.")
    return as_text("\n\n".join(parts))


def open_model(
    name: str | None,
    *,
    threads: int | None,
    context: int | None,
    kernels: str | None,
    device: Device,
    gpu_memory: float | None,
    kv_cache: CacheKind | None,
    sparsity: Sparsity,
    quality: float,
) -> Model:
    """Load a model; the default one is fetched first if it is missing and someone is watching."""
    from .api import load

    def opened() -> Model:
        return load(
            name,
            threads=threads,
            context=context,
            kernels=kernels,
            device=device,
            gpu_memory=gpu_memory,
            kv_cache=kv_cache,
            sparsity=sparsity,
            quality=quality,
        )

    try:
        return opened()
    except NotInstalledError:
        entry = catalog.find(name or catalog.DEFAULT_MODEL)
        if entry is None or entry.name != catalog.DEFAULT_MODEL or not watched():
            raise
    tell(f"The default model {entry.name} is not on this machine yet; getting it, once.")
    fetch(entry.name)
    return opened()


def watched() -> bool:
    """Whether a person reads what is told on standard error."""
    return sys.stderr.isatty()


def fetch(
    spec: str,
    *,
    quant: str | None = None,
    name: str | None = None,
    force: bool = False,
    calibrate: bool = True,
) -> InstalledModel:
    """`hub.pull`, shown on standard error. Ctrl-C ends it; once installed, calibrating only."""
    from .commands._output import Bar
    from .hub import pull
    from .learning import learn

    with Bar() as bar:
        model = pull(spec, quant=quant, name=name, progress=bar, force=force, calibrate=False)
        if calibrate:
            with interruptible() as cancel:
                learn(model, bar, cancel.is_set)
    return model
