"""The table of slash commands, and what a typed line means."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stem_tui import slash
from stem_tui.slash import COMMANDS, Suggestion

ASKED_FOR = (
    *("help", "model", "system", "set", "sparsity", "regen", "edit", "clear", "save", "load"),
    *("export", "search", "read", "stats", "copy", "exit"),
)


def test_the_table_has_every_command_that_was_promised() -> None:
    assert set(ASKED_FOR) <= set(COMMANDS)


def test_names_and_aliases_are_unique_and_can_be_typed() -> None:
    names = [name for c in COMMANDS.values() for name in (c.name, *c.aliases)]
    assert len(set(names)) == len(names)
    for name in names:
        assert slash.parse(f"/{name} rest") == (name, "rest")


def test_every_command_fits_a_line_of_help() -> None:
    for command in COMMANDS.values():
        assert re.fullmatch(r"[a-z].*[^.]", command.help)
        assert len(command.usage) <= 24
        assert len(command.help) <= 54


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("/help", ("help", "")),
        ("/HELP  me \n", ("help", "me")),
        ("/?", ("?", "")),
        ("/system You are\nterse.", ("system", "You are\nterse.")),
        ("/usr/bin", None),
        ("/ help", None),
        (" /help", None),
        ("//help", None),
        ("/", None),
        ("/* comment */", None),
        ("help", None),
        ("a\n/help", None),
        ("", None),
    ],
)
def test_what_is_a_command(text: str, meaning: tuple[str, str] | None) -> None:
    assert slash.parse(text) == meaning


@given(st.text(max_size=20))
@example("//")
@example("/help")
def test_every_text_can_be_sent_as_a_message(text: str) -> None:
    typed = f"/{text}" if text.startswith("/") else text
    assert slash.parse(typed) is None
    assert slash.literal(typed) == text


@given(st.text("/?abcdefghilmoprst -\n\t", max_size=12))
def test_completion_takes_any_line(text: str) -> None:
    for name in slash.names(text):
        line = slash.completed(text, name)
        assert slash.parse(line) is not None
        assert line.strip() in {f"/{command}" for command in COMMANDS}
    waiting = slash.awaited(text)
    if waiting is not None:
        command, argument = waiting
        line = slash.completed(text, Suggestion("value"))
        name, value = slash.parse(line) or ("", "")
        assert (slash.find(name), value) == (command, "value")
        assert text.endswith(argument)


@settings(max_examples=50)
@given(st.text("~./ ab\0\ud800'", max_size=8))
def test_half_a_path_completes_to_nothing_worse_than_nothing(typed: str) -> None:
    for item in slash.arguments(cast("Any", None), f"/read {typed}"):
        assert slash.completed(f"/read {typed}", item).startswith("/read ")


def test_a_command_nobody_knows_is_told_with_the_nearest() -> None:
    assert "/model" in slash.unknown("modle")
    assert "/quit" in slash.unknown("qit")
    assert "/help lists them all" in slash.unknown("zzzzzz")


def test_names_come_before_aliases_and_only_once() -> None:
    values = [item.value for item in slash.names("/re")]
    assert values[:2] == ["/regen", "/read"]
    assert values == list(dict.fromkeys(values))
    assert [item.value for item in slash.names("/ret")] == ["/regen"]
