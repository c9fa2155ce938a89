"""Whether a generation decodes with a sparse output head, and why not where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stem_runtime.errors import FormatError, UsageError

if TYPE_CHECKING:
    from stem_runtime.formats.packed import PackedModel
    from stem_runtime.sampling import SamplingParams
    from stem_runtime.sparsity.head import HeadLook
    from stem_runtime.sparsity.profile import HeadSetting

Sparsity = Literal["auto", "off"]
"""auto: leave out what calibration showed not to matter, where that is faster; off: nothing."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model may decode with: a look at the vocabulary or None, and a sentence about it."""

    head: HeadLook | None
    reason: str


DENSE = Choice(None, "dense: switched off")


def check_sparsity(value: object) -> Sparsity:
    """Raises UsageError for anything but "auto" and "off"."""
    if value == "auto" or value == "off":
        return value
    raise UsageError(f"sparsity is 'auto' or 'off', not {value!r:.40}.")


def choose(packed: PackedModel, sparsity: Sparsity, kernels: str) -> Choice:
    """What the model's profile allows with this kernel variant on this machine.

    A profile that is damaged or of other weights is not used, and the reason says so.
    """
    if sparsity == "off":
        return DENSE
    from stem_runtime.sparsity.profile import read_profile

    try:
        weights = str(packed.info.get("weights_sha256"))
        profile = read_profile(packed.folder, packed.config, weights)
    except FormatError as error:
        return Choice(None, f"dense: {error}")
    if profile is None:
        name = packed.info["name"]
        return Choice(None, f"dense: not calibrated; run stem-local calibrate {name}")
    if why := refusal(profile.setting, kernels):
        return Choice(None, f"dense: {why}")
    return Choice(profile.head, f"sparse head: {describe(profile.setting)}")


def refusal(setting: HeadSetting, kernels: str) -> str:
    """Why a calibrated head is not used, empty where it is."""
    if not setting.good:
        return (
            f"the sparse head missed {setting.miss_rate:.2%} of the winners and kept "
            f"{min(setting.default_mass, setting.warm_mass):.2%} of the probability; "
            "that is not good enough"
        )
    if setting.kernels != kernels:
        return f"calibrated with the {setting.kernels} kernels, not {kernels}; calibrate again"
    if not setting.faster:
        return (
            f"the sparse head was not faster here ({setting.tokens_per_second:.0f} tok/s, dense "
            f"{setting.dense_tokens_per_second:.0f})"
        )
    return ""


def describe(setting: HeadSetting) -> str:
    return (
        f"{setting.dims} axes, then {setting.mean_rows:.0f} rows on average; "
        f"{setting.misses} of {setting.positions} winners missed in calibration"
    )


def needs_whole_head(params: SamplingParams, logprobs: int | None) -> str:
    """Why a generation with these options computes every row, empty where it need not.

    Calibration answers for the default filters up to temperature 1, and for narrower ones. A
    penalty can put a row in front that the look has left out.
    """
    from stem_runtime.sparsity.trial import WARM

    if logprobs is not None:
        return "logprobs need the whole head"
    if params.repetition_penalty != 1:
        return "a repetition penalty needs the whole head"
    narrow = (
        params.temperature <= WARM.temperature
        and 0 < params.top_k <= WARM.top_k
        and params.top_p <= WARM.top_p
        and params.min_p >= WARM.min_p
    )
    if params.temperature > 0 and not narrow:
        return (
            "these sampling settings draw from more rows than calibration answers for "
            f"(temperature {WARM.temperature:g}, top_k {WARM.top_k}, top_p {WARM.top_p:g}, "
            f"min_p {WARM.min_p:g})"
        )
    return ""
