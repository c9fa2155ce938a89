"""How a chat is answered: its system prompt, what is left out, the context, the sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from stem_runtime.errors import UsageError
from stem_runtime.limits import Limit
from stem_runtime.sampling_params import LIMITS, SamplingParams

from .sparsity import MOST, QUALITY, Sparsity, check_quality, check_sparsity

if TYPE_CHECKING:
    from .generate_options import ContextPolicy

MAX_SYSTEM = 1_000_000
"""Characters of a system prompt; no context holds more."""

MAX_TOKENS = Limit(1, 1 << 24, whole=True)
POLICIES: tuple[ContextPolicy, ...] = ("stop", "drop_oldest")

_SAMPLING = SamplingParams()


@dataclass(frozen=True, slots=True)
class About:
    """What a setting is for, and what it may be. `example` is for one that is not set at first."""

    help: str
    allowed: str
    example: object = None


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """Settings of one chat; `ABOUT` says what each is for.

    `sparsity`, `quality` and `context_policy` are `generate`'s own. `system` is empty where there
    is no system prompt; a `seed` of None is a new one each time. Raises UsageError for a value
    that a setting cannot have.
    """

    system: str = ""
    sparsity: Sparsity = "auto"
    quality: float = QUALITY
    context_policy: ContextPolicy = "stop"
    max_tokens: int = 4096
    temperature: float = _SAMPLING.temperature
    top_k: int = _SAMPLING.top_k
    top_p: float = _SAMPLING.top_p
    min_p: float = _SAMPLING.min_p
    repetition_penalty: float = _SAMPLING.repetition_penalty
    seed: int | None = _SAMPLING.seed

    def __post_init__(self) -> None:
        _check_system(self.system)
        checked: dict[str, object] = {
            "sparsity": check_sparsity(self.sparsity),
            "quality": check_quality(self.quality),
            "max_tokens": MAX_TOKENS.check("max_tokens", self.max_tokens),
        }
        if self.context_policy not in POLICIES:
            allowed = " or ".join(POLICIES)
            raise UsageError(f"context_policy is {allowed}, not {self.context_policy!r:.40}.")
        params = SamplingParams(**{name: getattr(self, name) for name in _SAMPLED})
        checked |= {name: getattr(params, name) for name in _SAMPLED}
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def with_text(self, name: str, text: str) -> Self:
        """The same with one setting as a person types it: `sparsity` "30%", `seed` "none".

        Raises UsageError for a name that is no setting and for a value that it cannot have.
        """
        check_name(name, NAMES, "setting")
        value: Any = _READERS.get(name, _number)(name, text)
        return replace(self, **{name: value})

    def options(self) -> dict[str, Any]:
        """Keyword options for `Model.generate` and `Model.chat`: all but the system prompt."""
        options = self.to_dict()
        del options["system"]
        return options

    def to_dict(self) -> dict[str, Any]:
        """Every setting by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], default: Self | None = None) -> Self:
        """Settings that `to_dict` made, by this version or another, or that a stranger wrote.

        What is not known here, or cannot be used, is as in `default`.
        """
        settings = cls() if default is None else default
        for name in NAMES:
            if name in saved:
                try:
                    settings = replace(settings, **{name: saved[name]})
                except UsageError:
                    continue
        return settings

    def describe(self) -> tuple[tuple[str, str, str], ...]:
        """For every setting its name, its value as `with_text` takes it, and what it is for."""
        return tuple(
            (name, value_text(name, getattr(self, name)), about.help)
            for name, about in ABOUT.items()
        )


NAMES = tuple(field.name for field in fields(ChatSettings))
_SAMPLED = tuple(name for name in NAMES if name in LIMITS)

