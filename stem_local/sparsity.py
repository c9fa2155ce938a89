"""What a generation leaves out when it decodes, and why it does not where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from stem_runtime.errors import FormatError, UsageError
from stem_runtime.limits import real, shown

if TYPE_CHECKING:
    from stem_runtime.formats.packed import PackedModel
    from stem_runtime.sampling import SamplingParams
    from stem_runtime.sparsity.ffn_profile import FfnProfile, FfnSetting
    from stem_runtime.sparsity.head import HeadLook
    from stem_runtime.sparsity.neurons import Neurons, Parts
    from stem_runtime.sparsity.plan import FfnPlan
    from stem_runtime.sparsity.profile import HeadSetting, Profile

Sparsity = Literal["auto", "off"] | float
"""auto: leave out what calibration showed not to matter, where that is faster. off: nothing.
0.0 to 0.95: that share of the FFN neurons, and rows of the output head as auto does."""

MOST = 0.95
"""The largest share of neurons that may be left out."""

QUALITY = 0.01
"""How much of its perplexity auto may add, unless told otherwise."""

OFF = "dense: switched off"


@dataclass(frozen=True, slots=True)
class Choice:
    """What decode steps leave out; `reason` says it in a sentence, and why where it is nothing.

    With `look` only the rows of the output head that a look at the vocabulary finds are computed.
    `plan` says which neurons of the FFNs are, None all of them.
    """

    look: bool
    plan: FfnPlan | None
    reason: str


DENSE = Choice(False, None, OFF)


def check_sparsity(value: object) -> Sparsity:
    """The knob's value. Raises UsageError for one that it cannot have."""
    if (share := real(value)) is not None:
        if 0 <= share <= MOST:
            return share
    elif value == "auto" or value == "off":
        return value
    raise UsageError(
        f"sparsity is 'auto', 'off' or a share of the neurons from 0.0 to {MOST}, "
        f"not {shown(value)}."
    )


def check_quality(value: object) -> float:
    """A relative rise of perplexity, 0.01 for +1%. Raises UsageError."""
    if (rise := real(value)) is not None and 0 <= rise <= 1:
        return rise
    raise UsageError(
        "quality is how much of its perplexity auto may add, from 0.0 to 1.0 "
        f"(0.01 is +1%), not {shown(value)}."
    )


class Calibrated:
    """What a model's profile lets it leave out with one variant of the kernels.

    A profile that is damaged or of other weights is not used: `damaged` is set then. `problem` says
    why there is no profile, and is empty where there is one.
    """

    def __init__(self, packed: PackedModel, kernels: str) -> None:
        self._packed = packed
        self._kernels = kernels

    @cached_property
    def _read(self) -> tuple[Profile | None, str, bool]:
        from stem_runtime.sparsity.profile import read_profile

        packed = self._packed
        try:
            weights = str(packed.info.get("weights_sha256"))
            profile = read_profile(packed.folder, packed.config, weights)
        except FormatError as error:
            return None, str(error).removesuffix("."), True  # others end the sentence
        if profile is None:
            name = packed.info["name"]
            return None, f"not calibrated; run stem-local calibrate {name}", False
        return profile, "", False

    @property
    def profile(self) -> Profile | None:
        return self._read[0]

    @property
    def problem(self) -> str:
        return self._read[1]

    @property
    def damaged(self) -> bool:
        return self._read[2]

    @property
    def ffn(self) -> FfnProfile | None:
        return None if self.profile is None else self.profile.ffn

    @property
    def head(self) -> HeadSetting | None:
        head = None if self.profile is None else self.profile.head
        return None if head is None else head.setting

    @property
    def look(self) -> HeadLook | None:
        head = None if self.profile is None else self.profile.head
        return None if head is None else head.look

    @property
    def ffn_unknown(self) -> str:
        """Why nothing is known of the FFNs where there is a profile, empty where something is."""
        if self.profile is None or self.ffn is not None:
            return ""
        name = self._packed.info["name"]
        return f"only the head is calibrated, run stem-local calibrate {name} for the FFNs"

    def neurons(self, parts: Parts | None = None) -> Neurons:
        """The FFNs neuron by neuron; `parts` for plans that calibration did not measure."""
        if self.ffn is not None:
            return self.ffn.neurons(self._packed, parts=parts)
        from stem_runtime.sparsity.exact import exact_neurons

        return exact_neurons(self._packed)

    def choose(self, sparsity: Sparsity, quality: float = QUALITY, whole_head: str = "") -> Choice:
        """What to decode with. `whole_head` is why every row of the head is needed, or empty.

        Raises UsageError for a share of neurons where the model is not calibrated for one.
        """
        if sparsity == "off":
            return DENSE
        plan: FfnPlan | None
        if not isinstance(sparsity, str):
            plan, about_ffn = self._share(sparsity)
        elif self.problem:
            return Choice(False, None, f"dense: {self.problem}")
        else:
            plan, about_ffn = self._auto(quality)
        why_not = self._head_refusal() or whole_head
        about_head = why_not or (describe_head(self.head) if self.head is not None else "")
        return Choice(not why_not, plan, _sentence(plan, about_ffn, not why_not, about_head))

    def best(self, quality: float = QUALITY) -> FfnSetting | None:
        """The fastest setting that auto may take, None where dense FFNs are better."""
        allowed = [] if self.ffn is None else within(self.ffn, self._kernels, quality)
        return max(
            (setting for setting in allowed if setting.faster),
            key=lambda setting: setting.tokens_per_second,
            default=None,
        )

    def _auto(self, quality: float) -> tuple[FfnPlan | None, str]:
        if self.ffn is None:
            return None, self.ffn_unknown
        setting = self.best(quality)
        if setting is None:
            return None, ffn_refusal(self.ffn, self._kernels, quality)
        return setting.plan, describe_ffn(setting)

    def _share(self, share: float) -> tuple[FfnPlan, str]:
        from stem_runtime.sparsity.plan import FfnPlan
        from stem_runtime.sparsity.potentials import EXACT_ZEROS

        name, config = self._packed.info["name"], self._packed.config
        if self.ffn is None and share == 0 and config.activation in EXACT_ZEROS:
            return FfnPlan.exact(config.n_layers), "only neurons that are exactly zero left out"
        if self.problem:
            raise UsageError(
                f"sparsity={share:g} needs to know which neurons of {name} matter: {self.problem}."
            )
        if self.ffn is None:
            raise UsageError(
                f"Only the output head of {name} is calibrated, so no share of its neurons can be "
                f"left out; run stem-local calibrate {name}, or use sparsity='auto'."
            )
        return self.ffn.best_plan(share), f"{share:.0%} of the neurons left out, as asked"

    def _head_refusal(self) -> str:
        if self.head is None:
            return self.problem or "calibrated without its output head"
        return head_refusal(self.head, self._kernels)


