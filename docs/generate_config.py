"""Write docs/config.md from the settings themselves, or check that it is current.

python docs/generate_config.py [--check]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from generate_page import write_or_check

from stem_local import chat_settings, config
from stem_local.chat_settings import About, ChatSettings
from stem_local.config import Config
from stem_local.config_text import toml_value
from stem_tui.binding_table import remappable

HEAD = """# Settings

<!-- Written by docs/generate_config.py: change the settings, then run `make docs`. -->

`stem-chat` reads one TOML file, which need not exist:

| system | file |
|---|---|
| Linux | `~/.config/stem-local/config.toml` |
| macOS | `~/Library/Application Support/stem-local/config.toml` |
| Windows | `%LOCALAPPDATA%\\stem-local\\config.toml` |

With `STEM_HOME` set it is `$STEM_HOME/config/config.toml`; `--config FILE` reads another. What the
command line says comes before what the file says. `stem-chat --print-config` prints every setting
in force, with comments, in a form that can be saved as the file. A setting that is not known, or
has a value that it cannot have, is named together with the file, and nothing is started.
"""

CHAT = """
## [chat]

What a new chat begins with, and what a single question is answered with. In a chat they are changed
in the side panel or with `/set`, and saved with it.
"""

KEYS = """
## [keys]

Other keys for what keys do. A binding's id is given a key, or several with commas between or in a
list; its own keys then no longer do it. To send with Alt+Enter and begin a new line with Enter:

```toml
[keys]
"composer.send" = "alt+enter"
"composer.newline" = "enter"
```

Keys are named as Textual names them: `ctrl+j`, `shift+enter`, `f2`, `pagedown`, `question_mark`, or
the character itself. Terminals cannot tell every combination from others. The help screen shows
the keys in force.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "\n## Settings outside tables\n", _settings(Config(), config.ABOUT)]
    parts += [CHAT, _settings(ChatSettings(), chat_settings.ABOUT)]
    keys = ((f"`{b.id}`", _keys(b.keys), b.description) for b in remappable().values())
    parts += [KEYS, _table(("id", "keys", "what they do"), keys)]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _settings(defaults: object, about: Mapping[str, About]) -> str:
    rows = []
    for name, setting in about.items():
        value = getattr(defaults, name)
        default = "not set" if value is None else f"`{toml_value(value)}`"
        rows.append((f"`{name}`", default, setting.allowed, setting.help))
    return _table(("setting", "default", "allowed", "what it is for"), rows)


def _keys(keys: str) -> str:
    return ", ".join(f"`{key}`" for key in keys.split(","))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


if __name__ == "__main__":
    write_or_check("config.md", page())
