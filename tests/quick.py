"""Calibration cut short, for tests of what it does rather than of what it finds."""

from __future__ import annotations

import pytest

from stem_runtime.sparsity import budget, calibrate, capture, ffn_settings, measure


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tokens, plans and rounds of everything."""
    monkeypatch.setattr(calibrate, "HELD", 200)
    monkeypatch.setattr(capture, "FFN_TOKENS", 256)
    monkeypatch.setattr(budget, "ROUNDS", 1)
    monkeypatch.setattr(ffn_settings, "HALVINGS", 3)
    monkeypatch.setattr(ffn_settings, "RETREATS", 1)
    monkeypatch.setattr(measure, "SCORES", 1 << 22)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    monkeypatch.setattr(measure, "DECODED", 6)
