"""Run language models on your own machine.

    import stem_local

    print(stem_local.generate("Why is the sky blue?"))

Everything below is loaded on first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from stem_runtime.errors import StemError

    from .api import generate, load, stream
    from .chat import Message, Session
    from .completion import Chunk, Completion
    from .generate_options import GenerateOptions
    from .generation import Stream
    from .hub import pull
    from .model import Model

__all__ = [
    "Chunk",
    "Completion",
    "GenerateOptions",
    "Message",
    "Model",
    "Session",
    "StemError",
    "Stream",
    "__version__",
    "generate",
    "load",
    "pull",
    "stream",
]

_HOMES = {
    "Chunk": "stem_local.completion",
    "Completion": "stem_local.completion",
    "GenerateOptions": "stem_local.generate_options",
    "Message": "stem_local.chat",
    "Model": "stem_local.model",
    "Session": "stem_local.chat",
    "StemError": "stem_runtime.errors",
    "Stream": "stem_local.generation",
    "generate": "stem_local.api",
    "load": "stem_local.api",
    "pull": "stem_local.hub",
    "stream": "stem_local.api",
}


if not TYPE_CHECKING:  # a checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'stem_local' has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
