"""What of the FFNs stays in memory while a conversation draws its own candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arena import Arena
from .formats.packed import PackedModel
from .kernels.cpu import layout as L
from .mapped import Span, can_give_back, span_of
from .quant import GROUP, PackedMatrix
from .sparsity.neurons import LayerNeurons, bits_of, mask_of
from .sparsity.plan import FfnPlan

Bools = NDArray[np.bool_]
U32 = NDArray[np.uint32]
Words = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Spans:
    """Parts of files that a layer reads: dense, when it looks, and when its set is drawn."""

    tiles: tuple[Span, ...]
    gates: Span
    records: Span


class Residence:
    """Copies the candidates of a conversation into an arena, and gives the rest of the files back.

    What the prompt and tokens that ran dense touched is given back before the first token of which
    a layer has candidates; what a look touched, before the next one. So is the output head's
    matrix, where only some rows are computed of its copy. Results are the same: the same bytes are
    read, from another place.

    Only weights that are views of mapped files can be given back, and only where the system takes
    them; elsewhere nothing is copied.
    """

    def __init__(
        self, model: PackedModel, layers: Sequence[LayerNeurons | None], words: Words
    ) -> None:
        """`words` [n_layers, FFN_WORDS] are those of the layers; this enters places and
        F_GATE_ROWS.
        """
        self._words, self._ffn = words, model.config.ffn_dim
        self._layers = layers
        self._everyone = mask_of(np.ones(self._ffn, np.bool_))
        self._sets: U32 = np.zeros((len(layers), len(self._everyone)), np.uint32)
        self._looked, self._dense = np.zeros((2, len(layers)), np.bool_)
        self._spans = [_spans(model, index, layer) for index, layer in enumerate(layers)]
        self._head = _span(model.matrix("embed" if model.config.tied_head else "head"))
        self._head_read = False
        self._last: U32 | None = None
        self.arena: Arena | None = None

    def read_whole(self) -> None:
        """The next step reads all FFNs dense, and maybe the head."""
        self._dense[:], self._head_read, self._last = True, True, None

    def follow(self, plan: FfnPlan, candidates: U32 | None, dense: Bools, look: bool) -> None:
        """Prepare a sparse step with these candidates [n_layers, groups], None for everyone.

        `dense` [n_layers] are the layers that run dense for now; with `look` the head does not.
        """
        self._head_read |= not look
        if candidates is not None and look and self._head_read and self._head is not None:
            self._head.give_back()
            self._head_read = False
        if candidates is not None and candidates is self._last and not dense.any():
            return
        gated = np.array([mode == "gate" for mode in plan.modes]) & [
            s is not None for s in self._spans
        ]
        looking = np.ones(len(gated), np.bool_)
        if candidates is not None:
            looking = (candidates & self._everyone == self._everyone).all(axis=1)
        sparse = gated & ~dense
        self._looked |= sparse & looking
        self._dense |= dense
        self._words[gated, L.F_GATE_ROWS] = np.where(looking, L.GATE_ROWS, GROUP)[gated]
        for layer in np.flatnonzero(sparse & self._dense):
            self._give_tiles_back(int(layer))
        for layer in np.flatnonzero(sparse & ~looking):
            assert candidates is not None
            self._keep(int(layer), candidates[layer], plan.core)
        self._last = None if dense.any() else candidates

    def clear(self) -> None:
        """Forget the candidates, and give the arena back."""
        if self.arena is not None and self.arena.held:
            self.arena.clear()
            self._sets[:], self._last = 0, None
        for words, spans in zip(self._words, self._spans, strict=True):
            if spans is not None:
                words[L.F_GATE_ROWS] = L.GATE_ROWS

    def _keep(self, layer: int, candidates: U32, core: bool) -> None:
        neurons, spans = self._layers[layer], self._spans[layer]
        assert neurons is not None and spans is not None
        wanted = candidates | neurons.core if core else candidates
        if not np.array_equal(wanted, self._sets[layer]):
            self._open_arena().keep(layer, bits_of(wanted, self._ffn))
            self._sets[layer], self._looked[layer] = wanted, True
        if self._looked[layer]:
            spans.gates.give_back()
            spans.records.give_back()
        self._looked[layer] = False

    def _give_tiles_back(self, layer: int) -> None:
        spans = self._spans[layer]
        assert spans is not None
        for span in spans.tiles:
            span.give_back()
        self._dense[layer] = False

    def _open_arena(self) -> Arena:
        if self.arena is None:
            pairs = list(zip(self._layers, self._spans, strict=True))
            records = [None if s is None or n is None else n.stored.records for n, s in pairs]
            cuts = [int(cut) for cut in self._words[:, L.F_UP]]
            nobody = np.zeros(0, np.int64)
            rows = [nobody if layer is None else layer.rows() for layer in self._layers]
            self.arena = Arena(records, rows, cuts, GROUP * len(self._everyone))
            for layer, found in enumerate(records):
                if found is not None:
                    row = self._words[layer]
                    row[L.F_PLACES] = self.arena.places[layer].ctypes.data
                    row[L.F_GATE_PLACES] = self.arena.gate_places[layer].ctypes.data
            # opening a profile checks all of it, which touches what is never read here
            for data in {id(s.records.data): s.records.data for s in self._spans if s}.values():
                Span(data, 0, len(data)).give_back()
        return self.arena


def _spans(model: PackedModel, index: int, layer: LayerNeurons | None) -> _Spans | None:
    """None for a layer that has no candidates, or of which anything is not mapped from a file."""
    if layer is None or layer.stored.parts != "gate" or layer.stored.gates is None:
        return None
    gate, up, down = (model.matrix(f"layers.{index}.{name}") for name in ("gate", "up", "down"))
    tiles = tuple(_span(*matrices) for matrices in ((gate, up), (down,)))
    gates, records = _span(layer.stored.gates), span_of([layer.stored.records])
    known = tuple(span for span in tiles if span is not None)
    if len(known) < len(tiles) or gates is None or records is None or not can_give_back():
        return None
    return _Spans(known, gates, records)


def _span(*matrices: PackedMatrix) -> Span | None:
    return span_of([part for matrix in matrices for part in (matrix.scales, matrix.quants)])
