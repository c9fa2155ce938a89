"""The STEM meter: what it draws while waiting, answering and at rest, and its keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.binding import BindingType
from textual.pilot import Pilot
from textual.widgets import Input

from stem_local.live import Live
from stem_local.sparsity import MOST, Sparsity
from stem_tui.widgets.gauge import ContextGauge
from stem_tui.widgets.meter import StemMeter
from stem_tui.widgets.sparsity_scale import FIRST_SHARE, denser, following, nearest, sparser

from .conftest import STATS, Host, run_app, shown

REASON = "sparse head: 192 axes, then 3035 rows on average; 2 of 3169 winners missed"

LIVE = Live(
    prompt_done=60,
    prompt_total=60,
    tokens=12,
    tokens_per_second=41.7,
    active_parameters=112_000_000,
    total_parameters=135_000_000,
    layer_active_fraction=tuple(round(0.4 + 0.02 * layer, 2) for layer in range(30)),
    context_used=72,
    context=8192,
    sparsity=REASON,
)


class Metered(Host):
    """A meter below a field that has the focus, and its keys as the chat screen has them."""

    BINDINGS: ClassVar[list[BindingType]] = [*StemMeter.KEYS]

    def __init__(self) -> None:
        self.meter = StemMeter()
        self.asked: list[Sparsity] = []
        super().__init__(Input(), self.meter)

    def action_meter(self, how: str) -> None:
        self.meter.step(how)

    def on_stem_meter_sparsity_requested(self, event: StemMeter.SparsityRequested) -> None:
        self.asked.append(event.value)
        self.meter.setting = event.value


def rows(act: Callable[[StemMeter], None], width: int = 80) -> list[str]:
    """The meter's two rows after `act`."""
    meter = StemMeter()

    async def session(pilot: Pilot[object]) -> list[str]:
        act(meter)
        await pilot.pause()
        assert meter.region.height == 2
        return [row.strip() for row in shown(pilot.app).split("\n")[:2]]

    return run_app(Host(meter), session, size=(width, 6))


def test_before_the_first_answer_it_says_what_it_is_for() -> None:
    assert rows(lambda meter: meter.rest(None)) == [
        "How fast the model answers, and how much of it, is shown here.",
        "sparsity ◂ auto ▸",
    ]


def test_an_answer_under_way() -> None:
    assert rows(lambda meter: meter.show(LIVE)) == [
        "▶ 42 tok/s  112M of 135M active ━━━━━━━─ 83%  ▃▃▄▄▄▄▄▄▄▅▅▅▅▅▅▅▆▆▆▆▆▆▆▇▇▇▇▇▇▇",
        "sparsity ◂ auto ▸  sparse head: 192 axes, then 3035 rows on average; 2 of 316…",
    ]


def test_a_finished_answer() -> None:
    def act(meter: StemMeter) -> None:
        meter.show(LIVE)
        meter.rest({**STATS, "sparsity": "dense: switched off"})
        meter.setting = "off"

    assert rows(act) == [
        "■ 254 tok/s  112M of 135M active ━━━━━━━─ 83%  ▃▃▄▄▄▄▄▄▄▅▅▅▅▅▅▅▆▆▆▆▆▆▆▇▇▇▇▇▇▇",
        "sparsity ◂ off ▸  dense: switched off",
    ]


def test_a_chat_without_answers_is_at_the_beginning() -> None:
    def act(meter: StemMeter) -> None:
        meter.show(LIVE)
        meter.rest(None)

    assert rows(act)[0] == rows(lambda meter: meter.rest(None))[0]
    assert rows(act)[1] == "sparsity ◂ auto ▸"


def test_reading_the_prompt_is_shown_until_the_first_token() -> None:
    reading = replace(LIVE, prompt_done=512, prompt_total=2048, tokens=0)
    assert rows(lambda meter: meter.show(reading))[0] == (
        "… Reading the prompt, 512 of 2,048 tokens  ━━━━──────────── 25%"
    )
    answering = replace(reading, tokens=1)
    assert rows(lambda meter: meter.show(answering))[0].startswith("▶ 42 tok/s")


def test_work_of_unknown_length_has_no_bar() -> None:
    assert rows(lambda meter: meter.waiting("Loading smollm2-135m"))[0] == "… Loading smollm2-135m"


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (1, "…"),
        (5, "▶ 42…"),
        (12, "▶ 42 tok/s"),
        (20, "▶ 42 tok/s  ▃▄▅▅▆▆▇▇"),
        (36, "▶ 42 tok/s  83% active  ▃▄▄▄▅▅▆▆▆▇▇▇"),
        (53, "▶ 42 tok/s  83% active  ▃▃▄▄▄▄▄▄▄▅▅▅▅▅▅▅▆▆▆▆▆▆▆▇▇▇▇▇▇"),
        (54, "▶ 42 tok/s  112M of 135M active ━━━━━━━─ 83%  ▃▄▅▅▆▆▇▇"),
    ],
)
def test_what_has_no_room_is_left_out(width: int, row: str) -> None:
    first, second = rows(lambda meter: meter.show(LIVE), width + 2)
    assert first == row
    assert second.endswith("…")
    assert len(second) <= width


