"""The context gauge says how full the context is and what happens then, in words."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot

from stem_tui.widgets.gauge import ContextGauge

from .conftest import Host, run_app, shown

STOP, DROP = "stop", "drop_oldest"


def drawn(used: int, limit: int, policy: str, width: int = 80) -> tuple[str, bool]:
    """The gauge's row, and whether it is drawn as a warning."""
    gauge = ContextGauge()

    async def session(pilot: Pilot[object]) -> tuple[str, bool]:
        gauge.policy = policy
        gauge.show(used, limit)
        await pilot.pause()
        return shown(pilot.app).strip(), gauge.has_class("-nearly")

    return run_app(Host(gauge), session, size=(width, 3))


@pytest.mark.parametrize(
    ("used", "policy", "row"),
    [
        (1234, STOP, "context ━━──────── 1,234 of 8,192 tokens (15%) · stops when full"),
        (0, DROP, "context ────────── 0 of 8,192 tokens (0%) · drops old turns when full"),
        (6553, DROP, "context ━━━━━━━━── 6,553 of 8,192 tokens (79%) · drops old turns when full"),
        (6554, STOP, "context 6,554 of 8,192 (80%) · ! nearly full: then the chat stops"),
        (8191, DROP, "context 8,191 of 8,192 (99%) · ! nearly full: old turns drop next"),
        (
            8192,
            STOP,
            "context ━━━━━━━━━━ 8,192 of 8,192 tokens (100%) · ! full: the chat stops here",
        ),
        (8192, DROP, "context 8,192 of 8,192 (100%) · ! full: old turns are dropped"),
    ],
)
def test_it_says_what_happens_when_the_context_is_full(used: int, policy: str, row: str) -> None:
    assert drawn(used, 8192, policy) == (row, used >= 6554)


def test_the_share_and_what_happens_are_kept_longest() -> None:
    assert (
        drawn(7000, 8192, DROP, width=50)[0] == "context 85% · ! nearly full: old turns drop next"
    )
    assert drawn(7000, 8192, DROP, width=40)[0] == "context 85% · ! nearly full"
    assert drawn(7000, 8192, DROP, width=20)[0] == "context 85%"


def test_without_a_model_there_is_no_limit() -> None:
    assert drawn(0, 0, STOP) == ("context: known once the model is loaded", False)


def test_a_larger_context_takes_the_warning_back() -> None:
    gauge = ContextGauge()

    async def session(pilot: Pilot[object]) -> list[bool]:
        seen = []
        for used, limit in ((90, 100), (90, 1000), (900, 1000), (10, 1000)):
            gauge.show(used, limit)
            await pilot.pause()
            seen.append(gauge.has_class("-nearly"))
        return seen

    assert run_app(Host(gauge), session) == [True, False, True, False]
