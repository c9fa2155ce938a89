"""The house themes, one dark and one light, in which all text is easy to read.

Textual mixes most colours of a theme from these; the tests measure the contrast of what comes out.
"""

from __future__ import annotations

from typing import Any

from textual.app import App
from textual.theme import Theme

DARK = Theme(
    name="stem-dark",
    primary="#5FCB96",
    secondary="#7FB8D4",
    accent="#E8B765",
    warning="#EBC062",
    error="#F48E84",
    success="#86D68A",
    foreground="#DFE8E3",
    background="#0F1512",
    surface="#171F1B",
    panel="#212B26",
    dark=True,
    variables={
        "text-disabled": "auto 55%",
        "border-blurred": "#3A4A42",
    },
)

LIGHT = Theme(
    name="stem-light",
    primary="#17694A",
    secondary="#1F5F82",
    accent="#84480A",
    warning="#7A4E00",
    error="#A82A22",
    success="#23662A",
    foreground="#1B2620",
    background="#F6F8F5",
    surface="#ECF0EB",
    panel="#DFE6DF",
    dark=False,
    variables={
        "text-disabled": "auto 58%",
        "text-muted": "auto 65%",
        "foreground-muted": "#1B2620BF",
        "border-blurred": "#B3C2B7",
    },
)


def register(app: App[Any]) -> None:
    """Offer both themes in an app, beside Textual's own."""
    for theme in (DARK, LIGHT):
        app.register_theme(theme)
