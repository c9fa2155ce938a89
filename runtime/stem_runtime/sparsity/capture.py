"""Hidden states to calibrate on: of given texts, and of answers that the model makes up itself."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..engine import Cancelled, Engine
from ..errors import FormatError
from ..formats.packed import PackedModel
from ..paths import cache_dir
from ..renaming import rename
from ..sampling import Sampler, SamplingParams

WINDOW = 512
"""Tokens of a text that are read in one piece."""

ANSWER = 320
"""Most tokens of an answer."""

MAX_TEXT = 8192
"""Most tokens of all texts together that are also decoded; longer ones are sampled evenly."""

MAX_READ = 16384
"""The same of texts that are only read."""

FFN_TOKENS = 2048
"""Tokens whose FFN inputs are kept, of all parts together."""

_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)

F32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Material:
    """What to calibrate on: texts to read and prompts to answer, as tokens.

    `ends` are the tokens that end an answer. `more` are texts that only the head is fitted to. At
    most `most` tokens of texts are taken.
    """

    texts: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]
    ends: frozenset[int]
    more: Sequence[Sequence[int]] = ()
    most: int = MAX_TEXT

    def for_head(self) -> Material:
        """What a look at the vocabulary is fitted to: all texts, which are read, and no answers,
        which take ten times as long to make."""
        return Material([*self.texts, *self.more], (), self.ends, most=MAX_READ)


@dataclass(frozen=True, slots=True)
class Part:
    """One text or answer: its tokens, prompt included, and what the head got at the places that
    count, float32 [n, d_model]. The first token of a sequence, and a prompt, do not count: nothing
    is decoded there.
    """

    tokens: list[int]
    hidden: F32
    answer: bool


def capture(
    model: PackedModel,
    engine: Engine,
    material: Material,
    progress: Progress,
    cancel: Callable[[], bool] | None,
    notify: Callable[[str], None] | None = None,
) -> list[Part]:
    """Read the texts and answer the prompts.

    The same material gives the same parts. Parts are kept in `folder_of` the material as they are
    made, so that a call that was cut off goes on where it stopped. Raises Cancelled; FormatError
    for hidden states that are not finite.
    """
    window = min(WINDOW, model.config.context_length)
    texts = windows(model, material)
    prompts = _prompts(model, material)
    folder = folder_of(model, material)
    step = "Listening" if prompts else "Reading"
    total = sum(map(len, texts)) + ANSWER * len(prompts)
    parts: list[Part] = []
    done = 0

    def check(more: int) -> None:
        if cancel is not None and cancel():
            raise Cancelled("Calibration was cancelled; the next one goes on from here.")
        progress(step, done + more, total)

    for index, tokens in enumerate([*texts, *prompts]):
        check(0)
        answer = index >= len(texts)
        path = folder / f"{index}.npz"
        part = _load(path, answer, model.config.d_model)
        if part is None:
            start, read = 1, tokens
            if answer:
                start = len(tokens)
                sampler = Sampler(
                    SamplingParams(temperature=1.0, seed=index), model.config.vocab_size, notify
                )
                read = tokens + _answer(engine, tokens, sampler, material.ends, window, check)
            hidden = engine.hidden(engine.new_cache(len(read)), read)[start:]
            part = Part(read, hidden, answer)
            _check_finite(model, hidden)
            _save(path, part)
        parts.append(part)
        done += ANSWER if answer else len(tokens)
    progress(step, total, total)
    return [part for part in parts if len(part.hidden)]


def windows(model: PackedModel, material: Material) -> list[list[int]]:
    """The pieces in which the texts are read."""
    return list(_windows(material.texts, min(WINDOW, model.config.context_length), material.most))


def capture_ffn(
    model: PackedModel,
    engine: Engine,
    parts: Sequence[Part],
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Read parts again for what their FFNs get, kept as float16 [n_layers, n, d_model] in files.

    Of every part the last tokens are taken, so that all layers of a small model are seen for about
    FFN_TOKENS tokens, and files never grow with the text. `progress` receives (done, total), and
    may raise Cancelled. Raises FormatError for inputs that are not finite.
    """
    config = model.config
    share = max(16, FFN_TOKENS // len(parts))
    paths = []
    for index, part in enumerate(parts):
        progress(index, len(parts))
        path = folder / f"{index}.ffn.npy"
        count = min(share, len(part.hidden))
        if not _held(path, (config.n_layers, count, config.d_model)):
            cache = engine.new_cache(len(part.tokens))
            inputs = engine.ffn_inputs(cache, part.tokens)[:, -count:]
            half = inputs.astype(np.float16)
            _check_finite(model, half)
            _put(path, partial(_save_array, half))
        paths.append(path)
    progress(len(parts), len(parts))
    return paths


def layer_inputs(paths: Sequence[Path], layer: int) -> F32:
    """What the FFN of one layer got, float32 [n, d_model], from `capture_ffn`'s files."""
    parts = [np.load(path, mmap_mode="r", allow_pickle=False)[layer] for path in paths]
    return np.concatenate(parts).astype(np.float32)


def _windows(texts: Sequence[Sequence[int]], window: int, limit: int) -> Iterator[list[int]]:
    """Texts cut to pieces of `window` tokens; evenly spread ones where that is over `limit`."""
    pieces = [list(text[i : i + window]) for text in texts for i in range(0, len(text), window)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    most = max(1, limit // window)
    step = max(1.0, len(pieces) / most)
    yield from (pieces[int(i * step)] for i in range(min(most, len(pieces))))


def _answer(
    engine: Engine,
    prompt: list[int],
    sampler: Sampler,
    ends: frozenset[int],
    window: int,
    check: Callable[[int], None],
) -> list[int]:
    """Sample an answer to a prompt, the token that ends it left out."""
    room = min(ANSWER, window - len(prompt))
    cache = engine.new_cache(len(prompt) + room)
    logits = engine.prefill(cache, prompt)
    answer: list[int] = []
    while len(answer) < room:
        check(len(answer))
        token = sampler.sample(logits)
        if token in ends:
            break
        answer.append(token)
        logits = engine.decode(cache, token)
    return answer


def _check_finite(model: PackedModel, hidden: NDArray[np.floating]) -> None:
    if not np.isfinite(hidden).all():
        raise FormatError(
            f"{model.info['name']} computes hidden states that are not finite numbers, so that it "
            "cannot be calibrated; its weights are damaged, pull or convert it again."
        )


def folder_of(model: PackedModel, material: Material) -> Path:
    """Where the parts of this model and material are kept; its name is a hash of both."""
    weights = model.info["weights_sha256"]
    texts, prompts = windows(model, material), _prompts(model, material)
    key = json.dumps([weights, texts, prompts, sorted(material.ends), WINDOW, ANSWER])
    return cache_dir() / "calibration" / hashlib.sha256(key.encode()).hexdigest()[:32]


def _prompts(model: PackedModel, material: Material) -> list[list[int]]:
    window = min(WINDOW, model.config.context_length)
    return [list(prompt) for prompt in material.prompts if len(prompt) < window]


def _save(path: Path, part: Part) -> None:
    tokens = np.array(part.tokens, np.int64)
    _put(path, lambda file: np.savez(file, tokens=tokens, hidden=part.hidden))


def _save_array(array: NDArray[np.float16], file: BinaryIO) -> None:
    np.save(file, array)


def _put(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        write(file)
    rename(partial, path)


def _held(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file of FFN inputs of this shape was kept."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGE:
        return False
    return bool(found.dtype == np.float16 and found.shape == shape)


def _load(path: Path, answer: bool, width: int) -> Part | None:
    """A part that was kept, None where there is none that can be used."""
    try:
        with np.load(path, allow_pickle=False) as held:
            tokens, hidden = held["tokens"], held["hidden"]
    except _DAMAGE:
        return None
    if tokens.ndim != 1 or hidden.dtype != np.float32 or hidden.shape[1:] != (width,):
        return None
    return Part(tokens.tolist(), hidden, answer)
