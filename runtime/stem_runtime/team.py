"""The Python side of the thread team: starts the workers, wakes those that fell asleep."""

from __future__ import annotations

import os
import threading
import weakref

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .kernels.cpu import layout as L
from .kernels.jit import Entry
from .threads import yield_address

_STEPS = {L.JOB_DECODE: "decode", L.JOB_PREFILL: "prefill", L.JOB_FFN: "ffn"}

_IDLE_SPINS = 6000
"""Spins (the later ones yielding) before an idle worker sleeps: some hundred microseconds."""


class Team:
    """`threads - 1` workers and whoever calls `run`, all running the same compiled step.

    Workers spin for the next job for a moment after each one, since the next token is usually
    microseconds away, and then sleep until woken.
    """

    def __init__(
        self, entries: dict[str, Entry], args: NDArray[np.int64], threads: int, owner: object
    ) -> None:
        """The workers leave when the `owner` of the team is no more, if `close` was not called."""
        self._entries = entries
        self._args = args
        self._words = np.zeros(L.WORKERS + threads * L.WORKER_WORDS + L.LINE, np.int64)
        self._words[L.IDLE_SPINS] = _IDLE_SPINS
        self._words[L.YIELD] = yield_address()
        args[L.TEAM], args[L.THREADS] = self._words.ctypes.data, threads
        self._address = args.ctypes.data
        self._pid = os.getpid()
        # held but when a worker is to wake; Ctrl-C cannot fall into what a plain lock does
        self._wake = [threading.Lock() for _ in range(threads)]
        for lock in self._wake:
            lock.acquire()
        self._workers = [
            threading.Thread(target=self._work, args=(tid,), daemon=True, name=f"stem-{tid}")
            for tid in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()
        # they know the team, which therefore never ends before them
        weakref.finalize(owner, self._dismiss).atexit = False

    def run(self, job: int) -> None:
        """Run a job of _STEPS on all threads; returns when the last is done."""
        step = self._entries[_STEPS[job]]
        before = self._words[L.GENERATION]
        try:
            if self._workers:
                self._post(job)
        except BaseException:
            # Ctrl-C can fall in here, and workers that were told must not wait alone at a barrier
            if self._words[L.GENERATION] != before:
                self._wake_sleepers()
                step(self._address, 0)
            raise
        step(self._address, 0)

    def check(self) -> None:
        """Raises UsageError in a process that was forked from the one that started the workers."""
        # asked whether a thread is alive during Ctrl-C, CPython takes it for dead from then on
        if os.getpid() != self._pid:
            raise UsageError("This model was loaded before the process was forked; load it again.")

    def interrupt(self, stop: bool = True) -> None:
        """Ask a running prefill to stop after its current layer, or take the request back."""
        self._words[L.INTERRUPT] = int(stop)

    @property
    def interrupted(self) -> bool:
        return bool(self._words[L.INTERRUPT])

    def close(self) -> None:
        self._dismiss()
        for worker in self._workers:
            worker.join()
        self._workers = []

    def _dismiss(self) -> None:
        if self._workers:
            self._post(L.JOB_QUIT)

    def _post(self, job: int) -> None:
        self._entries["post"](self._address, job)
        self._wake_sleepers()

    def _wake_sleepers(self) -> None:
        """Wake those that the last job found asleep; waking one twice does no harm."""
        asleep = int(self._words[L.JOB + 1])
        if not asleep:
            return
        for tid in range(1, len(self._wake)):
            if asleep >> tid & 1 and self._wake[tid].locked():
                self._wake[tid].release()

    def _work(self, tid: int) -> None:
        while self._wake[tid].acquire():
            self._entries["work"](self._address, tid)
            if self._words[L.JOB] == L.JOB_QUIT and self._seen(tid) == self._words[L.GENERATION]:
                return

    def _seen(self, tid: int) -> int:
        return int(self._words[L.WORKERS + tid * L.WORKER_WORDS + L.SEEN])
