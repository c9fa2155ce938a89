"""Copies of the candidates' records, side by side, so that no page of memory is used half."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .mapped import give_back

_AT_ONCE = 128
"""Records that are copied together: what lies between is as large, and is to stay in a cache."""

Bools = NDArray[np.bool_]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


class Arena:
    """Anonymous memory with the records of some neurons of every layer.

    Records are cut in two: rows of gate lie together, which all candidates of a token read, and so
    do the rows of up and columns of down, which only few of them do. `held` neurons take exactly
    the first slots of both, so that memory is in use for them and no more: freed slots are filled
    with new neurons, or with those from the end.

    `places` and `gate_places` int64 [n_layers, 32 * groups] are where every neuron's record starts,
    for its up and down and for its gate; for neurons that are not in the arena that is where their
    record lies.
    """

    def __init__(
        self,
        records: Sequence[U8 | None],
        rows: Sequence[I64],
        gate_bytes: Sequence[int],
        width: int,
    ) -> None:
        """`records` uint8 [n, record_bytes] of every layer that has candidates begin with rows of
        gate of `gate_bytes`. `rows` int64 [ffn] say whose is which, -1 for neurons without one;
        `width` is the number of neurons rounded up to groups.
        """
        self._records, self._rows, self._cuts = records, rows, list(gate_bytes)
        self._home = np.zeros((len(records), width), np.int64)
        for home, found, whose in zip(self._home, records, rows, strict=True):
            if found is not None:
                home[: len(whose)] = found.ctypes.data + found.shape[1] * whose.clip(0)
        self.places, self.gate_places = self._home.copy(), self._home.copy()
        self._slots: I64 = np.full(self._home.shape, -1, np.int64)
        self._owners: I64 = np.zeros(self._slots.size, np.int64)
        self.held = 0
        sizes = [
            (0, 0) if r is None else (cut, r.shape[1] - cut)
            for r, cut in zip(records, gate_bytes, strict=True)
        ]
        neurons = sum(0 if r is None else len(r) for r in records)
        self._gates, self._rests = (
            _Slots(neurons, max(size[part] for size in sizes)) for part in (0, 1)
        )

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self.held * (self._gates.each + self._rests.each)

    def keep(self, layer: int, members: Bools) -> None:
        """Hold the records of the neurons in `members` [ffn] and of no others of this layer."""
        members = members & (self._rows[layer] >= 0)
        slots = self._slots[layer, : len(members)]
        gone, new = np.flatnonzero((slots >= 0) & ~members), np.flatnonzero((slots < 0) & members)
        free = slots[gone]
        slots[gone] = -1
        for table in (self.places, self.gate_places):
            table[layer, gone] = self._home[layer, gone]
        more = max(0, len(new) - len(free))
        free = np.concatenate([free, np.arange(self.held, self.held + more)])
        self.held += more
        self._fill(layer, new, free[: len(new)])
        self._close(free[len(new) :])

    def clear(self) -> None:
        """Let go of all memory."""
        for layer, found in enumerate(self._records):
            if found is not None:
                self.keep(layer, np.zeros(len(self._rows[layer]), np.bool_))

    def _fill(self, layer: int, neurons: I64, slots: I64) -> None:
        records, cut = self._records[layer], self._cuts[layer]
        if records is None or not len(neurons):
            return
        rows = self._rows[layer][neurons]
        self._gates.write(slots, records, rows, 0, cut)
        self._rests.write(slots, records, rows, cut, records.shape[1])
        self._own(layer * self._slots.shape[1] + neurons, slots)

    def _close(self, holes: I64) -> None:
        """Fill slots that nobody needs from the end, and give the end back."""
        if not len(holes):
            return
        end = self.held - len(holes)
        tail = np.arange(end, self.held)
        movers, targets = np.setdiff1d(tail, holes), holes[holes < end]
        for memory in (self._gates, self._rests):
            memory.move(movers, targets)
            memory.shrink(end, self.held)
        self._own(self._owners[movers], targets)
        self.held = end

    def _own(self, owners: I64, slots: I64) -> None:
        """Note who is where. `owners` are places in the flattened tables."""
        self._owners[slots] = owners
        self._slots.reshape(-1)[owners] = slots
        cuts = np.array(self._cuts)[owners // self._slots.shape[1]]
        self.gate_places.reshape(-1)[owners] = self._gates.address + self._gates.each * slots
        # the part without gate starts where its record would, so that offsets hold for both
        self.places.reshape(-1)[owners] = self._rests.address + self._rests.each * slots - cuts


class _Slots:
    """Memory for `count` parts of records of `each` bytes; takes pages as they are written."""

    def __init__(self, count: int, each: int) -> None:
        flags = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
        self._memory = mmap.mmap(-1, max(1, count * each), flags=flags)
        if advice := getattr(mmap, "MADV_NOHUGEPAGE", None):
            with contextlib.suppress(OSError):
                self._memory.madvise(advice)
        self._rows: U8 = np.frombuffer(self._memory, np.uint8, count * each).reshape(count, each)
        self.address, self.each = self._rows.ctypes.data, each

    def write(self, slots: I64, records: U8, rows: I64, start: int, stop: int) -> None:
        for first in range(0, len(slots), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            self._rows[slots[some], : stop - start] = records[rows[some], start:stop]

    def move(self, sources: I64, targets: I64) -> None:
        self._rows[targets] = self._rows[sources]

    def shrink(self, end: int, before: int) -> None:
        """Give back the whole pages behind slot `end`, of which those up to `before` were used."""
        first = -(-end * self.each // mmap.PAGESIZE) * mmap.PAGESIZE
        if first < before * self.each:
            give_back(self._memory, first, before * self.each - first)
