"""The one error family. A message says what happened, to what, and what to do next."""

from __future__ import annotations


class StemError(Exception):
    """Base of every error that the project raises on purpose.

    `exit_code` is what the command line returns when the error reaches it.
    """

    exit_code = 1


class UsageError(StemError):
    """An argument, option or setting that cannot be used as given."""

    exit_code = 2


class FormatError(StemError):
    """A model file that is damaged, truncated, or lies about itself."""

    exit_code = 3


class UnsupportedError(StemError):
    """A valid file that needs something this version does not have."""

    exit_code = 4


class ContextFullError(StemError):
    """The prompt and the answer do not fit in the context."""

    exit_code = 5


class KernelError(StemError):
    """No usable kernel variant, or one that failed to compile."""

    exit_code = 6


class Cancelled(StemError):  # noqa: N818 (nothing went wrong)
    """Work that was stopped on request; what it leaves to go on from is kept."""
