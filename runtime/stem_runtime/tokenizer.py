"""Text to token ids and back, on top of the `tokenizers` library.

Ordinary text never becomes a control token unless the caller asks for it, and decoding goes through
one table of bytes, so that text can be streamed token by token at no cost.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from . import tokenizer_gguf
from .errors import FormatError, UsageError
from .forking import new_lock
from .spelling import Spelling, state
from .tokenizer_bounds import check_growth
from .tokenizer_gguf import END_TEXTS

MAX_FILE_BYTES = 128 << 20
MAX_CONFIG_BYTES = 16 << 20
MAX_TEXT_CHARS = 1 << 25
_REPLACEMENT = "\ufffd".encode()


class Tokenizer:
    """A vocabulary and its rules.

    `bos` is the id that begins a text (None without one), `add_bos` whether a prompt must start
    with it, `eos` the ids of which any one ends an answer. Safe to use from several threads.
    """

    def __init__(
        self, backend: Backend, *, bos: int | None, eos: Iterable[int], add_bos: bool
    ) -> None:
        backend.no_truncation()  # a tokenizer.json may ask for either, and both alter text silently
        backend.no_padding()
        self.bos = bos
        self.eos = frozenset(eos)
        self.add_bos = add_bos and bos is not None
        self.vocab_size = backend.get_vocab_size()
        self._backend = backend
        self._added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        self._spelling = Spelling(backend)
        self._bytes: dict[int, bytes] = {}
        self._lock = new_lock()

    @classmethod
    def from_file(cls, path: Path, info: Mapping[str, Any]) -> Tokenizer:
        """Load a tokenizer.json with the special ids of `info`: bos, eos, add_bos (see `info`).

        Raises FormatError, UnsupportedError.
        """
        backend = _read_backend(path)
        size = backend.get_vocab_size()
        bos, eos, add_bos = info.get("bos"), info.get("eos"), info.get("add_bos")
        if not isinstance(eos, list) or not isinstance(add_bos, bool):
            raise FormatError(f"{path}: its special tokens (eos, add_bos) are missing or mistyped.")
        for token in [*eos, *([] if bos is None else [bos])]:
            # ids may have holes, so that the last ones are beyond their number
            if type(token) is not int or not (0 <= token < size or _is_token(backend, token)):
                raise FormatError(f"{path}: special token {token!r} is not one of its {size} ids.")
        return cls(backend, bos=bos, eos=eos, add_bos=add_bos)

    @classmethod
    def from_gguf(cls, meta: Mapping[str, Any]) -> Tokenizer:
        """Build from GGUF metadata: keys `tokenizer.ggml.*` to Python values and sequences.

        Raises FormatError, UnsupportedError.
        """
        backend = tokenizer_gguf.build(meta)
        size = backend.get_vocab_size()
        ends = [tokenizer_gguf.special_id(meta, name, size) for name in ("eos", "eot", "eom")]
        return cls(
            backend,
            bos=tokenizer_gguf.special_id(meta, "bos", size),
            eos={token for token in ends if token is not None} | _known_ends(backend),
            add_bos=tokenizer_gguf.adds_bos(meta),
        )

    @classmethod
    def from_hf(cls, folder: Path) -> Tokenizer:
        """Load from a Hugging Face folder: tokenizer.json, and the configs beside it if there.

        Raises FormatError, UnsupportedError.
        """
        backend = _read_backend(folder / "tokenizer.json")
        names = ("tokenizer_config.json", "special_tokens_map.json")
        settings = [_read_config(folder / name) for name in names]
        models = [_read_config(folder / name) for name in ("generation_config.json", "config.json")]
        bos, *_ = [*_named(backend, settings, models, "bos"), None]
        add_bos = settings[0].get("add_bos_token")
        if not isinstance(add_bos, bool):
            start = _ids(backend, "", True)[:1]
            add_bos = bos is not None and start == [bos]
        eos = {*_named(backend, settings, models, "eos"), *_known_ends(backend)}
        return cls(backend, bos=bos, eos=eos, add_bos=add_bos)

    @property
    def info(self) -> dict[str, Any]:
        """What `from_file` needs besides the file."""
        return {"bos": self.bos, "eos": sorted(self.eos), "add_bos": self.add_bos}

    @property
    def last_id(self) -> int:
        """The largest id that texts can have, but for those of tokens that were added."""
        ids = self._backend.get_vocab(with_added_tokens=False).values()
        return max(*ids, self.bos if self.add_bos and self.bos is not None else 0, 0)

    @cached_property
    def control(self) -> dict[str, int]:
        """Texts of the control tokens and their ids."""
        return {token.content: i for i, token in self._added.items() if token.special}

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches the control tokens in a text as `encode(..., special=True)` does.

        Group 1 is the token, without the blanks around it that some tokens swallow.
        """
        tokens = [token for token in self._added.values() if token.special]
        options = [
            # from the first blank on: beginning at each of many takes their number squared
            (r"(?:(?<!\s)\s+)?" if token.lstrip else "")
            + f"({re.escape(token.content)})"
            + (r"\s*" if token.rstrip else "")
            for token in sorted(tokens, key=lambda token: -len(token.content))
        ]
        return re.compile("|".join(options) or r"(?!)")

    @cached_property
    def control_edges(self) -> tuple[frozenset[str], frozenset[str], int]:
        """Proper beginnings and endings of the control tokens' texts, and the longest text."""
        heads = {text[:cut] for text in self.control for cut in range(1, len(text))}
        tails = {text[cut:] for text in self.control for cut in range(1, len(text))}
        return frozenset(heads), frozenset(tails), max(map(len, self.control), default=0)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of `text`, without a begin token.

        Control tokens spelled out in `text` stay plain text unless `special`. Raises UsageError.
        """
        if not isinstance(text, str):
            raise UsageError(f"Only a text can be tokenized, not {text!r:.40}.")
        if len(text) > MAX_TEXT_CHARS:
            raise UsageError(
                f"The text has {len(text)} characters; at most {MAX_TEXT_CHARS} can be tokenized."
            )
        return self._encode(self._backend, text, special)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Return the ids of plain texts with control tokens (ids) between them.

        The same as encoding everything joined with `special=True`, but for control tokens spelled
        out in the texts, which stay text.
        """
        ids: list[int] = []
        for place, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode(self._inner if place else self._backend, part, False)
        return ids

    def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
        """Return the text of `ids`; control tokens have none, invalid UTF-8 becomes U+FFFD.

        `continues`: the ids go on from earlier text, so that a leading space is part of them.
        """
        stream = self.stream(continues=continues)
        return "".join(map(stream.push, ids)) + stream.flush()

    def stream(self, *, continues: bool = False) -> TextStream:
        """Return a decoder to be fed token by token; its pieces join to what `decode` returns."""
        return TextStream(self, strip=self._spelling.strips_space and not continues)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds to the text: none for a control token.

        An id inside the model's padding, without a token, gives U+FFFD. Raises UsageError for a
        number that cannot be an id.
        """
        piece = self._bytes.get(token)
        if piece is None:
            piece = self._bytes[token] = self._spell(token)
        return piece

    def token_text(self, token: int) -> str:
        """Return a token's own text for display, control tokens spelled out."""
        added = self._added.get(token)
        return added.content if added else self.token_bytes(token).decode("utf-8", "replace")

    def save(self, folder: Path) -> Path:
        """Write tokenizer.json into `folder` and return it; with `info` it loads equal."""
        spec = json.loads(self._backend.to_str())
        merges = spec["model"].get("merges") or []
        # "left right" loads in two thirds of the time of a pair, and cannot hold a space
        if not any(" " in part for pair in merges for part in pair):
            spec["model"]["merges"] = [" ".join(pair) for pair in merges]
        text = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
        path = folder / "tokenizer.json"
        path.write_text(text, encoding="utf-8")
        return path

    def _spell(self, token: int) -> bytes:
        try:
            text = self._backend.id_to_token(token)
        except (OverflowError, TypeError) as error:
            raise UsageError(f"{token!r} is not a token id.") from error
        if text is None:
            return _REPLACEMENT
        added = self._added.get(token)
        if added and added.special:
            return b""
        return self._spelling.spell(text, raw=added is not None)

    def _encode(self, backend: Backend, text: str, special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates, which the library cannot take
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with self._lock:
            backend.encode_special_tokens = not special
            return _ids(backend, text, False)

    @cached_property
    def _inner(self) -> Backend:
        """The backend for text after a control token, where "prefix the first" does not apply."""
        if b'"prepend_scheme":"first"' not in state(self._backend.pre_tokenizer):
            return self._backend
        spec = json.loads(self._backend.to_str())
        scheme = json.dumps(spec["pre_tokenizer"]).replace('"first"', '"never"')
        return Backend.from_str(json.dumps({**spec, "pre_tokenizer": json.loads(scheme)}))


class TextStream:
    """Turns tokens into text as they come, never showing half a character."""

    __slots__ = ("_decode", "_pieces", "_strip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, *, strip: bool) -> None:
        self._tokenizer = tokenizer
        self._pieces = tokenizer._bytes
        self._strip = strip
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: int) -> str:
        """Return the characters that are complete now that `token` has come; may be empty."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._tokenizer.token_bytes(token)
        if self._strip and piece:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._decode(piece)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for a character that never got complete."""
        return self._decode(b"", True)


def _known_ends(backend: Backend) -> set[int]:
    added = backend.get_added_tokens_decoder().items()
    return {i for i, token in added if token.special and token.content in END_TEXTS}


def _named(
    backend: Backend, settings: list[dict[str, Any]], models: list[dict[str, Any]], name: str
) -> list[int]:
    """Ids that the configs give for `name` (bos or eos), the most specific source first."""
    found: list[int] = []
    for config in settings:
        token = config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and (known := backend.token_to_id(text)) is not None:
            found.append(known)
    for config in models:
        ids = config.get(f"{name}_token_id")
        given = ids if isinstance(ids, list) else [ids]
        size = backend.get_vocab_size()
        found += [i for i in given if type(i) is int and 0 <= i < size]
    return found


def _is_token(backend: Backend, token: int) -> bool:
    return 0 <= token < 1 << 32 and backend.id_to_token(token) is not None


def _ids(backend: Backend, text: str, special: bool) -> list[int]:
    try:
        ids: list[int] = backend.encode(text, add_special_tokens=special).ids
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the library also panics, outside the Exception family
        raise FormatError(
            f"The model's tokenizer.json cannot tokenize this text ({error!s:.120}); "
            "get the file again from its source."
        ) from error
    return ids


def _read_backend(path: Path) -> Backend:
    try:
        backend = Backend.from_str(_read_text(path, MAX_FILE_BYTES))
        check_growth(path, backend)
        _mark_control(backend)
        return backend
    except (FormatError, OSError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the library also panics, outside the Exception family
        raise FormatError(f"{path} is not a usable tokenizer.json: {error}.") from error


def _mark_control(backend: Backend) -> None:
    """Let control tokens be what is spelled as they are, and what ends a turn be one of them.

    Where a tokenizer.json marks them as normalized, the library looks for what the normalizer makes
    of them: it finds "<|IM_END|>" too under one that lowers cases, and "<s>" only behind a blank
    under Llama 2's, which is why transformers ignores the mark there. Others mark an end token as
    an ordinary one, which any message could then make.
    """
    marked = [
        token
        for token in backend.get_added_tokens_decoder().values()
        if (token.normalized if token.special else token.content in END_TEXTS)
    ]
    backend.add_special_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
            )
            for token in marked
        ]
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read_text(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}.") from error
    return config if isinstance(config, dict) else {}


def _read_text(path: Path, limit: int) -> str:
    try:
        size = path.stat().st_size
        if size > limit:
            raise FormatError(f"{path} has {size} bytes; at most {limit} are accepted.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing; the model folder is incomplete.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text.") from error
