"""How much longer than its input a tokenizer.json may make a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FormatError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

MAX_GROWTH = 64
"""Steps that double a text, one after the other, would soon take all memory."""


def check_growth(path: Path, backend: Backend) -> None:
    """Raises FormatError where the normalizer's or the decoder's replacements make too much."""
    for name in ("normalizer", "decoder"):
        part = getattr(backend, name)
        if part is not None and (growth := _growth(json.loads(part.__getstate__()))) > MAX_GROWTH:
            raise FormatError(
                f"{path}: its {name} makes texts {growth:.0f} times as long; up to {MAX_GROWTH} "
                f"times is supported."
            )


def _growth(step: dict[str, Any]) -> float:
    """The most characters that one becomes."""
    total = 1.0
    for inner in step.get("normalizers") or step.get("decoders") or ():
        total *= _growth(inner)
    if step.get("type") == "Replace":
        # a regular expression may match what is empty, before every character
        length = len(step["pattern"].get("String", ""))
        total *= max(1.0, len(step["content"]) / length if length else 1 + len(step["content"]))
    return total
