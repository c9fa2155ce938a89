"""Does the answer stay right: perplexity and agreement beside llama.cpp and beside plain floats.

    python benchmarks/perplexity.py --gguf MODEL.gguf --llama-python PYTHON [--text FILE_OR_FOLDER]

The same windows of tokens, each from an empty context, go through our engine as prompts, through it
again one token at a time, through llama.cpp, and through the same weights dequantized to float32
and multiplied by NumPy (in float64). llama.cpp's greedy answers to chat questions are followed as
well: how many of their tokens are the likeliest here? Without --text the text is Python's own
language reference; HTML files are stripped to their text, and of a folder all .html and .txt files
are joined.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from llama_client import Llama
from numpy.typing import NDArray
from questions import QUESTIONS
from sides import BATCH, packed_copy

import stem_local
from stem_local.chat import encode_messages
from stem_runtime.engine import Engine
from stem_runtime.formats.packed import PackedModel, expected_tensors
from stem_runtime.kernels import oracle
from stem_runtime.tokenizer import Tokenizer

GREEDY = 48


@dataclass(frozen=True, slots=True)
class Score:
    """Per predicted token: -log p of the right one (nats), and the likeliest one."""

    losses: NDArray[np.float64]
    best: NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        return math.exp(self.losses.mean())

    def uncertainty(self, other: Score) -> float:
        """Standard error of the two perplexities' ratio, from how the same tokens differ."""
        difference = self.losses - other.losses
        return float(difference.std() / math.sqrt(len(difference)))


class TextOnly(HTMLParser):
    """Collects what a reader sees of a page."""

    HIDDEN = ("script", "style", "head")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        self._hidden += tag in self.HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self.HIDDEN

    def handle_data(self, data: str) -> None:
        if not self._hidden and (text := " ".join(data.split())):
            self.parts.append(text)


def read_text(source: Path | None) -> str:
    if source is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return "\n\n".join(_read_file(file) for file in files if file.suffix in (".html", ".txt"))


def _read_file(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".html":
        return text
    parser = TextOnly()
    parser.feed(text)
    return " ".join(parser.parts)


def windows(tokenizer: Tokenizer, text: str, size: int, count: int) -> list[list[int]]:
    """`count` stretches of `size` tokens, spread evenly over the text."""
    begin = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    stretch = len(text) // count
    result = []
    for at in range(0, stretch * count, stretch):
        tokens = tokenizer.encode(text[at : at + min(stretch, 16 * size)])
        result.append((begin + tokens)[:size])
    if min(map(len, result)) < size:
        raise SystemExit("The text is too short for so many windows.")
    return result


def score(all_windows: list[list[int]], logits: Callable[[list[int]], NDArray]) -> Score:
    """Score windows with a function from tokens to float [n, vocab] logits."""
    losses, best = [], []
    for tokens in all_windows:
        rows = logits(tokens)[:-1].astype(np.float64)
        peak = rows.max(axis=1)
        total = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=1))
        losses.append(total - rows[np.arange(len(rows)), tokens[1:]])
        best.append(rows.argmax(axis=1))
    return Score(np.concatenate(losses), np.concatenate(best))


def llama_score(llama: Llama, all_windows: list[list[int]]) -> Score:
    answers = [llama.call("score", tokens=tokens) for tokens in all_windows]
    return Score(
        np.concatenate([answer["losses"] for answer in answers]),
        np.concatenate([answer["best"] for answer in answers]),
    )


def float_logits(model: PackedModel) -> Callable[[list[int]], NDArray[np.float32]]:
    """The whole model in plain floats; slow, and right by inspection."""
    weights = {
        name: model.vector(name) if len(shape) == 1 else oracle.dequantize(model.matrix(name))
        for name, shape in expected_tensors(model.config)
    }
    return lambda tokens: oracle.forward(model.config, weights.__getitem__, tokens)


