"""Rotary position frequencies, with the scalings that are a change of frequency folded in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import FormatError
from .fields import Fields

_THETA = (1.0, 1e12)
_FACTOR = (1e-3, 1e6)
_SUPPORTED = "default, linear, llama3"


def frequencies(theta: float, head_dim: int) -> np.ndarray:
    """Inverse frequencies `theta ** (-2 i / head_dim)`, float64 [head_dim // 2], rad/token."""
    return theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def from_hf(config: Fields, head_dim: int, default_theta: float) -> tuple[float, ...]:
    """Frequencies of a config.json: rope_theta with rope_scaling, or the newer rope_parameters.

    Raises UnsupportedError for a scaling that changes more than the frequencies.
    """
    table = config.table("rope_scaling") or config.table("rope_parameters")
    top = config.number("rope_theta", *_THETA, default_theta)
    return from_table(table, head_dim, top)


def from_table(table: Fields | None, head_dim: int, default_theta: float) -> tuple[float, ...]:
    """Frequencies of one rope_scaling or rope_parameters object."""
    if table is None:
        return tuple(frequencies(default_theta, head_dim).tolist())
    table.accept("partial_rotary_factor", (1,), "rotation of the whole head (1.0)")
    plain = frequencies(table.number("rope_theta", *_THETA, default_theta), head_dim)
    key = "rope_type" if "rope_type" in table else "type"
    kind = table.text(key, "default")
    if kind == "default":
        scaled = plain
    elif kind == "linear":
        scaled = plain / table.number("factor", *_FACTOR)
    elif kind == "llama3":
        scaled = _llama3(table, plain)
    else:
        table.refuse(key, _SUPPORTED)
    return tuple(scaled.tolist())


def from_gguf(
    meta: Fields, head_dim: int, default_theta: float, factors: Sequence[float] | None
) -> tuple[float, ...]:
    """Frequencies of GGUF metadata.

    `factors` are the values of the `rope_freqs.weight` tensor: what llama3 scaling divides each
    frequency by. Raises FormatError or UnsupportedError.
    """
    scaled = frequencies(meta.number("rope.freq_base", *_THETA, default_theta), head_dim)
    kind = meta.text("rope.scaling.type", "none")
    if kind == "linear":
        scaled = scaled / meta.number("rope.scaling.factor", *_FACTOR)
    elif kind != "none":
        meta.refuse("rope.scaling.type", "none, linear, or a rope_freqs.weight tensor")
    if factors is not None:
        divisors = np.asarray(factors, np.float64).reshape(-1)
        low, high = _FACTOR
        if divisors.shape != scaled.shape or not np.all((divisors >= low) & (divisors <= high)):
            raise FormatError(
                f"{meta.where}: rope_freqs.weight should hold {head_dim // 2} numbers from "
                f"{low:g} to {high:g}; get the file again from its source."
            )
        scaled = scaled / divisors
    return tuple(scaled.tolist())


def _llama3(table: Fields, plain: np.ndarray) -> np.ndarray:
    """Llama 3.1's rule: long wavelengths divided by `factor`, short ones kept, a ramp between."""
    factor = table.number("factor", *_FACTOR)
    low = table.number("low_freq_factor", *_FACTOR)
    high = table.number("high_freq_factor", *_FACTOR)
    trained = table.integer("original_max_position_embeddings", 1, 1 << 24)
    if not low < high:
        table.damaged("high_freq_factor", "larger than low_freq_factor")
    turns = trained * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1.0 - kept) / factor)
