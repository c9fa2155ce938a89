"""What the kernels are compiled with where nothing runs: shapes of Llama-3.2-1B.

Every launcher of this package is called here, and `LAUNCHES` is the whole list. Tensors are on
torch's meta device: they have types, shapes and an alignment, and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ...quant import GROUP, Kind
from ...quant.layout import tiles_shape
from ...sampling_params import SamplingParams
from ...sparsity.neurons import KINDS as CPU_KINDS
from ...sparsity.neurons import Parts
from ..cpu import layout as cpu_layout
from . import attention, compact, ffn, matvec, prefill, quantize, rope
from .layout import Activations, DeviceMatrix
from .records import Attention, DeviceNeurons, FfnTests, Followers, Tally
from .sample import DeviceSampler

D_MODEL, FFN, VOCAB = 2048, 8192, 128256
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 64
CONTEXT, CHUNK = 4096, 256
SPLITS = 16

VARIANTS: tuple[tuple[Kind, int], ...] = (("int4", 1), ("int4", 8), ("int4m", 1), ("int8", 1))
"""Kinds of weights, and how many sequences are decoded at once."""

FFN_STREAMS = frozenset({"gate", "up", "source", "records"})


@dataclass(frozen=True, slots=True)
class Launch:
    """A call of a launcher with representative arguments.

    `streams` names the arguments of its kernels through which weights or the cache are read. A
    `variant` is of kernels that another launch has too, for other weights, sequences or settings.
    """

    name: str
    call: Callable[[], object]
    streams: frozenset[str] = frozenset()
    variant: bool = False


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def matrix(rows: int, cols: int, kind: Kind) -> DeviceMatrix:
    tiles = torch.empty(tiles_shape(rows, cols, kind), dtype=torch.uint8, device="meta")
    return DeviceMatrix(tiles, rows, cols, kind)


def neurons(kind: Kind, parts: Parts, share: float = 1) -> DeviceNeurons:
    """One layer's neurons, of whose records `parts` are kept; or a share of them."""
    code = CPU_KINDS[kind]
    row = cpu_layout.row_bytes(code, D_MODEL // GROUP) // 4
    column = cpu_layout.column_bytes(code, D_MODEL) // 4
    gate, up = row * (parts == "gate"), row * (parts != "down")
    shared = cpu_layout.shared_bytes(code, D_MODEL) // 2
    groups = FFN // GROUP
    return DeviceNeurons(
        records=ints(int(share * FFN), gate + up + column),
        shared=floats(groups, shared, dtype=torch.float16),
        up=gate,
        down=gate + up,
        parts=parts,
        kinds=(kind, kind, kind),
        d_model=D_MODEL,
        weights=floats(FFN),
        norms=floats(FFN),
        core=ints(groups),
        alive=ints(groups),
        starts=None if share == 1 else ints(groups),
        held=None if share == 1 else ints(groups),
    )


def products() -> Iterator[Launch]:
    yield Launch(
        "embed",
        partial(matvec.embed, floats(1, D_MODEL), matrix(VOCAB, D_MODEL, "int8"), ints(1)),
    )
    for kind, batch in VARIANTS:
        yield Launch(
            f"matvec, {kind}, {batch} at once",
            partial(
                matvec.matvec,
                floats(batch, D_MODEL),
                matrix(D_MODEL, FFN, kind),
                *Activations.empty(batch, FFN, "meta"),
                add=floats(batch, D_MODEL),
                split=matvec.SplitSums.empty(batch, "meta"),
            ),
            frozenset({"tiles"}),
            variant=kind == "int4m" or batch > 1,
        )
    for kind in ("int4", "int4m", "int8"):
        inputs = floats(CHUNK, D_MODEL, dtype=torch.bfloat16)
        weights = matrix(FFN, D_MODEL, kind)
        yield Launch(
            f"prompt, {kind}",
            partial(prefill.matmul, floats(CHUNK, FFN), weights, inputs),
            frozenset({"words"}),
            variant=kind != "int4",
        )


def norms() -> Iterator[Launch]:
    hidden, weight = floats(1, D_MODEL), floats(D_MODEL)
    acts = Activations.empty(1, D_MODEL, "meta")
    yield Launch("quantize", partial(quantize.quantize, acts, hidden, D_MODEL))
    yield Launch("norm and quantize", partial(quantize.norm_quantize, acts, hidden, weight, 1e-5))
    yield Launch("norm", partial(quantize.rms_norm, hidden, hidden, weight, 1e-5))


def attentions() -> Iterator[Launch]:
    cache = floats(1, KV_HEADS, CONTEXT, HEAD_DIM, dtype=torch.float16)
    heads, position = floats(1, HEADS * HEAD_DIM), ints(1)
    shared, table = floats(1, KV_HEADS * HEAD_DIM), floats(CONTEXT, 2, HEAD_DIM // 2)
    norm = floats(HEAD_DIM)
    yield Launch(
        "rope and cache",
        partial(
            rope.rope_store,
            *(heads, shared, shared, cache, cache, position, table),
            slots=ints(1),
            q_norm=norm,
            k_norm=norm,
            eps=1e-5,
        ),
    )
    partials = attention.Partials.empty(1, HEADS, HEAD_DIM, SPLITS, "meta")
    args = (heads, heads, cache, cache, position, partials)
    yield Launch(
        "attention",
        partial(attention.decode_attention, *args, scale=1.0, slots=ints(1)),
        frozenset({"keys", "values"}),
    )
    many = floats(CHUNK, HEADS * HEAD_DIM)
    yield Launch(
        "attention of a prompt",
        partial(attention.prefill_attention, many, many, cache, cache, position, scale=1.0),
        frozenset({"keys", "values"}),
    )


def ffns(kind: Kind, batch: int) -> Iterator[Launch]:
    """The dense FFN, the one by contribution, and the one by gates of everyone or candidates."""
    of = f"{kind}, {batch} at once"
    variant = (kind, batch) != VARIANTS[0]

    def each(name: str, launcher: Callable[..., object], *args: object, **kwargs: object) -> Launch:
        return Launch(
            f"FFN, {name}, {of}", partial(launcher, *args, **kwargs), FFN_STREAMS, variant
        )

    acts = Activations.empty(batch, D_MODEL, "meta")
    hidden = Activations.empty(batch, FFN, "meta")
    out, gate = floats(batch, D_MODEL), matrix(FFN, D_MODEL, kind)
    found = compact.Survivors.empty(batch, FFN, "meta")
    tests = FfnTests.empty(batch, FFN, "meta", bounds=batch == 1 and kind == "int4")
    tally = Tally.empty(batch, FFN, "meta")
    if batch == 1:
        columns = neurons(kind, "down")
        dense = partial(ffn.hidden_values, hidden, acts, gate, gate, "silu")
        yield Launch(f"FFN, dense, {of}", dense, FFN_STREAMS, variant=True)
        args = (out, hidden, found, acts, gate, gate, columns, tests, tally, "silu")
        yield each("contributors", ffn.find_contributors, *args)
        yield each("their columns", ffn.add_contributors, out, hidden, found, columns)
    rows = neurons(kind, "up")
    rest = tests, tally, "relu"
    yield each("gates", ffn.find_survivors, out, found, acts, gate, rows, *rest)
    yield each(
        "gates of candidates",
        ffn.find_survivors,
        *(out, found, acts, gate, neurons(kind, "gate"), *rest),
        candidates=ints(batch, FFN // GROUP),
    )
    yield each("survivors", ffn.add_survivors, out, found, acts, rows, *rest)
    some = neurons(kind, "gate", 0.5)
    yield each("gates of some", ffn.find_survivors, out, found, acts, None, some, *rest)
    yield each("survivors of some", ffn.add_survivors, out, found, acts, some, *rest)
    yield from ruled(kind, batch)


def ruled(kind: Kind, batch: int) -> Iterator[Launch]:
    """The launches of a plan with every rule."""
    of = f"{kind}, {batch} at once"

    def each(name: str, launcher: Callable[..., object], *args: object, **kwargs: object) -> Launch:
        call = partial(launcher, floats(batch, D_MODEL), *args, **kwargs)
        return Launch(f"FFN, {name}, {of}", call, FFN_STREAMS, variant=True)

    masks = ints(batch, FFN // GROUP)
    acts, hidden = (Activations.empty(batch, size, "meta") for size in (D_MODEL, FFN))
    found = compact.Survivors.empty(batch, FFN, "meta")
    gate, all_, some = matrix(FFN, D_MODEL, kind), neurons(kind, "gate"), neurons(kind, "gate", 0.5)
    attention = Attention(floats(batch, HEADS), floats(2), floats(batch, 2))
    tests = FfnTests.empty(batch, FFN, "meta", bounds=False)._replace(attention=attention)
    rest = tests, Tally.empty(batch, FFN, "meta"), "relu"
    named = {"candidates": masks, "implied": masks}
    fired = {"followers": Followers(ints(FFN, 4), masks)}
    yield each("gates, all rules", ffn.find_survivors, found, acts, gate, all_, *rest)
    few = (found, acts, None, some, *rest)
    yield each("gates of candidates, all rules", ffn.find_survivors, *few, **named)
    yield each("survivors, all rules", ffn.add_survivors, found, acts, some, *rest, **fired)
    whole = (hidden, found, acts, gate, gate, all_, *rest)
    yield each("contributors, all rules", ffn.find_contributors, *whole, **fired)


def choices() -> Iterator[Launch]:
    masks, scores = ints(1, FFN // GROUP), floats(1, FFN)
    yield Launch("name candidates", partial(compact.name_candidates, masks, scores, floats(FFN)))
    for name, params in {
        "take the best": SamplingParams(temperature=0),
        "sample of 40": SamplingParams(temperature=1, top_k=40),
        "sample of 400": SamplingParams(temperature=1, top_k=400),
        "sample of a nucleus": SamplingParams(temperature=1, top_k=0, top_p=0.9),
        "sample of all": SamplingParams(temperature=1, top_k=0, top_p=1),
    }.items():
        sampler = DeviceSampler(VOCAB, CONTEXT, "meta")
        sampler.begin(params)
        yield Launch(
            name,
            partial(sampler.sample, floats(1, VOCAB), ints(3, 1)),
            variant=name not in ("take the best", "sample of 400"),
        )


LAUNCHES: tuple[Launch, ...] = (
    *norms(),
    *products(),
    *attentions(),
    *(launch for kind, batch in VARIANTS for launch in ffns(kind, batch)),
    *choices(),
)
