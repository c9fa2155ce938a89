"""Looks at the vocabulary of tiny models, and profiles that hold them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.sparsity.head import HeadLook, Looks, head_of, row_major
from stem_runtime.sparsity.profile import HeadProfile, HeadSetting, Profile, write_profile

SETTING = HeadSetting(
    dims=32,
    margin=3.0,
    limit=320,
    positions=2000,
    misses=1,
    mean_rows=12.5,
    default_mass=0.9999,
    warm_mass=0.9995,
    head_bytes=1000,
    dense_head_bytes=4000,
    kernels="portable",
    threads=1,
    dense_tokens_per_second=100.0,
    tokens_per_second=130.0,
)


def make_look(
    model: PackedModel, margin: float, limit: int | None = None, dims: int = 32, seed: int = 0
) -> HeadLook:
    """A look along random axes, good enough to tell rows apart."""
    head = head_of(model)
    noise = np.random.default_rng(seed).standard_normal((head.cols, head.cols))
    axes = np.linalg.qr(noise)[0][:dims].astype(np.float32)
    spread = np.linspace(2, 1, dims, dtype=np.float32)
    return Looks(head, axes, spread).make(dims, margin, limit or head.rows, row_major(head))


def add_profile(folder: Path, **changes: Any) -> Profile:
    """Put a profile into a packed folder whose measurements are made up."""
    model = open_packed(folder)
    setting = dataclasses.replace(SETTING, **changes)
    look = make_look(model, setting.margin, setting.limit, setting.dims)
    profile = Profile(model.info["weights_sha256"], HeadProfile(setting, look), None)
    write_profile(folder, profile)
    return profile
