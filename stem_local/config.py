"""The user's settings: one TOML file in the platform's config folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stem_runtime import paths
from stem_runtime.cache_kinds import CACHE_KINDS, CacheKind, check_kind
from stem_runtime.errors import UsageError
from stem_runtime.kernels import DEVICES, Device
from stem_runtime.limits import Limit
from stem_runtime.threads import THREADS

from . import chat_settings
from .chat_settings import About, ChatSettings, check_name
from .machine import GPU_MEMORY

MAX_BYTES = 2 << 20
MAX_TEXT = 1000

DEFAULT_THEME = "stem-dark"

_CONTEXT = Limit(2, 1 << 24, whole=True)
_NUMBERS = {"context": _CONTEXT, "threads": THREADS, "gpu_memory": GPU_MEMORY}
_KEY = re.compile(r"[a-z0-9_]+(\+[a-z0-9_]+)*|[!-~]")


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of stem-chat; `ABOUT` says what each is for.

    `keys` maps ids of bindings to keys with commas between, as Textual's keymaps do. `chat` is what
    new chats begin with. Raises UsageError for a value that a setting cannot have.
    """

    model: str | None = None
    theme: str = DEFAULT_THEME
    editor: str | None = None
    private: bool = False
    mouse: bool = True
    calibrate: bool = True
    context: int | None = None
    threads: int | None = None
    device: Device = "auto"
    gpu_memory: float | None = None
    kv_cache: CacheKind | None = None
    draft: bool = True
    keys: Mapping[str, str] = field(default_factory=dict)
    chat: ChatSettings = field(default_factory=ChatSettings)

    def __post_init__(self) -> None:
        _check_text("theme", self.theme)
        for name in ("model", "editor"):
            if (text := getattr(self, name)) is not None:
                _check_text(name, text)
        for name in ("private", "mouse", "calibrate", "draft"):
            if not isinstance(value := getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false, not {value!r:.40}.")
        for name, limit in _NUMBERS.items():
            if (number := getattr(self, name)) is not None:
                limit.check(name, number)
        if self.device not in DEVICES:
            raise UsageError(f"device must be {' or '.join(DEVICES)}, not {self.device!r:.40}.")
        if self.kv_cache is not None:
            check_kind(self.kv_cache)
        for binding, keys in self.keys.items():
            _check_keys(binding, keys)


ABOUT: Mapping[str, About] = {
    "model": About(
        "Model to begin with: an installed name, or the path of a packed folder. "
        "Not set: the default model.",
        "text",
        example="smollm2-135m",
    ),
    "theme": About("Colours: stem-dark, stem-light, or one of Textual's own.", "text"),
    "editor": About(
        "Command that the editor key opens a message in. Not set: $VISUAL or $EDITOR.",
        "text",
        example="nano",
    ),
    "private": About("Write no conversation to disk.", "true or false"),
    "mouse": About(
        "Let the chat have the mouse; without it the terminal selects text as it always does.",
        "true or false",
    ),
    "calibrate": About(
        "Learn which words to look at when a model was downloaded, where that takes seconds.",
        "true or false",
    ),
    "context": About(
        "Tokens of prompt and answers that there is room for. Not set: 8192, or what the model "
        "was made for, where that is less.",
        str(_CONTEXT),
        example=4096,
    ),
    "threads": About(
        "Threads to compute with. Not set: as many as there are physical cores.",
        str(THREADS),
        example=4,
    ),
    "device": About(
        "Where to compute. auto: on a CUDA card where one can be used, else on the CPU.",
        " or ".join(f'"{device}"' for device in DEVICES),
    ),
    "gpu_memory": About(
        "GB of a card's memory to take at most; what has no room there runs on the CPU. Not set: "
        "all that is free.",
        str(GPU_MEMORY),
        example=6.0,
    ),
    "kv_cache": About(
        "What is kept of the tokens of a chat. int8 takes half the memory and makes long chats "
        "faster; only the CPU can read it. Not set: fp16.",
        " or ".join(f'"{kind}"' for kind in CACHE_KINDS),
        example="int8",
    ),
    "draft": About(
        "Guess the next tokens from the chat so far and read them along, where that saves time. "
        "The answers are the same; only the CPU can do it.",
        "true or false",
    ),
}
"""Every setting outside the tables [keys] and [chat]."""


def config_file() -> Path:
    """The file that is read unless another is named."""
    return paths.config_dir() / "config.toml"


def load_config(path: Path | None = None) -> Config:
    """The settings in a TOML file: in `path`, or in `config_file()`, which need not exist.

    Raises UsageError, naming the file, the setting and what is allowed.
    """
    import tomllib

    file = config_file() if path is None else path
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        if path is None:
            return Config()
        raise UsageError(f"The settings {file} do not exist.") from None
    except OSError as error:
        raise UsageError(f"The settings {file} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"The settings {file} are over {MAX_BYTES >> 20} MB; that is no config.")
    try:
        # editors on Windows begin a file with a mark that is no TOML
        return from_toml(tomllib.loads(data.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The settings {file} are not UTF-8 text, at byte {error.start}."
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"The settings {file} are not TOML: {error}.") from None
    except UsageError as error:
        raise UsageError(f"In the settings {file}: {error}") from None
    except ValueError:
        raise UsageError(f"In the settings {file} a number has thousands of digits.") from None


def from_toml(tables: Mapping[str, Any]) -> Config:
    """Settings from parsed TOML. Raises UsageError."""
    config = Config()
    for name, value in tables.items():
        check_name(name, (*ABOUT, "keys", "chat"), "setting")
        if name in ("keys", "chat"):
            if not isinstance(value, dict):
                raise UsageError(f"[{name}] must be a table, not {value!r:.40}.")
            value = _flat(value) if name == "keys" else _chat(value)
        changed: Any = {name: value}
        config = replace(config, **changed)
    return config


def _chat(table: Mapping[str, Any]) -> ChatSettings:
    settings = ChatSettings()
    for name, value in table.items():
        check_name(name, chat_settings.NAMES, "setting in [chat]")
        try:
            settings = replace(settings, **{name: value})
        except UsageError as error:
            raise UsageError(f"[chat] {error}") from None
    return settings


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Ids with dots are tables in TOML unless they are quoted: both spellings are the same here."""
    keys: dict[str, str] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            keys |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            keys[prefix + name] = ",".join(map(str, value))
        else:
            keys[prefix + name] = value
    return keys


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise UsageError(
            f"{name} must be text of 1 to {MAX_TEXT} characters, not {text!r:.40}; "
            "leave it out for the default."
        )


def _check_keys(binding: str, keys: object) -> None:
    """Whether there is such a binding is for the screen to know."""
    named = [key.strip() for key in keys.split(",")] if isinstance(keys, str) else []
    if not named or not all(_KEY.fullmatch(key) for key in named):
        raise UsageError(
            f"[keys] {binding:.60} must be a key such as ctrl+j or several with commas between, "
            f"not {keys!r:.60}."
        )