def test_the_whole_reason_is_under_the_pointer() -> None:
    meter = StemMeter()

    async def session(_: Pilot[object]) -> object:
        meter.show(LIVE)
        return meter.tooltip

    assert run_app(Host(meter), session) == REASON


def test_imported_figures_cannot_break_it() -> None:
    broken: dict[str, Any] = {
        "tokens_per_second": "1",
        "active_parameters": -1,
        "layer_active_fraction": [None, "x", float("nan"), 5],
        "sparsity": "\x1b[2J\nboo",
    }
    assert rows(lambda meter: meter.rest(broken)) == [
        "■ 0.0 tok/s  ▁▁▁█",
        "sparsity ◂ auto ▸  [2J boo",
    ]


def test_the_keys_work_wherever_the_focus_is() -> None:
    app = Metered()

    async def session(pilot: Pilot[object]) -> None:
        assert isinstance(app.focused, Input)
        await pilot.press("ctrl+t", "ctrl+t", "ctrl+t", "ctrl+t", "f9", "f9", "f8")
        await pilot.pause()

    run_app(app, session)
    assert app.asked == [0.3, "off", "auto", 0.3, 0.35, 0.4, 0.35]


def test_the_mouse_does_what_the_keys_do() -> None:
    app = Metered()

    async def session(pilot: Pilot[object]) -> None:
        await pilot.pause()
        row = app.screen._compositor.render_strips()[app.meter.region.y + 1].text
        for mark in ("auto", "▸", "◂", "◂"):
            await pilot.click(app.meter, offset=(row.index(mark), 1))
            await pilot.pause()
            row = app.screen._compositor.render_strips()[app.meter.region.y + 1].text

    run_app(app, session)
    assert app.asked == [0.3, 0.35, 0.3, 0.25]


def test_keys_can_be_remapped() -> None:
    app = Metered()

    async def session(pilot: Pilot[object]) -> None:
        app.set_keymap({"meter.sparser": "f3"})
        await pilot.press("f3")
        await pilot.pause()

    run_app(app, session)
    assert app.asked == [FIRST_SHARE]


def test_nothing_is_asked_for_at_the_ends() -> None:
    app = Metered()

    async def session(pilot: Pilot[object]) -> None:
        app.meter.setting = MOST
        app.meter.step("sparser")
        app.meter.setting = "off"
        app.meter.step("denser")
        await pilot.pause()

    run_app(app, session)
    assert app.asked == []


def test_cycling_comes_back_to_the_last_share() -> None:
    app = Metered()

    async def session(pilot: Pilot[object]) -> None:
        app.meter.setting = 0.55
        await pilot.press("ctrl+t", "ctrl+t", "ctrl+t")
        await pilot.pause()

    run_app(app, session)
    assert app.asked == ["off", "auto", 0.55]


def test_the_scale_runs_from_off_to_the_most() -> None:
    value: Sparsity = "off"
    seen = [value]
    while (more := sparser(value, 0.3)) != value:
        value = more
        seen.append(value)
    assert seen == ["off", *(round(0.05 * step, 2) for step in range(20))]
    back = [value]
    while (less := denser(back[-1], 0.3)) != back[-1]:
        back.append(less)
    assert back == seen[::-1]


@settings(max_examples=60)
@given(st.floats(0, MOST), st.floats(0, MOST))
def test_every_step_is_a_value_that_sparsity_may_have(value: float, share: float) -> None:
    from stem_local.sparsity import check_sparsity

    assert denser(value, share) in ("off", *(nearest(0.05 * step) for step in range(20)))
    for move in (sparser, denser, following):
        for start in (value, "auto", "off"):
            check_sparsity(move(start, share))
    assert sparser(value, share) >= nearest(value)


def test_an_unchanged_figure_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = StemMeter()
    drawn: list[object] = []

    async def session(pilot: Pilot[object]) -> None:
        meter.show(LIVE)
        await pilot.pause()
        monkeypatch.setattr(meter, "refresh", drawn.append)
        meter.show(replace(LIVE, tokens=13))
        assert drawn == []

    run_app(Host(meter), session)


def test_it_looks_as_it_did(theme: str, snap_compare: Callable[..., bool]) -> None:
    meter, gauge = StemMeter(), ContextGauge()

    async def act(pilot: Pilot[object]) -> None:
        meter.setting = 0.4
        meter.show(LIVE)
        gauge.show(7000, 8192)
        await pilot.pause()

    assert snap_compare(Host(meter, gauge, theme=theme), run_before=act)
