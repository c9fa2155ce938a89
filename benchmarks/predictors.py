"""What a cheap look at the gates must read to find the neurons that fire.

    python benchmarks/predictors.py PACKED_FOLDER [--text FILE_OR_FOLDER] [--tokens 6144]

For some layers, three quarters of the tokens fit each predictor and its cut-offs, aiming at
`--recall` of the contributions; the figures are about the last quarter:

- calibrated low rank: `stem_runtime.sparsity.predictor`, axes and scores in int4, or in int8;
- principal axes: the same with the axes of the inputs, whatever the gate makes of them;
- sign bits: the gate's signs times the int8 input, one bit a weight;
- none: cut-offs alone, so that a neuron is always a candidate or never.

Bytes are shares of the gate's, per token. A model whose activation has no zeros needs `--sparsity`,
the share of its neurons that a gate test leaves out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from perplexity import read_text, windows

from stem_runtime.engine import Engine
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.quant import Kind, pack
from stem_runtime.quant.rounding import quantize
from stem_runtime.sparsity.head import principal_axes, rounded
from stem_runtime.sparsity.potentials import FfnWeights, Potentials, fire
from stem_runtime.sparsity.predictor import choose_cutoffs, low_rank, scored, shares
from stem_runtime.tokenizer import Tokenizer

WINDOW = 512
SINKS = 4  # first tokens of a sequence: they run dense
CUTOFF_BYTES = 4

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Found:
    """A predictor on tokens it was not fitted to; bytes and candidates as shares of the gate."""

    look: float
    candidates: float
    recall: float


def ffn_inputs(model: PackedModel, text: str, count: int) -> F32:
    """FFN inputs float32 [n_layers, n, d_model] of windows spread over the text."""
    tokenizer = Tokenizer.from_file(model.folder / "tokenizer.json", model.info["tokenizer"])
    parts = windows(tokenizer, text, WINDOW, count // WINDOW)
    with Engine(model) as engine:
        found = [engine.ffn_inputs(engine.new_cache(WINDOW), tokens) for tokens in parts]
    return np.concatenate([inputs[:, SINKS:] for inputs in found], axis=1)


def looks(gate: F32, inputs: F32, ranks: list[int]) -> Iterator[tuple[str, F32, float]]:
    """Name, scores float32 [n, ffn] and bytes per token; fitted to the first three quarters."""
    ffn, width = gate.shape
    fitted = inputs[: len(inputs) * 3 // 4]
    yield "none", np.random.default_rng(0).random((len(inputs), ffn), np.float32), 0
    signs = np.where(gate >= 0, np.float32(1), np.float32(-1))
    yield "sign bits", rounded(inputs) @ signs.T, ffn * width / 8
    main = principal_axes(fitted - fitted.mean(axis=0), max(ranks))
    for rank in ranks:
        best = low_rank(gate, fitted, rank)
        tried: list[tuple[str, Kind, tuple[F32, F32]]] = [
            ("principal axes", "int4", (main[:rank], np.ascontiguousarray(gate @ main[:rank].T))),
            ("calibrated low rank in int8", "int8", best),
            ("calibrated low rank", "int4", best),
        ]
        for name, kind, (axes, scores) in tried:
            first, second = pack(quantize(axes, kind), "", width), pack(quantize(scores, kind))
            seen = scored(first, second, inputs)
            yield f"{name}, {rank}", seen, first.nbytes + second.nbytes


def measure(
    model: PackedModel, layer: int, inputs: F32, sparsity: float, ranks: list[int], recall: float
) -> dict[str, Found]:
    weights = FfnWeights.of(model, layer)
    fired = fire(model.config, weights, inputs)
    potentials = Potentials.of(weights, fired)
    potential = potentials.gate(fired)
    fires = potential > (np.quantile(potential[::7], sparsity) if sparsity else 0)
    contribution = shares(fires, potentials.contribution(fired))
    whole = model.matrix(f"layers.{layer}.gate").nbytes
    cut = len(inputs) * 3 // 4
    print(f"layer {layer}: {fires.mean():.1%} of the neurons fire", flush=True)
    found = {}
    for name, scores, nbytes in looks(weights.gate, inputs, ranks):
        cutoffs = choose_cutoffs(scores[:cut], contribution[:cut], recall)[0]
        candidates = scores[cut:] > cutoffs
        held = np.sum(contribution[cut:], where=candidates) / contribution[cut:].sum()
        look = (nbytes + CUTOFF_BYTES * len(cutoffs)) / whole
        found[name] = Found(look, float(candidates.mean()), float(held))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, help=".txt or .html file, or a folder of them")
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--layers", type=int, default=4, help="how many, spread over the model")
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 128, 192])
    parser.add_argument("--recall", type=float, default=0.98)
    args = parser.parse_args()

    model = open_packed(args.folder)
    inputs = ffn_inputs(model, read_text(args.text), args.tokens)
    chosen = np.unique(np.linspace(0, model.config.n_layers - 1, args.layers).round().astype(int))
    found = [
        measure(model, layer, inputs[layer], args.sparsity, args.ranks, args.recall)
        for layer in chosen.tolist()
    ]
    print(f"\n{model.info['name']}, {inputs.shape[1]} tokens, mean of layers {chosen.tolist()}\n")
    print("| predictor | bytes of the look | candidates | gate bytes in all | recall |")
    print("|---|---|---|---|---|")
    for name in found[0]:
        rows = [layer[name] for layer in found]
        look, candidates, recall = (
            float(np.mean([getattr(row, field) for row in rows]))
            for field in ("look", "candidates", "recall")
        )
        print(
            f"| {name} | {look:.1%} | {candidates:.1%} | {look + candidates:.1%} | {recall:.2%} |"
        )


if __name__ == "__main__":
    main()
