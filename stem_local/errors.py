"""What can go wrong between a model's name and its files on disk."""

from __future__ import annotations

from stem_runtime.errors import Cancelled, StemError, UsageError

__all__ = [
    "AccessError",
    "BusyError",
    "Cancelled",
    "DamagedHistoryError",
    "DiskSpaceError",
    "HistoryError",
    "NewerHistoryError",
    "NotFoundError",
    "NotInstalledError",
    "OfflineError",
    "SourceError",
    "StemError",
    "UsageError",
]


class NotInstalledError(StemError):
    """A model was named that is not on this machine, or whose folder is damaged."""

    exit_code = 10


class SourceError(StemError):
    """A source answered, but not with a usable model."""

    exit_code = 11


class OfflineError(SourceError):
    """No source could be reached, or the user asked for no network."""

    exit_code = 12


class AccessError(SourceError):
    """The source wants a login or an accepted licence first."""

    exit_code = 13


class NotFoundError(SourceError):
    """The source has no such repository, revision or file."""

    exit_code = 14


class DiskSpaceError(StemError):
    """Not enough room for the download and the packed model."""

    exit_code = 15


class BusyError(StemError):
    """Another process is installing or using the same model."""

    exit_code = 16


class HistoryError(StemError):
    """The saved conversations cannot be read or written."""

    exit_code = 20


class DamagedHistoryError(HistoryError):
    """The file of saved conversations is damaged, or something else altogether."""

    exit_code = 21


class NewerHistoryError(HistoryError):
    """The file of saved conversations was written by a later version of the program."""

    exit_code = 22
