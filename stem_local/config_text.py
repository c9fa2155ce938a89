"""Settings as commented TOML that can be saved and read again."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import chat_settings, config
from .chat_settings import About
from .config import Config

_WIDTH = 98
_KEYS = """\
Keys of the chat's bindings: its help screen and docs/config.md list their ids. For instance, \
to send with Alt+Enter and begin a new line with Enter:
"composer.send" = "alt+enter"
"composer.newline" = "enter"
"""


def to_toml(settings: Config, file: Path) -> str:
    """Every setting with what it is for; those that are not set are commented out.

    `file` is where stem-chat looks for them.
    """
    lines = [
        f"# Settings of stem-chat. They are read from {toml_value(str(file))}",
        "",
        *_table(settings, config.ABOUT),
        "[keys]",
        *(line for part in _KEYS.splitlines() for line in _comment(part)),
        *(f"{toml_value(name)} = {toml_value(keys)}" for name, keys in settings.keys.items()),
        "",
        "[chat]",
        *_comment("What new chats begin with; each can be changed in its own chat."),
        "",
        *_table(settings.chat, chat_settings.ABOUT),
    ]
    return "\n".join(lines)


def toml_value(value: object) -> str:
    """A text, number or truth as TOML writes it."""
    if isinstance(value, str):
        # JSON escapes all that TOML does, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()


def _table(settings: object, about: Mapping[str, About]) -> Iterator[str]:
    for name, setting in about.items():
        yield from _comment(setting.help)
        yield f"# Allowed: {setting.allowed}."
        value = getattr(settings, name)
        if value is None:
            yield f"# {name} = {toml_value(setting.example)}"
        else:
            yield f"{name} = {toml_value(value)}"
        yield ""


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]
