"""The settings file: read, refused with the place and the remedy, and written again."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_local.chat_settings import ChatSettings
from stem_local.config import ABOUT, MAX_BYTES, Config, config_file, from_toml, load_config
from stem_local.config_text import to_toml, toml_value
from stem_local.errors import UsageError
from stem_runtime.cache_kinds import CACHE_KINDS

from .test_chat_settings import SETTINGS

FULL = """
model = "qwen3-0.6b"
theme = "nord"
editor = "vim -n"
private = true
mouse = false
context = 2048
threads = 2
gpu_memory = 5.5
kv_cache = "int8"
draft = false

[keys]
"composer.send" = "ctrl+j"
composer.newline = ["enter", "shift+enter"]

[chat]
system = "Be kind."
sparsity = 0.3
temperature = 1
seed = 7
"""
WORDS = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(
    str.strip
)
CONFIGS = st.builds(
    Config,
    model=st.none() | WORDS,
    theme=WORDS,
    editor=st.none() | WORDS,
    private=st.booleans(),
    mouse=st.booleans(),
    context=st.none() | st.integers(2, 1 << 24),
    threads=st.none() | st.integers(1, 64),
    gpu_memory=st.none() | st.floats(0.1, 10_000),
    kv_cache=st.sampled_from([None, *CACHE_KINDS]),
    draft=st.booleans(),
    keys=st.dictionaries(WORDS, st.sampled_from(["enter", "ctrl+j,f1", "?", '"'])),
    chat=SETTINGS,
)


def written(text: str) -> Path:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text(text, encoding="utf-8")
    return config_file()


def test_without_a_file_there_are_defaults() -> None:
    assert load_config() == Config() == Config(chat=ChatSettings())


def test_the_file_is_read_from_where_it_lives_or_is_named(tmp_path: Path, home: Path) -> None:
    assert written(FULL).is_relative_to(home)
    expected = Config(
        model="qwen3-0.6b",
        theme="nord",
        editor="vim -n",
        private=True,
        mouse=False,
        context=2048,
        threads=2,
        gpu_memory=5.5,
        kv_cache="int8",
        draft=False,
        keys={"composer.send": "ctrl+j", "composer.newline": "enter,shift+enter"},
        chat=ChatSettings(system="Be kind.", sparsity=0.3, temperature=1, seed=7),
    )
    assert load_config() == expected
    other = tmp_path / "other.toml"
    other.write_text("theme = 'gruvbox'", encoding="utf-8")
    assert load_config(other) == Config(theme="gruvbox")


def test_a_file_from_windows_is_read() -> None:
    written("\ufefftheme = 'nord'\r\n[chat]\r\nsystem = 'Grüße'\r\n")
    assert load_config() == Config(theme="nord", chat=ChatSettings(system="Grüße"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("them = 'nord'", "did you mean theme?"),
        ("chatty = 1", "did you mean chat?"),
        ("[chat]\ntemperatur = 1", "setting in [chat] 'temperatur'; did you mean temperature?"),
        ("[chat]\ntemperature = 'hot'", "[chat] temperature must be a number from 0.0 to 100.0"),
        ("[chat]\nsparsity = true", "[chat] sparsity is 'auto', 'off' or a share"),
        ("[chat]\nsystem = 3", "[chat] system must be text"),
        ("chat = 3", "[chat] must be a table"),
        ("keys = []", "[keys] must be a table"),
        ("private = 'yes'", "private must be true or false"),
        ("draft = 1", "draft must be true or false, not 1"),
        ("threads = 0", "threads must be a whole number from 1 to 64, not 0"),
        ("gpu_memory = 0", "gpu_memory must be a number from 0.1 to 10000, not 0"),
        ("kv_cache = 'int4'", "kv_cache is fp16 or int8, not 'int4'"),
        ("context = 1.5", "context must be a whole number"),
        ("theme = ''", "theme must be text"),
        ("model = 3", "model must be text"),
        ("editor = false", "editor must be text"),
        ("[keys]\n'composer.send' = ''", "[keys] composer.send must be a key"),
        ("[keys]\ncomposer.send = 3", "[keys] composer.send must be a key"),
        ("[keys]\ncomposer.send = 'ctrl j'", "not 'ctrl j'"),
        ("theme = ", "not TOML"),
        (f"context = {'9' * 5000}", "a number has thousands of digits"),
        ("theme = 'a'\ntheme = 'b'", "not TOML"),
        pytest.param("a" + ".a" * 2000 + " = 1", "no setting", id="deep"),
        pytest.param("[keys]\na" + ".a" * 2000 + " = 1", "not TOML", id="deep keys"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(text: str, says: str) -> None:
    file = written(text)
    with pytest.raises(UsageError) as refused:
        load_config()
    assert str(file) in str(refused.value)
    assert says in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not exist"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(tmp_path)
    file = tmp_path / "bad.toml"
    file.write_bytes(b"theme = '\xff'")
    with pytest.raises(UsageError, match=r"not UTF-8 text, at byte 9"):
        load_config(file)
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="over 2 MB"):
        load_config(file)


@settings(max_examples=60, deadline=None)
@given(CONFIGS)
def test_what_is_printed_can_be_saved_as_the_file(config: Config) -> None:
    assert from_toml(tomllib.loads(to_toml(config, Path("config.toml")))) == config


def test_what_is_printed_names_every_setting(home: Path) -> None:
    text = to_toml(Config(), config_file())
    assert str(home) in text
    for field in fields(Config):
        spellings = (f"\n{field.name} = ", f"\n# {field.name} = ", f"\n[{field.name}]\n")
        assert any(spelling in text for spelling in spellings)
    assert set(ABOUT) == {field.name for field in fields(Config)} - {"keys", "chat"}
    assert max(map(len, text.splitlines()[1:])) <= 100


def test_examples_of_settings_that_are_not_set_are_valid() -> None:
    text = to_toml(Config(), config_file())
    examples = "\n".join(line[2:] for line in text.splitlines() if " = " in line and line[0] == "#")
    top, keys = examples.split('"composer.send"')
    from_toml(tomllib.loads(top))
    keys, _, seed = keys.rpartition("\n")
    from_toml(tomllib.loads(f'[keys]\n"composer.send"{keys}\n[chat]\n{seed}'))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_any_text_can_be_written(text: str) -> None:
    assert tomllib.loads(f"x = {toml_value(text)}") == {"x": text}
