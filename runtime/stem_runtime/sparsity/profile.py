"""What calibration found out about a model, kept beside its weights in profile.safetensors.

One safetensors file: tensors for the kernels, and the table of settings and measurements as JSON in
a uint8 tensor. A profile names the weights it belongs to.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import FormatError
from ..kernels.cpu.layout import ROW_GROUP_BYTES
from ..quant import GROUP, groups_of
from .container import MAX_TEXT, Arrays, Container, write_container
from .ffn_file import ffn_arrays, ffn_table, read_ffn
from .ffn_profile import FfnProfile
from .head import HeadLook

FILE = "profile.safetensors"
FORMAT = 3

MAX_MISS_RATE = 0.001
"""Most positions at which the full head's winner may be left out."""

MIN_MASS = 0.999
"""Least share of the probability that sampling would draw from and that must be kept."""

_ROTATION, _LOOK, _ROWS = "head.rotation.tiles", "head.look.tiles", "head.rows"
_MEAN = "head.mean.tiles"


@dataclass(frozen=True, slots=True)
class HeadSetting:
    """A sparse output head as calibration measured it, on positions that it was not fitted to.

    `misses` of `positions` had the full head's winner left out. `mean_rows` rows per token are
    computed in full. `default_mass` is the share kept of the probability that the default sampling
    settings draw from, `warm_mass` the same at temperature 1. `head_bytes` are read per token, of
    the full head's `dense_head_bytes`. Speeds are tokens per second of whole decode steps, of runs
    that took turns (see `measure.in_turns`), with `threads` threads of the `kernels` variant.
    """

    dims: int
    margin: float
    limit: int
    positions: int
    misses: int
    mean_rows: float
    default_mass: float
    warm_mass: float
    head_bytes: int
    dense_head_bytes: int
    kernels: str
    threads: int
    dense_tokens_per_second: float
    tokens_per_second: float

    @property
    def miss_rate(self) -> float:
        return self.misses / self.positions

    @property
    def good(self) -> bool:
        """Whether the quality rule holds."""
        kept = min(self.default_mass, self.warm_mass)
        return self.miss_rate <= MAX_MISS_RATE and kept >= MIN_MASS

    @property
    def faster(self) -> bool:
        return self.tokens_per_second > self.dense_tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "miss_rate": self.miss_rate}


@dataclass(frozen=True, slots=True)
class HeadProfile:
    """A sparse output head: what was measured, and what the engine decodes with.

    `material` names the weights and texts that the look was fitted to, empty where that is not
    known.
    """

    setting: HeadSetting
    look: HeadLook
    material: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """A model's calibration. `weights_sha256` says which weights it belongs to; a model whose head
    or whose FFNs cannot be thinned out has None there.
    """

    weights_sha256: str
    head: HeadProfile | None
    ffn: FfnProfile | None

    def to_dict(self) -> dict[str, Any]:
        """What was measured, for JSON."""
        return {
            "head": None if self.head is None else self.head.setting.to_dict(),
            "ffn": None if self.ffn is None else self.ffn.to_dict(),
        }


def write_profile(folder: Path, profile: Profile) -> Path:
    """Put the profile into a model's folder, whole or not at all. Returns its path."""
    head, ffn = profile.head, profile.ffn
    table = {
        "format": FORMAT,
        "weights_sha256": profile.weights_sha256,
        "head": None if head is None else dataclasses.asdict(head.setting),
        "head_material": "" if head is None else head.material,
        "ffn": None if ffn is None else ffn_table(ffn),
    }
    arrays: Arrays = {
        **({} if head is None else _head_arrays(head.look)),
        **({} if ffn is None else ffn_arrays(ffn)),
    }
    write_container(folder / FILE, table, arrays)
    return folder / FILE


def read_profile(
    folder: Path, config: ModelConfig, weights_sha256: str, *, whole: bool = False
) -> Profile | None:
    """The profile of a model's folder, mapped into memory; None where there is none.

    With `whole` all of it is read, and not only what was learned, to see that it is not damaged.
    Raises FormatError for a damaged one and for one of other weights.
    """
    path = folder / FILE
    if not path.exists():
        return None
    file = Container.open(path, whole=whole)
    table = file.table
    if table.get("format") != FORMAT:
        raise file.error(f"not of format {FORMAT}")
    if not {"head", "ffn"} <= set(table) or not isinstance(table.get("weights_sha256"), str):
        raise file.error("head, ffn or weights_sha256 is missing")
    if table["weights_sha256"] != weights_sha256:
        raise FormatError(f"{path} belongs to other weights than this model's; calibrate it again.")
    head = None if table["head"] is None else _read_head(file, config)
    ffn = None if table["ffn"] is None else read_ffn(file, config)
    return Profile(weights_sha256, head, ffn)


def _head_arrays(look: HeadLook) -> Arrays:
    mean = {} if look.mean is None else {_MEAN: look.mean.joined()}
    return {_ROTATION: look.rotation.joined(), _LOOK: look.look.joined(), **mean, _ROWS: look.rows}


def _read_head(file: Container, config: ModelConfig) -> HeadProfile:
    """The head's part, its numbers within what a model of this shape allows."""
    setting = file.settings(HeadSetting, file.table["head"])
    dims, limit = setting.dims, setting.limit
    dims_fit = dims % GROUP == 0 and 0 < dims <= config.d_model
    if not dims_fit or not 0 < limit <= config.vocab_size or setting.positions < 1:
        raise file.error("the head's settings do not fit this model")
    vocab, d = config.vocab_size, config.d_model
    rows = file.array(_ROWS, "U8", (vocab, groups_of(d), ROW_GROUP_BYTES), copied=True)
    look = HeadLook(
        file.matrix(_ROTATION, dims, d),
        file.matrix(_LOOK, vocab, dims, ("int4",)),
        rows,
        setting.margin,
        limit,
        file.matrix(_MEAN, 1, d) if file.has(_MEAN) else None,  # margins were from the best score
    )
    material = file.table.get("head_material", "")  # profiles of before it was told have none
    if not isinstance(material, str) or len(material) > MAX_TEXT:
        raise file.error("head_material is no text of that length")
    return HeadProfile(setting, look, material)
