"""Texts of systems that do not speak UTF-8 everywhere, and streams that cannot take every text."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import stem_tui.cli
from stem_local import cli, oneshot, terminal
from stem_local.texts import own_text

WORDS = "Grüße, 日本 🌍"


def written(encoding: str, work: Callable[[], object]) -> bytes:
    """What `work` writes to a standard output of this encoding."""
    held = io.BytesIO()
    with (
        io.TextIOWrapper(held, encoding=encoding, write_through=True, newline="") as out,
        contextlib.redirect_stdout(out),
    ):
        work()
        return held.getvalue()


def print_config(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'model = "{WORDS}"', encoding="utf-8")
    stem_tui.cli.main(["--config", str(file), "--print-config"], standalone_mode=False)


def test_pipes_get_utf8_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_CODE_PAGES", True)
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    told = written("cp1252", lambda: print_config(tmp_path)).decode()
    assert f'model = "{WORDS}"' in told


def test_who_names_an_encoding_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_CODE_PAGES", True)
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    told = written("cp1252", lambda: print_config(tmp_path)).decode("cp1252")
    assert 'model = "Grüße, ?? ?"' in told


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "UTF8"])
def test_json_is_whole_in_any_encoding(encoding: str) -> None:
    told = written(encoding, lambda: terminal.echo_json({"text": WORDS})).decode(encoding)
    assert json.loads(told) == {"text": WORDS}
    assert (WORDS in told) == encoding.lower().startswith("utf")


def test_a_pipe_from_windows_is_the_same_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def piped(data: bytes) -> str | None:
        stdin = SimpleNamespace(buffer=io.BytesIO(data), closed=False, isatty=lambda: False)
        monkeypatch.setattr(oneshot, "sys", SimpleNamespace(stdin=stdin))
        return oneshot.piped_input()

    assert piped(f"\ufeff{WORDS}\r\n\r\nMore\r\n".encode()) == f"{WORDS}\n\nMore\n"
    assert piped(b"a\rb") == "a\rb"


def test_a_file_from_windows_is_the_same_text(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(f"\ufeff{WORDS}\r\nMore\r\n".encode())
    assert own_text(tmp_path / "notes.txt") == f"{WORDS}\nMore\n"