ABOUT: Mapping[str, About] = {
    "system": About("System prompt: what the model is told before the first message.", "text"),
    "sparsity": About(
        "What is left out while answering. auto: what calibration showed not to matter, where that "
        "is faster. off: nothing. A share: so many of the neurons, good for the answer or not.",
        f'"auto", "off", or a share of the neurons from 0.0 to {MOST}',
    ),
    "quality": About(
        "How much of its perplexity auto may add; 0.01 is +1%.", "a number from 0.0 to 1.0"
    ),
    "context_policy": About(
        "What happens when a chat outgrows the context. stop: it ends there, and says so. "
        "drop_oldest: the model no longer sees the oldest turns, and a line marks where.",
        " or ".join(f'"{policy}"' for policy in POLICIES),
    ),
    "max_tokens": About("Most tokens to answer with.", str(MAX_TOKENS)),
    "temperature": About(
        "0 always takes the likeliest token, 1 samples the model's own distribution.",
        str(LIMITS["temperature"]),
    ),
    "top_k": About("Choose among so many of the likeliest tokens; 0: all.", str(LIMITS["top_k"])),
    "top_p": About(
        "Choose among the likeliest tokens that together hold this share of the probability.",
        str(LIMITS["top_p"]),
    ),
    "min_p": About(
        "Leave out tokens that are less than this share as likely as the likeliest; 0: none.",
        str(LIMITS["min_p"]),
    ),
    "repetition_penalty": About(
        f"Over 1 makes the last {_SAMPLING.repeat_last} tokens less likely to come again; 1: off.",
        str(LIMITS["repetition_penalty"]),
    ),
    "seed": About(
        "The same seed gives the same answer; not set: a new one each time.",
        str(LIMITS["seed"]),
        example=42,
    ),
}
"""Every setting of a chat."""


def value_text(name: str, value: Any) -> str:
    """A setting's value for people."""
    if value is None:
        return "none"
    if name in ("sparsity", "quality") and not isinstance(value, str):
        return f"{100 * value:.10g}%"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def read_sparsity(text: str) -> Sparsity:
    """auto, off, or a share of the neurons, in percent or not. Raises UsageError."""
    word = text.strip().lower()
    return check_sparsity(word if word in ("auto", "off") else _share(word, text))


def read_quality(text: str) -> float:
    """A rise of perplexity, as a share or in percent. Raises UsageError."""
    return check_quality(_share(text.strip(), text))


def check_name(name: str, known: tuple[str, ...], what: str) -> None:
    """Raises UsageError with the nearest one for a name that is not known."""
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name.lower(), known, n=1)
        more = f" and {len(known) - 30} more" if len(known) > 30 else ""
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known[:30])}{more}."
        raise UsageError(f"There is no {what} {name!r:.60}; {hint}")


def _share(word: str, typed: str) -> float | str:
    """A number, in percent or not; the text itself where it is none, for the check to refuse."""
    try:
        number = float(word.removesuffix("%"))
    except ValueError:
        return typed
    # rounded, so that 29% is 0.29 and not the float beside it
    return round(number / 100, 12) if word.endswith("%") else number


def _check_system(system: object) -> None:
    if not isinstance(system, str):
        raise UsageError(f"system must be text, not {system!r:.40}.")
    if len(system) > MAX_SYSTEM:
        raise UsageError(
            f"system is {len(system)} characters long; it may have {MAX_SYSTEM} at most."
        )
    try:
        system.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"system has a character at {error.start} that is not Unicode text; leave it out."
        ) from None


def _number(name: str, text: str) -> object:
    """The number that was typed, or the text itself, for the check to refuse."""
    kind = int if name in _WHOLE else float
    try:
        return kind(text)
    except ValueError:
        return text


def _seed(name: str, text: str) -> object:
    return None if text.strip().lower() in ("", "none", "random") else _number(name, text)


_WHOLE = {"max_tokens"} | {name for name, limit in LIMITS.items() if limit.whole}
_READERS: Mapping[str, Callable[[str, str], object]] = {
    "system": lambda _, text: text,
    "sparsity": lambda _, text: read_sparsity(text),
    "quality": lambda _, text: read_quality(text),
    "context_policy": lambda _, text: text.strip().lower().replace(" ", "_").replace("-", "_"),
    "seed": _seed,
}
