"""Renames that wait for whoever has the file open, as they must on Windows."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from stem_runtime import renaming


def refuse(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next renames fail as they do on Windows while somebody reads the file."""
    replace, left = Path.replace, [times]

    def guarded(old: Path, new: Path) -> Path:
        if left[0]:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(old, new)

    monkeypatch.setattr(Path, "replace", guarded)
    monkeypatch.setattr(renaming, "_WAITS", (0.0, 0.0))


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_file_that_is_read_for_a_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    (tmp_path / "old").write_text("new text", encoding="utf-8")
    (tmp_path / "place").write_text("old text", encoding="utf-8")
    refuse(times, monkeypatch)
    renaming.rename(tmp_path / "old", tmp_path / "place")
    assert (tmp_path / "place").read_text(encoding="utf-8") == "new text"
    assert not (tmp_path / "old").exists()


def test_one_that_stays_open_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").touch()
    refuse(3, monkeypatch)
    with pytest.raises(PermissionError):
        renaming.rename(tmp_path / "old", tmp_path / "place")
    assert (tmp_path / "old").exists()
