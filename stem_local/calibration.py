"""Calibrating a model: the built-in texts and prompts, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from stem_runtime.errors import KernelError, UsageError
from stem_runtime.kernels import Device, DeviceChoice, choose_device, on_cpu

from . import store
from .chat import encode_messages, question
from .texts import own_text

if TYPE_CHECKING:
    from stem_runtime.formats.packed import PackedModel
    from stem_runtime.sparsity.capture import Material, Progress
    from stem_runtime.sparsity.profile import Profile

    from .model import Model

PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Write a Python function that sorts a list of words by their length.",
    "List ten animals that live in the forest.",
    "Explain to me how a bank makes money.",
    "Write an SQL query for the five customers with the most orders.",
    "Give me a recipe for bread.",
    "What is photosynthesis?",
    "Plan three days in a city by the sea.",
    "Write a poem about winter.",
    "How do I learn to play chess?",
    "Write an email asking my boss for a day off.",
    "What are the advantages and disadvantages of electric cars?",
    "Explain recursion to a child.",
    "Tell me about ancient Rome.",
    "Write a JavaScript function that counts the words of a text.",
    "What should I take on a hike?",
    "Summarise the plot of a detective novel that you make up.",
    "Compare tea and coffee in a table.",
    "How does a refrigerator work?",
    "Translate 'good morning, how are you?' into Spanish and French.",
)
"""Questions of many kinds, which a model answers to show what it looks like in use."""


_CONTEXT = 2048
"""Tokens of the longest text that is calibrated on, and some to spare."""


def built_in_texts() -> list[str]:
    """The texts in the package: chat, code, lists, prose and SQL, in that order."""
    return _texts("calibration_text")


def look_texts() -> list[str]:
    """Texts of more kinds, which only the look at the vocabulary is fitted to and judged by."""
    return _texts("look_text")


def _texts(name: str) -> list[str]:
    folder = files("stem_local") / name
    found = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return [entry.read_text(encoding="utf-8") for entry in found if entry.name.endswith(".txt")]


def calibrate(
    model: str | Path | None = None,
    *,
    text: Iterable[str | Path] = (),
    head_only: bool = False,
    threads: int | None = None,
    kernels: str | None = None,
    device: Device = "auto",
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Profile:
    """Learn what can be left out when this model decodes, and keep it beside its weights.

    Reads the built-in texts and the files in `text`, and lets the model answer a few questions.
    With `head_only` it answers none, and only a look at the vocabulary is fitted, which takes
    seconds for a small model and is the most that one gains; a calibration without builds on it.
    What is faster is measured on `device`, and used there only; "auto" is what `load` would take,
    where it has room for the whole model. `progress` receives (what is being done, done, total);
    `cancel` is asked often. What was done when it stopped is kept for the next call. Raises
    NotInstalledError, UsageError, FormatError, KernelError, UnsupportedError, Cancelled.
    """
    from stem_runtime.sparsity.calibrate import calibrate as run
    from stem_runtime.sparsity.calibrate import calibrate_head

    packed, material = material_of(model, [own_text(Path(path)) for path in text], kernels, notify)
    place = choose_device(device if kernels is None else "cpu")
    if head_only:
        if problem := no_look(packed, place):
            raise UsageError(problem)
        profile = calibrate_head(
            packed,
            material,
            threads=threads,
            kernels=kernels,
            notify=notify,
            progress=progress,
            cancel=cancel,
        )
        assert profile is not None
        return profile
    if (lack := _lack(packed, place)) and device == "auto":
        place = on_cpu(lack)
    elif lack:
        raise KernelError(f"{lack}; calibrate with device='cpu'.")
    return run(
        packed,
        material,
        threads=threads,
        kernels=kernels,
        device=place,
        notify=notify,
        progress=progress,
        cancel=cancel,
    )


def no_look(packed: PackedModel, place: DeviceChoice) -> str:
    """Why there is no look at the vocabulary to fit, or an empty string."""
    from stem_runtime.sparsity.calibrate import can_look

    name = packed.info["name"]
    if place.backend != "cpu":
        return (
            f"A card computes the whole head of {name} always, so there is nothing to calibrate "
            "of it; leave out --head-only, or calibrate with --device cpu."
        )
    if not can_look(packed):
        return (
            f"The head of {name} is int4, or too narrow, so that a look at it gains nothing; "
            "leave out --head-only."
        )
    return ""


def material_of(
    model: str | Path | None,
    own: Sequence[str],
    kernels: str | None,
    notify: Callable[[str], None] | None,
) -> tuple[PackedModel, Material]:
    """A model, and all that it is calibrated on as its tokens."""
    from stem_runtime.sparsity.capture import Material

    from .api import load

    with load(
        store.resolve(model),
        threads=1,
        kernels=kernels,
        device="cpu",
        sparsity="off",
        notify=notify,
    ) as loaded:
        texts, more = (
            [loaded.begin_tokens + loaded.tokenize(part) for part in parts]
            for parts in ((*built_in_texts(), *own), look_texts())
        )
        ends = frozenset(loaded.tokenizer.eos)
        return loaded.packed, Material(texts, _prompts(loaded), ends, more)


def _lack(packed: PackedModel, device: DeviceChoice) -> str:
    """Why a device cannot hold all that calibrating needs, or an empty string."""
    if device.room is None:
        return ""
    from stem_runtime.gpu.memory import bytes_needed

    needed = bytes_needed(packed, "gate", min(_CONTEXT, packed.config.context_length))
    if needed <= device.room:
        return ""
    return (
        f"calibrating {packed.info['name']} takes {needed / 1e9:.1f} GB of the card and "
        f"{device.room / 1e9:.1f} GB are free"
    )


def _prompts(model: Model) -> list[list[int]]:
    return [encode_messages(model, [question(prompt)]) for prompt in PROMPTS]
