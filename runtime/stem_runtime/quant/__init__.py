"""Quantized weights: the packed layout, GGML's block types, and rounding from float."""

from __future__ import annotations

from .layout import (
    GROUP,
    GROUP_BYTES,
    TILE,
    Kind,
    PackedMatrix,
    PlainMatrix,
    dequantize_plain,
    groups_of,
    pack,
    pack_int4,
    pack_int8,
    tiles_of,
    tiles_shape,
    unpack,
    unpack_plain,
)

__all__ = [
    "GROUP",
    "GROUP_BYTES",
    "TILE",
    "Kind",
    "PackedMatrix",
    "PlainMatrix",
    "dequantize_plain",
    "groups_of",
    "pack",
    "pack_int4",
    "pack_int8",
    "tiles_of",
    "tiles_shape",
    "unpack",
    "unpack_plain",
]
