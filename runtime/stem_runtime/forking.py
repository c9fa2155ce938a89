"""Locks that are free in a forked process, where the threads that held them do not exist."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

_locks: WeakSet[threading.Lock] = WeakSet()


def new_lock() -> threading.Lock:
    """A lock that a forked process finds open, whoever held it at that moment."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def _open() -> None:
    for lock in _locks:
        if lock.locked():
            lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open)
