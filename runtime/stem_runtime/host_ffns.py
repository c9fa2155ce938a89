"""FFN neurons that stay on the CPU while a card computes the rest of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .formats.packed import PackedModel
from .kernels import STEP, choose
from .kernels.cpu import layout as L
from .kernels.jit import load_unit
from .kv_cache import KVCache
from .neuron_tables import NeuronTables, Words, bits
from .quant import GROUP, groups_of
from .sparsity.neurons import LayerNeurons, Neurons, mask_of, with_dead
from .sparsity.plan import FfnPlan
from .team import Team
from .threads import count_threads
from .workspace import Workspace

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]


class HostFfns:
    """What some neurons of every layer's FFN add to a token, computed by a team of threads.

    `owned` uint32 [n_layers, groups] are the masks of those neurons; bits behind the last neuron
    say nothing. The others' rows and columns are not read, but for gates: where more than half of a
    group of 32 are candidates, all its gates are computed, which is cheaper. Every layer of
    `neurons` needs gate rows. The other arguments are those of `Engine`.

    Layers that the plan leaves dense, and every layer before its sinks or without `sparse`, compute
    all owned neurons. In the others the tests are those of the engine, but "contribution" layers
    read rows of up only where the gate is not zero, no layer rests, and floors, caps and
    implications are left out, being about neurons that are elsewhere, too.

    One call at a time. Raises KernelError, UsageError.
    """

    def __init__(
        self,
        model: PackedModel,
        neurons: Neurons,
        owned: U32,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        config, self.threads = model.config, count_threads(threads)
        self._shape = config.n_layers, groups_of(config.ffn_dim)
        if owned.shape != self._shape or owned.dtype != np.uint32:
            raise UsageError("These masks of neurons belong to a model of another shape.")
        # prompts are computed here with all owned neurons, the dead ones too
        self._tables = NeuronTables(model, with_dead(model, neurons), self.threads)
        self._owned = owned & mask_of(np.ones(config.ffn_dim, np.bool_))
        self._alive = self._owned & np.stack([_alive(*pair) for pair in enumerate(neurons.layers)])
        self._ones = np.ones(GROUP * self._shape[1], np.float32)
        self._known, self._whole = self._make_words(config.ffn_dim)
        self._dense = np.ones(config.n_layers, np.bool_)
        self._resampled = np.zeros((config.n_layers, 1), np.bool_)
        self._offered = np.zeros_like(self._owned)
        self.kernels = choose(kernels)
        entries = load_unit(STEP, self.kernels.name, notify)
        self._work = Workspace(model, self.threads, self.kernels.token_block, outliers=False)
        self._tables.point(self._work.args)
        self._point(config.d_model)
        self._run_whole()
        self._team = Team(entries, self._work.args, self.threads, self)
        self._closed = False

    def set_plan(self, plan: FfnPlan | None) -> None:
        """What sparse tokens leave out from now on. UsageError for a plan that does not fit."""
        if plan is None:
            self._tables.set_plan(None)
            return
        self._tables.set_plan(dataclasses.replace(plan, floors=None, caps=None, implications=False))
        words = self._tables.words
        for column in (L.F_ALIVE, L.F_WEIGHTS, L.F_NORMS):
            words[:, column] = self._known[:, column]
        modes = np.array(plan.modes)
        dense, adding = modes == "dense", modes == "contribution"
        words[dense] = self._whole[dense]
        words[adding, L.F_MODE], words[adding, L.F_CANDIDATES] = L.MODE_GATE, L.RESAMPLED
        words[adding, L.F_GATE_CUTOFF] = bits(0.0)
        words[adding, L.F_WEIGHTS] = self._ones.ctypes.data
        words[words[:, L.F_CANDIDATES] == L.ALL, L.F_CANDIDATES] = L.RESAMPLED
        self._dense = dense
        self._resampled[:, 0] = (modes == "gate") & (plan.candidates == "resampled")
        self._offered[:] = np.where(dense[:, None], self._owned, self._alive)

    def begin(self, cache: KVCache, *, sparse: bool) -> None:
        """Start the next token of `cache`, and forget what was counted for the last one.

        With `sparse` neurons are left out as the plan says. `add` then adds contributions to the
        cache's heat, where it collects any. Raises UsageError.
        """
        if self._closed:
            raise UsageError("This model is closed; load it again.")
        self._team.check()
        plan, groups = self._tables.plan, self._shape[1]
        if sparse and plan is None:
            raise UsageError("There is no plan of what to leave out; set one first.")
        self._run_whole()
        if plan is None or not sparse or cache.length < plan.sinks:
            return
        self._work.known(cache.candidates, np.uint32, groups)
        self._heat = self._work.known(cache.heat, np.float32, GROUP * groups)
        if self._resampled.any():
            chosen = self._alive if cache.candidates is None else cache.candidates
            np.bitwise_and(self._alive, chosen, out=self._offered, where=self._resampled)
        self._aim(self._tables.words, self._offered, self._dense)

    def add(self, index: int, x: F32, sharpness: float = 0.0) -> F32:
        """What the owned neurons of layer `index` add: float32 [d_model].

        `x` float32 [d_model] is the FFN's input, normalized; `sharpness` how sharp the token's
        attention was there, for plans that ask. The next call overwrites the result. Raises
        UsageError.
        """
        if self._closed:
            raise UsageError("This model is closed; load it again.")
        if not 0 <= index < self._shape[0]:
            raise UsageError(f"Layers are from 0 to {self._shape[0] - 1}, not {index}.")
        args = self._args
        args[L.FFN_LAYER] = index
        args[L.HEAT] = 0 if self._is_whole[index] else self._heat
        self._sharpness[index] = sharpness
        self._x[:] = x
        self._team.run(L.JOB_FFN)
        return self._y

    @property
    def counts(self) -> Words:
        """Of this token, int64 [n_layers, 8]: the columns are `neuron_tables.COUNTS`.

        Layers that skip none of the owned neurons count nothing but that they are dense.
        """
        counts = self._tables.counts
        counts[self._is_whole] = 0
        counts[self._is_whole, -1] = 1
        return counts

    @property
    def captured(self) -> F32:
        """Of this token, float32 [n_layers]: the active neurons' contributions summed."""
        captured = self._tables.captured
        captured[self._is_whole] = 0
        return captured

    def ffn_bytes(self, counts: NDArray[np.floating] | Words) -> float:
        """Bytes of FFN weights that a token reads here, given its counts or mean counts."""
        return self._tables.nbytes(counts, self._tables.owned_bytes(self._owned))

    def close(self) -> None:
        """Stop the threads. Idempotent."""
        if not self._closed:
            self._closed = True
            self._team.close()

    def _make_words(self, ffn: int) -> tuple[Words, Words]:
        """The tables before any plan, and those of tokens that compute all owned neurons."""
        words = self._tables.words
        words[:, L.F_ALIVE] = _rows(self._alive)
        whole = words.copy()
        whole[:, L.F_MODE], whole[:, L.F_CANDIDATES] = L.MODE_GATE, L.RESAMPLED
        whole[:, L.F_ALIVE], whole[:, L.F_CAP] = _rows(self._owned), ffn
        whole[:, L.F_WEIGHTS] = whole[:, L.F_NORMS] = self._ones.ctypes.data
        return words.copy(), whole

    def _point(self, d_model: int) -> None:
        """Give the step memory for what goes in and what comes out."""
        args, size = self._work.args, GROUP * groups_of(d_model)
        inputs, outputs = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self._sharpness = np.zeros(self._shape[0], np.float32)
        self._rest = np.zeros((self._shape[0], 2), np.int32)
        for word, array in (
            (L.X, inputs),
            (L.Y, outputs),
            (L.SHARPNESS, self._sharpness),
            (L.REST, self._rest),
        ):
            args[word] = array.ctypes.data
        self._args, self._x, self._y = args, inputs[:d_model], outputs[:d_model]

    def _run_whole(self) -> None:
        """Begin a token that computes all owned neurons."""
        self._tables.begin()
        self._heat = 0
        self._aim(self._whole, self._owned, np.ones(self._shape[0], np.bool_))

    def _aim(self, words: Words, offered: U32, whole: NDArray[np.bool_]) -> None:
        self._args[L.FFN], self._args[L.CHOSEN] = words.ctypes.data, offered.ctypes.data
        self._is_whole = whole


def _alive(index: int, layer: LayerNeurons | None) -> U32:
    if layer is None or layer.stored.parts != "gate":
        raise UsageError(f"Layer {index} has no gate rows; calibrate again.")
    return layer.alive


def _rows(masks: U32) -> Words:
    """Addresses of the rows of a matrix."""
    return masks.ctypes.data + masks.strides[0] * np.arange(len(masks))
