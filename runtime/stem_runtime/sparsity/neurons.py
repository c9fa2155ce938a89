"""FFN weights neuron by neuron, so that a neuron that is left out is memory that is never read.

The same bits as in the tiles of the packed model, in another order.

Records, uint8 [n, record_bytes], hold what belongs to one neuron in one stretch of memory: its
row of gate, its row of up (both only where they are read one by one) and its column of down, each
padded to a multiple of 64 bytes. They are in the order of the neurons, of all or of those alone
that calibration saw fire. What 32 columns share lies apart, uint8 [groups, shared_bytes]: float16
scales [width], for int4m float16 minima [width]. Nearly every group has a neuron that fires, so
that these are read one after the other, which is faster than in between.

A row is quants, float16 scales and for int4m float16 minima, of an even number of groups of 32
columns. int4 has 16 bytes a group: byte i holds column i in its low nibble and column 16 + i in
its high one. int8 has the columns in their order, plus 128.

A column has `width` outputs, d_model rounded up to 64, stored so that interleaving the bytes of
four neurons, 16 at a time, puts them in order: byte 16 L + 4 v + i of a chunk is of output
16 v + 4 L + i, where int8 has 64 outputs a chunk, and int4 the low nibbles of 64 bytes for outputs
32 v + 4 L + i of 128, the high ones for those 16 further on; a last chunk of 64 outputs has them at
16 v + 4 L + i, and 8 further.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..kernels.cpu import layout as L
from ..quant import GROUP, PackedMatrix, PlainMatrix, groups_of, pack, unpack_plain

if TYPE_CHECKING:
    from ..formats.packed import PackedModel

_LINE = 64

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

KINDS = {"int4": L.INT4, "int4m": L.INT4_MINIMA, "int8": L.INT8}


Parts = Literal["down", "up", "gate"]
PARTS: tuple[Parts, ...] = get_args(Parts)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Names the neurons whose gate is worth computing, from few numbers of the FFN's input x.

    `axes` [rank, d_model], `scores` [ffn, rank], int4 or int8: neuron j is a candidate when
    (scores @ axes @ x)[j], both products as the kernels round them, is over `cutoffs` [ffn].
    """

    axes: PackedMatrix
    scores: PackedMatrix
    cutoffs: F32


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A layer's weights neuron by neuron: `records` uint8 [n, record_bytes] hold `parts` of all
    neurons or of those that are alive, and `shared` uint8 [groups, shared_bytes] what groups of
    columns share.

    "down" is enough where every gate and up is computed, "up" where every gate is, "gate" where
    candidates alone are. `gates`, wanted unless every up is computed too, are the rows of gate, of
    all or of the same neurons, in tiles that lie by themselves: in the packed model the tiles of up
    lie between them, and skipping those costs a CPU's prefetchers nearly what reading them costs.
    """

    records: U8
    shared: U8
    parts: Parts
    gates: PackedMatrix | None = None


@dataclass(frozen=True, slots=True)
class LayerNeurons:
    """One layer's FFN neuron by neuron, and what calibration knows of its neurons.

    `weights` and `norms` float32 [ffn] make potentials and contributions (see `FfnPlan`). `core`
    (always on) and `alive` (ever on) are masks, uint32 [groups], a bit for each of 32 neurons.
    `implied` int32 [ffn, k] names neurons of the next layer that tend to fire with a neuron of this
    one, -1 for none. `sharpness` is mean and spread of how sharp this layer's attention is.
    """

    stored: LayerWeights
    weights: F32
    norms: F32
    core: U32
    alive: U32
    implied: I32 | None = None
    predictor: Predictor | None = None
    sharpness: tuple[float, float] = (0.0, 1.0)

    def rows(self) -> I64:
        """Whose record is which row, int64 [ffn]: -1 for dead neurons where those have none."""
        count = len(self.weights)
        if len(self.stored.records) == count:
            return np.arange(count)
        alive = bits_of(self.alive, count)
        return np.where(alive, np.cumsum(alive) - 1, -1)

    def tiled(self) -> U32:
        """Who has a row in `stored.gates`, or in the packed model's tiles: masks [groups]."""
        count, gates = len(self.weights), self.stored.gates
        everyone = gates is None or gates.rows == count
        return mask_of(np.ones(count, np.bool_)) if everyone else self.alive


@dataclass(frozen=True, slots=True)
class Neurons:
    """The FFNs of a model neuron by neuron; None for layers that always run dense."""

    layers: tuple[LayerNeurons | None, ...]

    def cut(self, start: int, stop: int) -> Neurons:
        """The neurons of layers `start` to `stop` - 1; the last of them implies nobody."""
        layers = list(self.layers[start:stop])
        if layers and layers[-1] is not None:
            layers[-1] = dataclasses.replace(layers[-1], implied=None)
        return Neurons(tuple(layers))


def with_dead(model: PackedModel, neurons: Neurons) -> Neurons:
    """The same neurons with everyone's records, for those who compute dead ones too."""
    layers = list(neurons.layers)
    for index, layer in enumerate(layers):
        if layer is not None and layer.rows().min() < 0:
            stored = layer_weights(model, index, layer.stored.parts)
            layers[index] = dataclasses.replace(layer, stored=stored)
    return Neurons(tuple(layers))


def rows_kept(matrix: PackedMatrix, kept: NDArray[np.bool_]) -> PackedMatrix:
    """A matrix of some of the rows, bool [rows]; itself if of all."""
    if kept.all():
        return matrix
    plain = unpack_plain(matrix)
    minima = None if plain.minima is None else plain.minima[kept]
    few = PlainMatrix(plain.kind, plain.quants[kept], plain.scales[kept], minima)
    return _alone(pack(few, matrix.name, matrix.cols))