def _sentence(plan: FfnPlan | None, ffn: str, look: bool, head: str) -> str:
    """What is left out first, then why the rest is not."""
    parts = [
        (plan is not None, "FFN", ffn),
        (look, "head", head),
    ]
    sparse = [f"sparse {name}: {about}" for used, name, about in parts if used]
    dense = [(name, about) for used, name, about in parts if not used and about]
    if sparse:
        return "; ".join(sparse + [f"whole {name}: {about}" for name, about in dense])
    return "dense: " + "; ".join(about for _, about in reversed(dense))


def head_refusal(setting: HeadSetting, kernels: str) -> str:
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


def within(ffn: FfnProfile, kernels: str, quality: float) -> list[FfnSetting]:
    """The settings measured with these kernels that cost no more than `quality`."""
    return [
        setting
        for setting in ffn.settings
        if setting.kernels == kernels and setting.perplexity_change <= quality
    ]


def ffn_refusal(ffn: FfnProfile, kernels: str, quality: float) -> str:
    """Why auto takes none of the settings."""
    if not ffn.settings:
        return ffn.reason or "no way to skip neurons was measured"
    measured = [setting for setting in ffn.settings if setting.kernels == kernels]
    if not measured:
        other = ffn.settings[0].kernels
        return f"calibrated with the {other} kernels, not {kernels}; calibrate again"
    allowed = within(ffn, kernels, quality)
    if not allowed:
        least = min(setting.perplexity_change for setting in measured)
        return f"skipping neurons cost at least {least:+.1%} perplexity, {quality:+.1%} is allowed"
    best = max(allowed, key=lambda setting: setting.tokens_per_second)
    return (
        f"skipping neurons within {quality:+.1%} perplexity was not faster here "
        f"({best.tokens_per_second:.0f} tok/s, dense {best.dense_tokens_per_second:.0f})"
    )


def describe_head(setting: HeadSetting) -> str:
    return (
        f"{setting.dims} axes, then {setting.mean_rows:.0f} rows on average; "
        f"{setting.misses} of {setting.positions} winners missed in calibration"
    )


def describe_ffn(setting: FfnSetting) -> str:
    return (
        f"setting {setting.name} ({setting.policy}), {setting.active_parameters:.0%} of the "
        "weights and "
        f"{setting.perplexity_change:+.1%} perplexity in calibration"
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
