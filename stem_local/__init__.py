"""Run language models on your own machine."""

from ._version import __version__

__all__ = ["__version__"]
