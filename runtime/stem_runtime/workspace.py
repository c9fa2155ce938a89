"""The memory that the compiled step works on: its argument block, tables and buffers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .cache_kinds import CacheKind, bytes_per_position, head_pad
from .config import ACTIVATIONS
from .errors import UsageError
from .formats.packed import PackedModel
from .kernels.cpu import layout as L
from .kv_cache import KVCache
from .neuron_tables import NeuronTables, bits, matrix_words
from .quant import TILE, groups_of, tiles_of

if TYPE_CHECKING:
    from .sparsity.head import HeadLook
    from .sparsity.neurons import Neurons

_CHUNK = 256
_CHUNK_WORK = 3e10
"""Multiply-adds of one prefill chunk at most, so that cancelling between chunks stays quick."""

_VECTORS = {
    L.ATTN_NORM: "attn_norm",
    L.FFN_NORM: "ffn_norm",
    L.Q_BIAS: "q_bias",
    L.K_BIAS: "k_bias",
    L.V_BIAS: "v_bias",
    L.Q_NORM: "q_norm",
    L.K_NORM: "k_norm",
    L.ATTN_POST_NORM: "attn_post_norm",
    L.FFN_POST_NORM: "ffn_post_norm",
}
_MATRICES = {
    L.Q: "q",
    L.K: "k",
    L.V: "v",
    L.O: "o",
    L.GATE: "gate",
    L.UP: "up",
    L.DOWN: "down",
}
_CACHES: dict[CacheKind, int] = {"fp16": L.CACHE_FP16, "int8": L.CACHE_INT8}

Floats = NDArray[np.float32]
Words = NDArray[np.int64]


class Workspace:
    """Owns everything that the argument block points to. Float buffers are float32.

    `chunk` is how many tokens one prefill step takes, `block` how many share a load of a weight.
    `logits` is [rows, 16 * tiles of the head], overwritten by every step. `row` [1, d_pad] has room
    for the residual stream of one token.
    """

    def __init__(self, model: PackedModel, threads: int, block: int, outliers: bool) -> None:
        config = model.config
        self._model, self._block, self._threads = model, block, threads
        self._kept: list[NDArray[np.generic]] = []
        self.args: Words = np.zeros(L.ARGS_WORDS, np.int64)
        self.args[L.APART] = outliers
        self._d_pad = _round_up(config.d_model, 32)
        self._attended_pad = _round_up(config.n_heads * config.head_dim, 32)
        self._head_pad = head_pad(config.head_dim, "int8")  # the wider of the two
        fit = int(_CHUNK_WORK / model.parameters) // 16 * 16
        self.chunk = min(_CHUNK, max(64, fit))
        self.row: Floats = np.zeros((1, self._d_pad), np.float32)
        self._room = self._logits_room = 0
        self._aimed: Callable[[], KVCache | None] = _nothing
        self._set_sizes()
        self._layers = np.zeros((config.n_layers, L.LAYER_WORDS), np.int64)
        self._set_weights()
        self._set_decode_buffers()
        self._has_prefill = False
        self._look: Look | None = None
        self.ffn: NeuronTables | None = None
        self._no_neurons = np.zeros(config.n_layers, np.float32)
        self.args[L.SHARPNESS] = self._no_neurons.ctypes.data
        self.logits: Floats
        self._reserve_logits(L.STEP_TOKENS)

    def aim(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        logits_from: int,
        look: bool = False,
        sparse: bool = False,
    ) -> None:
        """Point the next step at a cache, the tokens after it and the first wanted logits."""
        if self._aimed() is not cache:
            self._aim_cache(cache)
        count = len(tokens)
        self._reserve_logits(max(L.STEP_TOKENS, count - logits_from))
        self._tokens[:count] = tokens
        args = self.args
        args[L.N_TOKENS], args[L.POSITION], args[L.LOGITS_FROM] = count, cache.length, logits_from
        if look and self._look is None:
            raise UsageError("This engine has no look at the vocabulary; calibrate first.")
        args[L.LOOK] = self._look.address if look and self._look else 0
        self._aim_ffn(cache, sparse)

    def _aim_cache(self, cache: KVCache) -> None:
        """Point at another cache than that of the step before."""
        args = self.args
        self._aimed = _nothing  # until all is done, since Ctrl-C can fall in between
        if cache.room > self._room:
            self._room = 0
            self._set_rope(cache.room)
            self._set_partials(cache.room)
            self._room = cache.room
        args[L.KEYS], args[L.VALUES] = cache.keys.ctypes.data, cache.values.ctypes.data
        args[L.HEAD_BYTES] = cache.keys.strides[0]
        args[L.CACHE] = _CACHES[cache.kind]
        args[L.HEAD_PAD] = head_pad(self._model.config.head_dim, cache.kind)
        self._aimed = weakref.ref(cache)

    def _aim_ffn(self, cache: KVCache, sparse: bool) -> None:
        args, ffn = self.args, self.ffn
        if ffn is None:
            if sparse:
                raise UsageError("This engine was made without neurons to skip; calibrate first.")
            return
        if sparse and ffn.plan is None:
            raise UsageError("There is no plan of what to leave out; set one first.")
        ffn.begin()
        args[L.REST] = cache.rest.ctypes.data
        args[L.SPARSE] = sparse
        args[L.SINKS] = ffn.plan.sinks if ffn.plan is not None else 0
        groups = int(args[L.FFN_GROUPS])
        args[L.CHOSEN] = self.known(cache.candidates, np.uint32, groups)
        args[L.HEAT] = self.known(cache.heat, np.float32, 32 * groups)
        if sparse and args[L.N_TOKENS] == 1:
            ffn.follow(cache, look=bool(args[L.LOOK]))
        else:
            ffn.read_whole()

    def known(self, array: NDArray[np.generic] | None, kind: type[np.generic], width: int) -> int:
        """Address of what a cache knows of every layer's neurons, 0 for nothing."""
        if array is None:
            return 0
        fits = array.shape == (len(self._layers), width) and array.dtype == kind
        if not fits or not array.flags.c_contiguous:
            raise UsageError("What this cache knows of neurons belongs to another model.")
        return array.ctypes.data

    def _reserve_logits(self, rows: int) -> None:
        if rows > self._logits_room:
            self._logits_room = 0
            width = 16 * int(self._head[L.TILES])
            self.logits = np.zeros((rows, width), np.float32)
            self.args[L.LOGITS] = self.logits.ctypes.data
            self._logits_room = rows

    def reserve_prefill(self) -> None:
        """Make the buffers of prefill at its first use; decoding alone does without them."""
        if self._has_prefill:
            return
        tokens = _round_up(self.chunk, self._block)
        self.args[L.X] = self._new_floats(tokens * self._d_pad)
        self.args[L.Y] = self._new_floats(tokens * self._d_pad)
        self.args[L.QKV] = self._new_floats(tokens * int(self.args[L.QKV_ROWS]))
        self.args[L.ATTENDED] = self._new_floats(tokens * self._attended_pad)
        groups = max(self._d_pad, self._attended_pad) // 32
        self.args[L.ACTS] = self._new_acts(groups * tokens, tokens if self.args[L.APART] else 0)
        self.args[L.HIDDEN] = self._new_acts(self._hidden_groups * tokens, 0)
        self._has_prefill = True

    @contextmanager
    def states(self, count: int) -> Iterator[Floats]:
        """Make prefill write what the head would get, float32 [count, d_pad], and no logits."""
        states = np.zeros((count, self._d_pad), np.float32)
        self.args[L.STATES] = states.ctypes.data
        try:
            yield states
        finally:
            self.args[L.STATES] = 0

    @contextmanager
    def residual(self, states: Floats) -> Iterator[None]:
        """Make steps write the residual stream to `states` [tokens, d_pad], and no logits."""
        self.args[L.RESIDUAL] = states.ctypes.data
        try:
            yield
        finally:
            self.args[L.RESIDUAL] = 0

    @contextmanager
    def ffn_states(self, count: int) -> Iterator[Floats]:
        """Make prefill write what the FFNs get, float32 [n_layers, count, d_pad]."""
        states = np.zeros((self._model.config.n_layers, count, self._d_pad), np.float32)
        self.args[L.FFN_STATES] = states.ctypes.data
        try:
            yield states
        finally:
            self.args[L.FFN_STATES] = 0

    def set_look(self, head: HeadLook) -> None:
        """Let decode look at the vocabulary. Raises UsageError where `head` is of another model."""
        config = self._model.config
        wanted = (config.vocab_size, int(self._head[L.GROUPS]), L.ROW_GROUP_BYTES)
        if head.rows.shape != wanted or head.rotation.cols != config.d_model:
            raise UsageError("This look at the vocabulary belongs to a model of another shape.")
        self._look = Look(head, self._threads)

    def set_neurons(self, neurons: Neurons) -> None:
        """Let decode skip neurons. Raises UsageError where they are of another model."""
        self.ffn = NeuronTables(self._model, neurons, self._threads)
        self.ffn.point(self.args)

    @property
    def rows_done(self) -> int:
        """Rows of the head that the last step computed in full, of all its tokens."""
        if self.args[L.LOOK] == 0 or self._look is None:
            return self._model.config.vocab_size * int(self.args[L.N_TOKENS])
        return int(self._look.words[L.LOOK_DONE])

    def bytes_per_token(self, context: int, rows: float | None, kind: CacheKind) -> int:
        config, model = self._model.config, self._model
        embed = 0 if config.tied_head else model.matrix("embed").nbytes
        if rows is not None and self._look is not None:
            whole = model.matrix("embed" if config.tied_head else "head").nbytes
            embed += whole - self._look.nbytes(rows)
        seen = sum(min(window or context, context) for window in config.layer_windows)
        position = bytes_per_position(config.head_dim, config.kv_heads, kind)
        return model.nbytes - embed + position * seen

    def _set_sizes(self) -> None:
        config, args = self._model.config, self.args
        args[L.N_LAYERS], args[L.D_MODEL], args[L.D_PAD] = (
            config.n_layers,
            config.d_model,
            self._d_pad,
        )
        args[L.N_HEADS], args[L.KV_HEADS] = config.n_heads, config.kv_heads
        args[L.HEAD_DIM] = config.head_dim
        args[L.ATTENDED_PAD] = self._attended_pad
        args[L.ACTIVATION] = ACTIVATIONS.index(config.activation)
        args[L.ACTIVATION_PARAM] = bits(config.activation_param)
        args[L.NORM_EPS], args[L.INVERSE_D] = bits(config.norm_eps), bits(1 / config.d_model)
        args[L.ATTN_SCALE] = bits(config.attn_scale)
        args[L.EMBED_SCALE] = bits(config.embed_scale)
        args[L.VOCAB] = config.vocab_size
        args[L.RESIDUAL_SCALE] = bits(config.residual_scale)

    def _set_weights(self) -> None:
        config, model, args = self._model.config, self._model, self.args
        for index, words in enumerate(self._layers):
            prefix = f"layers.{index}."
            for place, name in _MATRICES.items():
                words[place : place + L.MATRIX_WORDS] = matrix_words(model.matrix(prefix + name))
            for place, name in _VECTORS.items():
                if model.has(prefix + name):
                    words[place] = self._padded(model.vector(prefix + name))
            words[L.WINDOW] = config.layer_windows[index]
        args[L.LAYERS] = self._layers.ctypes.data
        embed = model.matrix("embed")
        self._embed = matrix_words(embed)
        self._head = matrix_words(embed if config.tied_head else model.matrix("head"))
        args[L.EMBED], args[L.HEAD] = self._embed.ctypes.data, self._head.ctypes.data
        # the head is linear, so the logits' scale can go into the norm before it
        args[L.FINAL_NORM] = self._padded(model.vector("norm") * np.float32(config.logit_scale))
        first = self._layers[0]
        args[L.QKV_ROWS] = 16 * (first[L.Q + L.TILES] + 2 * first[L.K + L.TILES])
        self._hidden_groups = int(first[L.DOWN + L.GROUPS])

    def _set_decode_buffers(self) -> None:
        config, args = self._model.config, self.args
        self._tokens = np.zeros(self.chunk, np.int32)
        args[L.TOKENS] = self._tokens.ctypes.data
        tokens = L.STEP_TOKENS
        args[L.Y] = self._new_floats(tokens * self._d_pad)
        args[L.QKV] = self._new_floats(tokens * int(args[L.QKV_ROWS]))
        args[L.HIDDEN] = self._new_acts(tokens * self._hidden_groups, 0)
        group = config.n_heads // config.kv_heads
        size = L.scratch_bytes(
            self._d_pad,
            self._attended_pad,
            config.n_heads,
            group,
            self._head_pad,
            self._block,
            groups_of(config.ffn_dim),
        )
        args[L.SCRATCH_BYTES] = size
        args[L.SCRATCH] = self._new_floats(self._threads * size // 4)

    def _set_rope(self, length: int) -> None:
        """Cosines and sines [position, 2, head_dim / 2] for both kinds of layers."""
        config = self._model.config
        tables = {True: config.rope_local_inv_freq, False: config.rope_inv_freq}
        addresses = {}
        self._rope_tables: list[Floats] = []  # the shorter ones before are of no more use
        for local, frequencies in tables.items():
            if frequencies:
                positions = np.arange(length, dtype=np.float32)
                angles = np.outer(positions, np.asarray(frequencies, np.float32))
                table = np.stack([np.cos(angles), np.sin(angles)], axis=1)
                self._rope_tables.append(table)
                addresses[local] = table.ctypes.data
        for words, window in zip(self._layers, config.layer_windows, strict=True):
            words[L.ROPE] = addresses[bool(window) and True in addresses]

    def _set_partials(self, length: int) -> None:
        """Where decoding leaves the attention of every chunk of positions."""
        config, args = self._model.config, self.args
        args[L.CHUNKS] = L.attention_chunks(length)
        each = config.n_heads * (self._head_pad + 16)
        self._partials = np.zeros(L.STEP_TOKENS * int(args[L.CHUNKS]) * each, np.float32)
        args[L.PARTIALS] = self._partials.ctypes.data

    def _keep(self, array: NDArray[np.generic]) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)

    def _padded(self, vector: Floats) -> int:
        padded = np.zeros(_round_up(len(vector), 32), np.float32)
        padded[: len(vector)] = vector
        return self._keep(padded)

    def _new_floats(self, count: int) -> int:
        """Address of `count` zeros on a cache line boundary."""
        buffer = np.zeros(count + 16, np.float32)
        return _round_up(self._keep(buffer), 64)

    def _new_acts(self, items: int, outliers: int) -> int:
        """Address of activations words with room for `items` groups of 32.

        `outliers` tokens keep theirs apart.
        """
        words = np.zeros(L.ACTS_WORDS, np.int64)
        words[L.A_QUANTS] = self._new_floats(8 * items)
        words[L.A_SCALES], words[L.A_BIAS], words[L.A_SUMS] = (
            self._new_floats(items) for _ in range(3)
        )
        if outliers:
            words[L.A_OUTLIERS] = self._new_floats(L.OUTLIERS * L.OUTLIER_BYTES // 4 * outliers)
            words[L.A_APART] = L.OUTLIERS
        return self._keep(words)


class Look:
    """The words of a look at the vocabulary, and the memory that they point to."""

    def __init__(self, head: HeadLook, threads: int) -> None:
        self._head = head
        self._list = np.zeros(TILE * tiles_of(len(head.rows)), np.int32)
        self._near = np.zeros(len(self._list), np.float32)
        self._counts = np.zeros((threads, L.LOOK_COUNT_WORDS), np.int64)
        self.words: Words = np.zeros(L.LOOK_WORDS, np.int64)
        matrices = {
            L.LOOK_ROTATION: head.rotation,
            L.LOOK_SCORES: head.look,
            L.LOOK_MEAN: head.mean,
        }
        for place, matrix in matrices.items():
            if matrix is not None:
                self.words[place : place + L.MATRIX_WORDS] = matrix_words(matrix)
        self.words[L.LOOK_ROWS] = head.rows.ctypes.data
        self.words[L.LOOK_MARGIN], self.words[L.LOOK_LIMIT] = bits(head.margin), head.limit
        self.words[L.LOOK_LIST], self.words[L.LOOK_NEAR] = (
            array.ctypes.data for array in (self._list, self._near)
        )
        self.words[L.LOOK_COUNTS] = self._counts.ctypes.data
        self.address = self.words.ctypes.data

    def nbytes(self, rows: float) -> int:
        """Bytes read where `rows` rows are computed in full."""
        head = self._head
        return int(head.rotation.nbytes + head.look.nbytes + rows * head.rows[0].nbytes)


def _nothing() -> None:
    """What a reference to a cache that is no more gives."""


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