def rows_of(matrix: PackedMatrix) -> U8:
    """The rows of a matrix one after the other, bit for bit: uint8 [rows, row_bytes]."""
    plain, groups = unpack_plain(matrix), groups_of(matrix.cols)
    even = groups + groups % 2
    parts = [_pad(_row_quants(plain).reshape(matrix.rows, -1), even * _group_quants(plain))]
    halves = [values for values in (plain.scales, plain.minima) if values is not None]
    parts += [_pad(_bytes(values), 2 * even) for values in halves]
    return _pad(np.concatenate(parts, axis=1), L.row_bytes(KINDS[matrix.kind], groups))


def columns_of(matrix: PackedMatrix) -> U8:
    """The columns of a matrix one after the other: uint8 [cols, column_bytes]."""
    plain, kind = unpack_plain(matrix), KINDS[matrix.kind]
    width = L.column_width(matrix.rows)
    quants = _pad(np.ascontiguousarray(plain.quants.T), width)
    return _pad(_interleaved(quants, kind), L.column_bytes(kind, matrix.rows))[: matrix.cols]


def shared_of(matrix: PackedMatrix) -> U8:
    """What the columns of each group of 32 share: uint8 [groups, bytes] of scales, minima."""
    plain, width = unpack_plain(matrix), L.column_width(matrix.rows)
    halves = [values for values in (plain.scales, plain.minima) if values is not None]
    parts = [_pad(_bytes(np.ascontiguousarray(values.T)), 2 * width) for values in halves]
    return np.concatenate(parts, axis=1)


def layer_weights(
    model: PackedModel, layer: int, parts: Parts, alive: U32 | None = None
) -> LayerWeights:
    """A layer's FFN neuron by neuron, copied from the tiles of the packed model.

    With a mask of who is `alive` the dead are dropped, unless all are.
    """
    gate, up, down = (model.matrix(f"layers.{layer}.{name}") for name in ("gate", "up", "down"))
    rows = [rows_of(matrix) for matrix in (gate, up)[2 - PARTS.index(parts) :]]
    records = np.concatenate([*rows, columns_of(down)], axis=1)
    kept = np.ones(len(records), np.bool_)
    if alive is not None and alive.any():
        kept = bits_of(alive, len(records))
    records = _aligned(records[kept])
    shared = _aligned(shared_of(down))
    if parts == "down":
        return LayerWeights(records, shared, parts)
    few = rows_kept(gate, kept)
    return LayerWeights(records, shared, parts, _alone(gate) if few is gate else few)


def record_sizes(
    gate: PackedMatrix, up: PackedMatrix, down: PackedMatrix, parts: Parts
) -> tuple[int, int, int]:
    """Bytes of a neuron's row of gate, row of up and column of down; 0 for what is not kept."""
    rows = [L.row_bytes(KINDS[matrix.kind], groups_of(matrix.cols)) for matrix in (gate, up)]
    column = L.column_bytes(KINDS[down.kind], down.rows)
    return rows[0] if parts == "gate" else 0, 0 if parts == "down" else rows[1], column


def mask_of(bits: NDArray[np.bool_]) -> U32:
    """Pack bool [ffn] into uint32 [groups], neuron j being bit j % 32 of word j // 32."""
    padded = np.zeros(groups_of(len(bits)) * GROUP, np.bool_)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def bits_of(mask: U32, count: int) -> NDArray[np.bool_]:
    """The inverse of `mask_of`: bool [count]."""
    raw = np.ascontiguousarray(mask, "<u4").view(np.uint8)
    return np.unpackbits(raw, count=count, bitorder="little").astype(np.bool_)


def _group_quants(plain: PlainMatrix) -> int:
    return GROUP if plain.kind == "int8" else GROUP // 2


def _row_quants(plain: PlainMatrix) -> U8:
    if plain.kind == "int8":
        return plain.quants
    halves = plain.quants.reshape(-1, 2, GROUP // 2)
    return halves[:, 0] | halves[:, 1] << np.uint8(4)


def _interleaved(quants: U8, kind: int) -> U8:
    """Reorder the outputs of every column [ffn, width] as the module docstring says."""
    count, width = quants.shape
    if kind == L.INT8:
        chunks = quants.reshape(count, -1, 4, 4, 4)  # chunk, v, L, i
        return np.ascontiguousarray(chunks.transpose(0, 1, 3, 2, 4)).reshape(count, width)
    full = width // 128 * 128
    pieces = []
    for part, lanes in ((quants[:, :full], 4), (quants[:, full:], 2)):
        chunks = part.reshape(count, -1, 4, 2, lanes, 4)  # chunk, v, nibble, L, i
        joined = chunks[:, :, :, 0] | chunks[:, :, :, 1] << np.uint8(4)
        pieces.append(joined.transpose(0, 1, 3, 2, 4).reshape(count, -1))
    return np.concatenate(pieces, axis=1)


def _bytes(values: NDArray[np.float16]) -> U8:
    return np.ascontiguousarray(values, "<f2").view(np.uint8)


def _alone(matrix: PackedMatrix) -> PackedMatrix:
    """A copy whose tiles lie by themselves."""
    tiles = _aligned(matrix.joined())
    return PackedMatrix.of_tiles(matrix.name, matrix.rows, matrix.cols, matrix.kind, tiles)


def _aligned(array: U8) -> U8:
    """A copy that starts on a cache line, as what is read from a profile does."""
    memory = np.empty(array.nbytes + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    copy = memory[start : start + array.nbytes].reshape(array.shape)
    copy[:] = array
    return copy


def _pad(array: U8, width: int) -> U8:
    if array.shape[1] == width:
        return array
    padded = np.zeros((len(array), width), np.uint8)
    padded[:, : array.shape[1]] = array
    return padded
