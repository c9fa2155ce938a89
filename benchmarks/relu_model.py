"""Write a packed ReLU model of random weights whose neurons fire as those of trained ones do.

    python benchmarks/relu_model.py OUT_FOLDER --tokenizer PACKED_FOLDER [--shape small]

For speed and recall where no naturally sparse model is at hand; it says nothing sensible. A tenth
of the neurons fires per token (`--active`), a fifth of the neurons does four fifths of the firing,
and that is measured at the end with the engine itself, on tokens that nothing was fitted to.

- Hidden states have a constant part and a decaying spectrum: of their second moment 37% (first
  layer) to 18% (last) lies along one direction, the variance of the k-th axis across it falls as
  (k + 2)^-0.95, and that of the gates as (k + 2)^-1.1. With 576 axes this is what the FFN inputs
  of SmolLM2-135M-Instruct look like on a handbook's text: 14% to 37% constant, and the first 8, 32
  and 128 axes hold 25%, 45% and 72% of the variance, and 36%, 55% and 79% of the gates' (the laws
  say 24%, 45%, 70% and 32%, 55%, 78%). That they go on to 2,048 axes is an assumption: there the
  first 32, 128 and 512 hold 47%, 67% and 85% of the gates' variance. Embeddings and sublayer
  outputs are drawn from that spectrum; only embeddings have the constant part, and no sublayer
  writes to it.
- The format has no gate bias: a gate row gets its shift as a multiple of the constant direction,
  which has the same magnitude in every dimension so that rounding in groups does not see it.
- Shifts are quantiles of 1,024 uniformly random tokens in sequences of 128, layer by layer, from
  a float32 forward pass of the weights before they are rounded.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_runtime.config import ModelConfig
from stem_runtime.engine import Engine
from stem_runtime.formats.packed import PackedWriter, expected_tensors, open_packed
from stem_runtime.kernels.oracle import rms_norm, rope
from stem_runtime.quant import Kind, pack
from stem_runtime.quant.layout import unpack
from stem_runtime.quant.rounding import quantize

F32 = NDArray[np.float32]

SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {"d_model": 2048, "ffn_dim": 8192, "n_layers": 16, "n_heads": 32, "kv_heads": 8},
    "small": {"d_model": 512, "ffn_dim": 2048, "n_layers": 4, "n_heads": 8, "kv_heads": 2},
}
HEAD_DIM, ROPE_BASE = 64, 500_000.0

HIDDEN_DECAY, GATE_DECAY, BEND = 0.95, 1.1, 2
# Per dimension, with a variance of 1 in the embeddings: the residual stream triples over 16 layers.
CONSTANT_SQUARE, ATTENTION_VARIANCE, FFN_VARIANCE = 0.6, 0.05, 0.1
QUERY_GAIN = 1.4  # scores vary by 2, which makes attention neither uniform nor a single token
LOGIT_SPREAD = 1.5

SEQUENCES, LENGTH = 8, 128
TOP_FIFTH = 0.8
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Space:
    """Where hidden states live: `constant` [d], a unit vector, and `axes` [d, d-1] across it.

    `spread` is `axes` times the standard deviation along each, of mean square 1 per dimension;
    `tilt` [d, d] makes isotropic rows see the spectrum of gates.
    """

    constant: F32
    spread: F32
    tilt: F32

    @classmethod
    def random(cls, d: int, rng: np.random.Generator) -> Space:
        signs = rng.choice((-1.0, 1.0), d)
        basis, _ = np.linalg.qr(np.column_stack([signs, rng.standard_normal((d, d - 1))]))
        axes = basis[:, 1:]
        k = np.arange(1, d) + BEND
        variance = k**-HIDDEN_DECAY
        variance *= d / variance.sum()
        weights = k ** ((HIDDEN_DECAY - GATE_DECAY) / 2)
        return cls(
            (signs / d**0.5).astype(np.float32),
            (axes * variance**0.5).astype(np.float32),
            (axes * (weights / np.mean(weights**2) ** 0.5) @ axes.T).astype(np.float32),
        )

    def embeddings(self, rows: int, rng: np.random.Generator) -> F32:
        noise = rng.standard_normal((rows, self.spread.shape[1]), np.float32)
        size = (CONSTANT_SQUARE * len(self.constant)) ** 0.5
        return noise @ self.spread.T + np.float32(size) * self.constant

    def readers(self, rows: int, rng: np.random.Generator, gain: float = 1.0) -> F32:
        """Rows [rows, d] that do not see the constant part; outputs of about `gain`."""
        d = len(self.constant)
        out = rng.standard_normal((rows, d), np.float32) * np.float32(gain * d**-0.5)
        return out - np.outer(out @ self.constant, self.constant)

    def writer(self, inputs: F32, variance: float, rng: np.random.Generator) -> F32:
        """A matrix [d, n] whose outputs for `inputs` [tokens, n] have that mean square."""
        noise = rng.standard_normal((self.spread.shape[1], inputs.shape[1]), np.float32)
        out = self.spread @ noise
        return out * np.float32((variance / np.mean((inputs @ out.T) ** 2)) ** 0.5)


class Stream:
    """The float32 forward pass on the calibration tokens, [tokens, d], a sublayer at a time."""

    def __init__(self, config: ModelConfig, embedded: F32) -> None:
        self.config = config
        self.x = embedded

    def normed(self) -> F32:
        ones = np.ones(self.config.d_model, np.float32)
        return rms_norm(self.x, ones, self.config.norm_eps).astype(np.float32)

    def attend(self, x: F32, q: F32, k: F32, v: F32) -> F32:
        """What the heads collect, [tokens, d], in sequences of `LENGTH`."""
        shape = (LENGTH, -1, self.config.head_dim)
        shared = self.config.n_heads // self.config.kv_heads
        mask = np.triu(np.full((LENGTH, LENGTH), -np.inf, np.float32), 1)
        parts = []
        for part in np.split(x, SEQUENCES):
            queries, keys = (
                rope((part @ w.T).reshape(shape), range(LENGTH), self.config.rope_inv_freq)
                for w in (q, k)
            )
            keys, values = (
                np.repeat(a, shared, axis=1) for a in (keys, (part @ v.T).reshape(shape))
            )
            scores = np.einsum("ihd,jhd->hij", queries, keys, dtype=np.float32, optimize=True)
            scores = np.exp(scores * self.config.attn_scale + mask)
            scores /= scores.sum(axis=-1, keepdims=True)
            parts.append(np.einsum("hij,jhd->ihd", scores, values, optimize=True))
        return np.concatenate(parts).reshape(len(x), -1)

    def add(self, inputs: F32, matrix: F32) -> None:
        self.x = self.x + inputs @ matrix.T


def model_config(shape: str, vocab_size: int) -> ModelConfig:
    sizes = SHAPES[shape]
    return ModelConfig(
        family="llama",
        **sizes,
        head_dim=HEAD_DIM,
        vocab_size=vocab_size,
        context_length=8192,
        norm_eps=1e-5,
        activation="relu",
        rope_inv_freq=tuple(ROPE_BASE ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)),
        layer_windows=(0,) * sizes["n_layers"],
        attn_scale=HEAD_DIM**-0.5,
        tied_head=True,
    )


def firing_rates(active: float, count: int, rng: np.random.Generator) -> F32:
    """Rates [count] with the mean `active`, of which the largest fifth makes up four fifths."""
    low, high = 1e-3, 1e3
    for _ in range(24):
        shape = (low * high) ** 0.5
        rates = np.sort(rng.beta(shape * active, shape * (1 - active), count))
        top = rates[-(count // 5) :].sum() / rates.sum()
        low, high = (low, shape) if top < TOP_FIFTH else (shape, high)
    return rng.permutation(rates * active / rates.mean()).clip(0, 1).astype(np.float32)


def shifted(gate: F32, x: F32, rates: F32, constant: F32) -> F32:
    """`gate` with a shift in each row so that row j is positive for `rates[j]` of the tokens."""
    seen = x @ constant
    ratios = np.sort((x @ gate.T) / seen[:, None], axis=0)
    place = np.minimum(np.rint((1 - rates) * len(x)), len(x) - 1).astype(int)
    return gate - np.outer(ratios[place, np.arange(len(rates))], constant)


def layers(
    config: ModelConfig, space: Space, stream: Stream, active: float
) -> Iterator[tuple[str, F32]]:
    """The matrices of every layer by name; each is fitted to what the ones before make of `x`."""
    rng = np.random.default_rng(1)
    kv_rows = config.kv_heads * config.head_dim
    for layer in range(config.n_layers):
        name = f"layers.{layer}."
        x = stream.normed()
        q = space.readers(config.n_heads * config.head_dim, rng, QUERY_GAIN)
        k = space.readers(kv_rows, rng, QUERY_GAIN)
        v = space.readers(kv_rows, rng)
        heads = stream.attend(x, q, k, v)
        o = space.writer(heads, ATTENTION_VARIANCE, rng)
        stream.add(heads, o)
        x = stream.normed()
        rates = firing_rates(active, config.ffn_dim, rng)
        gate = space.readers(config.ffn_dim, rng) @ space.tilt
        gate = shifted(gate, x, rates, space.constant)
        up = space.readers(config.ffn_dim, rng)
        hidden = np.maximum(x @ gate.T, 0) * (x @ up.T)
        down = space.writer(hidden, FFN_VARIANCE, rng)
        stream.add(hidden, down)
        matrices = {"q": q, "k": k, "v": v, "o": o, "gate": gate, "up": up, "down": down}
        yield from ((name + last, matrix) for last, matrix in matrices.items())


def write(out: Path, config: ModelConfig, tokenizer: Path, active: float) -> None:
    rng = np.random.default_rng(0)
    space = Space.random(config.d_model, rng)
    shapes = dict(expected_tensors(config))
    kinds: dict[str, Kind] = {
        name: "int8" if name == "embed" else "int4"
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    chosen = rng.integers(0, config.vocab_size, SEQUENCES * LENGTH)
    embedded = np.empty((len(chosen), config.d_model), np.float32)
    with PackedWriter(out, config, kinds) as writer:
        for start in range(0, config.vocab_size, BLOCK):
            rows = space.embeddings(min(BLOCK, config.vocab_size - start), rng)
            writer.matrix("embed", pack(quantize(rows, "int8")), start)
            here = (chosen >= start) & (chosen < start + len(rows))
            embedded[here] = rows[chosen[here] - start]
        for name, matrix in layers(config, space, Stream(config, embedded), active):
            writer.matrix(name, pack(quantize(matrix, kinds[name]), name))
        for name, shape in shapes.items():
            if len(shape) == 1:
                ones = np.ones(shape, np.float32)
                writer.vector(name, signs(config) if name == "norm" else ones)
        source = open_packed(tokenizer)
        writer.finish(
            {
                "name": out.name,
                "quant": "int4",
                "tokenizer": source.info["tokenizer"],
                "source": {"file": "random weights"},
                "license": None,
            }
        )
    for file in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / file, out / file)


def signs(config: ModelConfig) -> F32:
    """Final norm weights of random sign: without them each token would predict itself."""
    size = LOGIT_SPREAD / ((1 + CONSTANT_SQUARE) * config.d_model) ** 0.5
    values = np.random.default_rng(2).choice((-size, size), config.d_model)
    return values.astype(np.float32)


def report(folder: Path) -> None:
    """Print what share of each layer's neurons fires, how skewed, and how constant inputs are."""
    model = open_packed(folder)
    config = model.config
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (SEQUENCES, LENGTH))
    with Engine(model) as engine:
        inputs = np.concatenate(
            [engine.ffn_inputs(engine.new_cache(LENGTH), row.tolist()) for row in tokens], axis=1
        )
    print("| layer | active | by the top fifth | constant |")
    print("|---|---|---|---|")
    shares = []
    for layer, x in enumerate(inputs):
        gate = unpack(model.matrix(f"layers.{layer}.gate"))
        rates = np.sort((x @ gate.T > 0).mean(axis=0))
        mean = x.mean(axis=0)
        constant = float(mean @ mean / np.mean(np.sum(x * x, axis=1)))
        top = rates[-(len(rates) // 5) :].sum() / rates.sum()
        shares.append(rates.mean())
        print(f"| {layer} | {rates.mean():.2%} | {top:.1%} | {constant:.1%} |")
    print(f"\n{folder}: {np.mean(shares):.2%} active, {model.nbytes / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write, which must not exist")
    parser.add_argument("--tokenizer", type=Path, required=True, help="packed folder to copy from")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-1b")
    parser.add_argument("--active", type=float, default=0.1, help="share that fires (0.1)")
    args = parser.parse_args()
    if args.out.exists():
        raise SystemExit(f"{args.out} exists already; choose a folder that does not.")
    config = model_config(args.shape, open_packed(args.tokenizer).config.vocab_size)
    write(args.out, config, args.tokenizer, args.active)
    report(args.out)


if __name__ == "__main__":
    main()
