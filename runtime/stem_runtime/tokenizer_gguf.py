"""Builds the library's tokenizer out of the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeGuard, TypeVar

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from .errors import FormatError, UnsupportedError
from .pretokenizers import pre_tokenizer

MAX_TOKENS = 1 << 20
MAX_TOKEN_CHARS = 4096
MAX_MERGES = 1 << 22
_SPACE = "\u2581"

_Number = TypeVar("_Number", int, float)
Vocab = dict[str, int]
Merges = list[tuple[str, str]]

END_TEXTS = frozenset(
    (
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<EOT>", "[EOS]"),
        *("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<end_of_turn>", "<turn|>"),
        *("<end_of_utterance>", "<|END_OF_TURN_TOKEN|>", "[|endofturn|]"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)
"""Control tokens that end a turn or a text in every model that has them."""


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def build(meta: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that `tokenizer.ggml.*` of `meta` describes.

    Control tokens are added as special ones, user-defined tokens as ordinary added ones.
    Raises FormatError for metadata that contradicts itself, UnsupportedError for another model.
    """
    kind = _text(meta, "model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"The tokenizer model {kind[:64]!r} (tokenizer.ggml.model) is not supported; "
            "supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)."
        )
    vocab = _vocab(meta)
    types = _types(meta, vocab)
    tokenizer = _byte_level(meta, vocab, types) if kind == "gpt2" else _spm(meta, vocab, types)
    _mark_added(tokenizer, vocab, types)
    return tokenizer


def adds_bos(meta: Mapping[str, Any]) -> bool:
    """Whether text is to start with the begin token: the file's word, else the model's habit."""
    stated = meta.get("tokenizer.ggml.add_bos_token")
    if stated is not None:
        return bool(stated)
    return _text(meta, "model") == "llama" or pre_tokenizer(_pre(meta)).add_bos


def special_id(meta: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    """Return `tokenizer.ggml.<name>_token_id`, None where the file has none."""
    value = meta.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < vocab_size:
        raise FormatError(
            f"tokenizer.ggml.{name}_token_id is {value!r:.40}, not one of the {vocab_size} ids of "
            "the vocabulary."
        )
    return value


def _byte_level(meta: Mapping[str, Any], vocab: Vocab, types: Sequence[int]) -> Tokenizer:
    variant = pre_tokenizer(_pre(meta))
    merges = _listed_merges(meta, vocab, types)
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=variant.whole_words))
    if variant.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = variant.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _spm(meta: Mapping[str, Any], vocab: Vocab, types: Sequence[int]) -> Tokenizer:
    unknown = next((text for text, i in vocab.items() if types[i] == TokenType.UNKNOWN), None)
    merges = _scored_merges(vocab, types, _numbers(meta, "scores", len(vocab), float))
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _scored_merges(vocab: Vocab, types: Sequence[int], scores: Sequence[float]) -> Merges:
    """Return the merges that make BPE choose as SentencePiece does: best score of the result first.

    A piece may come together in several ways; which is ranked first among those is immaterial
    except in overlapping repeats, where the library cannot express "leftmost first".
    """
    mergeable = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    pieces = {text: i for text, i in vocab.items() if types[i] in mergeable}
    ranked = sorted(pieces, key=lambda text: (-scores[pieces[text]], pieces[text]))
    return [
        (text[:cut], text[cut:])
        for text in ranked
        for cut in range(1, len(text))
        if text[:cut] in pieces and text[cut:] in pieces
    ]


def _listed_merges(meta: Mapping[str, Any], vocab: Vocab, types: Sequence[int]) -> Merges:
    lines = meta.get("tokenizer.ggml.merges")
    if not _is_list(lines) or not all(isinstance(line, str) for line in lines):
        raise FormatError("The file has no texts in tokenizer.ggml.merges, which this BPE needs.")
    if len(lines) > MAX_MERGES:
        raise FormatError(f"tokenizer.ggml.merges has {len(lines)} entries, above {MAX_MERGES}.")
    merges = []
    for number, line in enumerate(lines):
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        made = vocab.get(left + right)
        if cut < 1 or made is None or left not in vocab or right not in vocab:
            raise FormatError(
                f"tokenizer.ggml.merges[{number}] is {line[:80]!r}, which does not name two tokens "
                "that make a third."
            )
        # ordinary text must never merge into a control token
        if types[made] != TokenType.CONTROL:
            merges.append((left, right))
    return merges


def _mark_added(tokenizer: Tokenizer, vocab: Vocab, types: Sequence[int]) -> None:
    special, plain = [], []
    for text, i in vocab.items():
        if types[i] in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(text, normalized=False, special=True))
        elif types[i] == TokenType.USER_DEFINED:
            plain.append(AddedToken(text, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _vocab(meta: Mapping[str, Any]) -> Vocab:
    tokens = meta.get("tokenizer.ggml.tokens")
    if not _is_list(tokens) or not len(tokens):
        raise FormatError("The file has no tokens in tokenizer.ggml.tokens.")
    if len(tokens) > MAX_TOKENS:
        raise FormatError(f"tokenizer.ggml.tokens has {len(tokens)} entries, above {MAX_TOKENS}.")
    vocab: Vocab = {}
    for i, text in enumerate(tokens):
        if not isinstance(text, str) or len(text) > MAX_TOKEN_CHARS:
            raise FormatError(
                f"tokenizer.ggml.tokens[{i}] is not a text of at most {MAX_TOKEN_CHARS} characters."
            )
        if vocab.setdefault(text or f"[EMPTY_{i}]", i) != i:
            raise FormatError(
                f"tokenizer.ggml.tokens holds {text[:80]!r} twice, at {vocab[text]} and {i}."
            )
    return vocab


def _types(meta: Mapping[str, Any], vocab: Vocab) -> Sequence[int]:
    if "tokenizer.ggml.token_type" not in meta:
        return [TokenType.NORMAL] * len(vocab)
    types = _numbers(meta, "token_type", len(vocab), int)
    # converters have marked end tokens as user-defined, which would let a prompt contain them
    for text in END_TEXTS & vocab.keys():
        if types[vocab[text]] == TokenType.USER_DEFINED:
            types[vocab[text]] = TokenType.CONTROL
    return types


def _numbers(meta: Mapping[str, Any], name: str, count: int, kind: type[_Number]) -> list[_Number]:
    values = meta.get(f"tokenizer.ggml.{name}")
    if values is None:
        raise FormatError(f"The file has no tokenizer.ggml.{name}, which this tokenizer needs.")
    wanted = (int,) if kind is int else (int, float)
    fits = (
        _is_list(values)
        and len(values) == count
        and all(isinstance(value, wanted) and math.isfinite(value) for value in values)
    )
    if not fits:
        what = "integers" if kind is int else "finite numbers"
        raise FormatError(
            f"tokenizer.ggml.{name} does not hold {count} {what}, one for each token; "
            "the file is damaged."
        )
    return [kind(value) for value in values]


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _pre(meta: Mapping[str, Any]) -> str:
    return _text(meta, "pre", "default")


def _text(meta: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = meta.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, str):
        raise FormatError(f"The file has no text in tokenizer.ggml.{name}.")
    return value