def one_by_one(engine: Engine, size: int) -> Callable[[list[int]], NDArray[np.float32]]:
    """Logits through the decode step, as answers are made, and not the prompt's."""

    def logits(tokens: list[int]) -> NDArray[np.float32]:
        cache = engine.new_cache(size)
        first = engine.prefill(cache, tokens[:1]).copy()
        return np.stack([first, *(engine.decode(cache, token).copy() for token in tokens[1:])])

    return logits


def greedy(engine: Engine, tokens: list[int], count: int) -> list[int]:
    cache = engine.new_cache(len(tokens) + count)
    logits = engine.prefill(cache, tokens)
    chosen = [int(logits.argmax())]
    while len(chosen) < count:
        chosen.append(int(engine.decode(cache, chosen[-1]).argmax()))
    return chosen


def followed(
    logits: Callable[[list[int]], NDArray], prompts: list[list[int]], answers: list[list[int]]
) -> NDArray[np.bool_]:
    """Of every token of the answers, whether it is the likeliest after those before it."""
    same = []
    for prompt, answer in zip(prompts, answers, strict=True):
        best = logits(prompt + answer[:-1])[len(prompt) - 1 :].argmax(axis=1)
        same.append(best == np.array(answer))
    return np.concatenate(same)


def until_end(answer: list[int], ends: tuple[int, ...]) -> list[int]:
    """An answer up to the first token that ends it, and with that."""
    return next((answer[: i + 1] for i, token in enumerate(answer) if token in ends), answer)


def common(ours: list[int], theirs: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--llama-python", required=True, help="interpreter with llama-cpp-python")
    parser.add_argument("--text", type=Path, help=".txt or .html file, or a folder of them")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--size", type=int, default=BATCH, help="tokens in a window")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    model = stem_local.load(packed_copy(args.gguf), threads=args.threads)
    parts = windows(model.tokenizer, read_text(args.text), args.size, args.windows)
    prompts = [encode_messages(model, [{"role": "user", "content": q}]) for q in QUESTIONS]
    with Llama(args.llama_python) as llama:
        llama.call(
            "open", model=str(args.gguf), threads=args.threads, context=args.size, batch=args.size
        )
        theirs = llama_score(llama, parts)
        greedy_theirs = [llama.call("greedy", tokens=p, count=GREEDY)["tokens"] for p in prompts]
    with model:
        ours = score(parts, model.logits)
        steps = score(parts, one_by_one(model.engine, args.size))
        greedy_ours = [greedy(model.engine, prompt, GREEDY) for prompt in prompts]
        answers = [until_end(answer, tuple(model.tokenizer.eos)) for answer in greedy_theirs]
        named = followed(one_by_one(model.engine, args.size), prompts, answers)
    floats = float_logits(model.packed)
    plain = score(parts, floats)
    named_by_floats = followed(floats, prompts, answers)

    print(f"{args.gguf.name}, {len(plain.losses)} predictions in {args.windows} windows\n")
    print("| | perplexity | against floats | top 1 as floats | top 1 as llama.cpp |")
    print("|---|---|---|---|---|")
    rows = {
        "same weights in floats": plain,
        "STEM Local, prompt": ours,
        "STEM Local, token by token": steps,
        "llama.cpp": theirs,
    }
    for name, row in rows.items():
        print(
            f"| {name} | {row.perplexity:.3f} | {row.perplexity / plain.perplexity - 1:+.2%} "
            f"± {row.uncertainty(plain):.2%} "
            f"| {(row.best == plain.best).mean():.2%} | {(row.best == theirs.best).mean():.2%} |"
        )
    same = [common(a, b) for a, b in zip(greedy_ours, greedy_theirs, strict=True)]
    print(
        f"\nOf {len(named)} tokens of llama.cpp's greedy answers to {len(prompts)} chat questions, "
        f"{named.mean():.2%} are the likeliest here, {named_by_floats.mean():.2%} in floats. "
        f"Answers are the same for {same} of {GREEDY} tokens."
    )


if __name__ == "__main__":
    main()
