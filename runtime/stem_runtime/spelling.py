"""How the vocabulary of a tokenizer.json spells bytes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from .errors import UnsupportedError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """Read from the decoder of a tokenizer.json. Raises UnsupportedError for one of other rules."""

    def __init__(self, backend: Backend) -> None:
        self.byte_level = False
        self.byte_fallback = False
        self.strips_space = False
        self.replacements: list[tuple[str, str]] = []
        decoder = json.loads(state(backend.decoder) or b"{}")
        steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
        for step in steps:
            self._read(step)

    def _read(self, step: dict[str, Any]) -> None:
        kind = step.get("type")
        if kind == "ByteLevel":
            self.byte_level = True
        elif kind == "ByteFallback":
            self.byte_fallback = True
        elif kind == "Replace" and "String" in step["pattern"]:
            self.replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "Strip" and step["content"] == " ":
            self.strips_space = step["start"] > 0
        elif kind == "Metaspace":
            self.replacements.append((step["replacement"], " "))
            self.strips_space = step.get("prepend_scheme", "always") != "never"
        elif kind != "Fuse":
            raise UnsupportedError(
                f"The tokenizer decodes by {kind or 'no rule'!r}, which is not supported; "
                "supported are byte-level and SentencePiece-style tokenizers."
            )

    def spell(self, text: str, *, raw: bool) -> bytes:
        """Return the bytes of the token `text`; `raw` tokens hold plain text."""
        if self.byte_level:
            if raw or not _BYTE_OF.keys() >= set(text):
                return text.encode()
            return bytes(map(_BYTE_OF.__getitem__, text))
        if self.byte_fallback and not raw and (byte := _BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(byte[1])
        for old, new in self.replacements:
            text = text.replace(old, new)
        return text.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: those Latin-1 prints stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    moved = {chr(0x100 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved


_BYTE_OF = _byte_alphabet()


def state(component: Any) -> bytes:
    """The JSON of a part of a tokenizer, empty for one that it does not have."""
    return component.__getstate__() if component is not None else b""
