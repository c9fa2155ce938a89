"""How much of a card's memory an engine takes, counted before anything is there. No torch here."""

from __future__ import annotations

from ..config import ModelConfig
from ..formats.packed import PackedModel, expected_tensors
from ..kernels.cpu import layout as L
from ..quant import GROUP, groups_of
from ..sparsity.neurons import KINDS, Parts, record_sizes

_SPLIT_SUMS = 1024 * (8 * 16 + 1)  # words through which programs of one product add up
_MOST_SPLITS = 64  # among which attention divides what a token sees
_SLICE = 4096  # what the last slice of logits is filled up to
_COUNTS = 8


def bytes_needed(
    model: PackedModel,
    parts: Parts | None,
    capacity: int,
    *,
    layers: range | None = None,
    head: bool = True,
    batch: int = 1,
) -> int:
    """Bytes that a `GpuEngine` takes of a card for `layers` of a model, None for all, and its head.

    Weights, the buffers of a step and of choosing tokens, a cache of `capacity` tokens for each of
    `batch` sequences, and where `parts` are given, records of them for every neuron. Not counted:
    the CUDA context, the kernels' code, what a prompt needs while it is read, and predictors and
    implications of neurons.
    """
    config = model.config
    layers = range(config.n_layers) if layers is None else layers
    total = _weights(model, layers, head) + _cache(config, len(layers), capacity, batch)
    total += _buffers(config, capacity, batch)
    if parts is not None:
        total += sum(_neurons(model, index, parts, batch) for index in layers)
    return total


def _weights(model: PackedModel, layers: range, head: bool) -> int:
    config = model.config
    # a head that is the embedding, or the rows of the tokens themselves
    wanted = {"embed"} if 0 in layers or (head and config.tied_head) else set()
    if head:
        wanted |= {"head", "norm"}
    prefixes = {f"layers.{index}" for index in layers}
    names = [
        (name, shape)
        for name, shape in expected_tensors(config)
        if name in wanted or name.rpartition(".")[0] in prefixes
    ]
    return sum(
        model.matrix(name).nbytes if len(shape) == 2 else model.vector(name).nbytes
        for name, shape in names
    )


def _cache(config: ModelConfig, layers: int, capacity: int, batch: int) -> int:
    """Keys and values, and the angles of every position."""
    tables = bool(config.rope_inv_freq) + bool(config.rope_local_inv_freq)
    angles = 4 * config.head_dim * capacity * tables
    return angles + 2 * 2 * layers * config.kv_heads * config.head_dim * capacity * batch


def _buffers(config: ModelConfig, capacity: int, batch: int) -> int:
    """What a step writes to, for `batch` sequences at once."""
    attended = config.n_heads * config.head_dim
    wide = attended + 2 * config.kv_heads * config.head_dim
    floats = 2 * config.d_model + wide + attended + config.vocab_size
    # of each split a weighted sum of values, its peak and its weight
    splits = min(_MOST_SPLITS, -(-capacity // (64 if config.head_dim <= 128 else 32)))
    floats += config.n_heads * splits * (config.head_dim + 2)
    rounded = sum(map(_rounded, (config.d_model, attended, config.ffn_dim)))
    return 4 * _SPLIT_SUMS + batch * (4 * floats + rounded + _sampler(config.vocab_size, capacity))


def _sampler(vocab: int, capacity: int) -> int:
    """Two numbers for every token of the vocabulary, and which ones are recent."""
    return 2 * 8 * (vocab + _SLICE) + 4 * vocab + 4 * capacity


def _rounded(cols: int) -> int:
    """Bytes of a vector in int8, with a scale and a sum for each group."""
    return groups_of(cols) * (GROUP + 4 + 4)


def _neurons(model: PackedModel, index: int, parts: Parts, batch: int) -> int:
    """A layer's records and what calibration knows of its neurons, and what a step says of them."""
    gate, up, down = (model.matrix(f"layers.{index}.{name}") for name in ("gate", "up", "down"))
    ffn, groups = gate.rows, groups_of(gate.rows)
    stored = ffn * sum(record_sizes(gate, up, down, parts))
    stored += groups * L.shared_bytes(KINDS[down.kind], down.rows)
    # weights and norms for the kernels, and once more for prompts, whose masks are of bytes
    known = 2 * 4 * GROUP * groups + 2 * 4 * groups + ffn * (4 + 4 + 1 + 1)
    heat = 2 * 4 * GROUP * groups
    masks = 2 * 4 * groups
    return stored + known + batch * (heat + masks + 2 * 8 * _COUNTS)
