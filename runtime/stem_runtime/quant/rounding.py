"""Rounding float rows to int4 and int8 groups of 32 with float16 scales."""

from __future__ import annotations

import numpy as np

from ..errors import FormatError
from .layout import F16, F32, GROUP, U8, Kind, PlainMatrix

# Where the largest weight of a group may land, in quant steps. Past the end of -8..7 it is clipped,
# which pays when it stands alone. Five candidates are within 0.3% of the error of thirty-six.
_LANDINGS = (-9.0, -8.5, -8.0, -7.5, -7.0)

_CHUNK = 2048  # groups rounded together: 256 KiB of float32, so that the passes stay in cache
_LEAST = 1e-7  # a group below this has a scale under float16's smallest number
_MOST = 65504.0 * 7  # above this the scale may leave float16


def quantize(values: F32, kind: Kind) -> PlainMatrix:
    """Round float32 [rows, cols] to `kind`, int4 or int8, padding the last group with zeros.

    Raises FormatError for NaN, infinity, or values too large for a float16 scale.
    """
    rows, cols = values.shape
    if missing := -cols % GROUP:
        values = np.concatenate([values, np.zeros((rows, missing), np.float32)], axis=1)
    groups = np.ascontiguousarray(values, np.float32).reshape(-1, GROUP)
    quants = np.empty(groups.shape, np.uint8)
    scales = np.empty(len(groups), np.float16)
    round_chunk = {"int4": _int4, "int8": _int8}[kind]
    for start in range(0, len(groups), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        round_chunk(groups[chunk], quants[chunk], scales[chunk])
    return PlainMatrix(kind, quants.reshape(rows, -1), scales.reshape(rows, -1))


def _int4(x: F32, quants: U8, scales: F16) -> None:
    """Pick the landing whose least-squares scale leaves the least squared error, then round again.

    With quants q and the best scale s = x.q / q.q the error is x.x - s x.q, so s x.q decides.
    """
    largest = _extremes(x)
    inverse = _reciprocal(largest)
    best = np.full(len(x), -1, np.float32)
    scale = np.zeros(len(x), np.float32)
    q = np.empty_like(x)
    for landing in _LANDINGS:
        _round_to(x, inverse * np.float32(landing), -8, 7, q)
        xq = np.einsum("ij,ij->i", x, q)
        qq = np.einsum("ij,ij->i", q, q)
        fitted = xq / np.maximum(qq, 1)
        better = fitted * xq > best
        best[better] = (fitted * xq)[better]
        scale[better] = fitted[better]
    scales[:] = scale
    _round_to(x, _reciprocal(scales.astype(np.float32)), -8, 7, q)
    quants[:] = (q + 8).astype(np.uint8)


def _int8(x: F32, quants: U8, scales: F16) -> None:
    scales[:] = np.abs(_extremes(x)) / 127
    q = np.empty_like(x)
    _round_to(x, _reciprocal(scales.astype(np.float32)), -127, 127, q)
    quants[:] = (q + 128).astype(np.uint8)


def _extremes(x: F32) -> F32:
    """The value of largest magnitude in each row, its sign kept; 0 where it is negligible."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    magnitude = np.abs(largest)  # argmax stops at a NaN, so one shows up here
    if not (magnitude <= _MOST).all():
        raise FormatError("a weight is not a finite number or too large to quantize")
    return np.where(magnitude < _LEAST, np.float32(0), largest)


def _reciprocal(values: F32) -> F32:
    """1 / values, and 0 for 0."""
    return np.divide(1, values, out=np.zeros_like(values), where=values != 0)


def _round_to(x: F32, inverse: F32, low: int, high: int, out: F32) -> None:
    np.multiply(x, inverse[:, None], out=out)
    np.rint(out, out=out)
    np.clip(out, low, high, out=out)
