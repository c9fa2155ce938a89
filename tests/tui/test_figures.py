"""Bars, strips and the line of figures under an answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_tui.widgets.figures import LEVELS, bar, brief, one_line, parameters, rate, strip, summary

from .conftest import STATS

FRACTIONS = st.lists(st.floats(0, 1), max_size=80)


def test_a_strip_has_a_block_for_every_layer() -> None:
    assert strip([0, 0.15, 0.29, 0.43, 0.58, 0.72, 0.86, 1], 20) == LEVELS


def test_only_a_whole_layer_is_drawn_whole() -> None:
    assert strip([1.0, 0.999, 0.99, 0.9], 4) == "██▇▇"


def test_neighbours_share_a_block_where_there_is_no_room() -> None:
    assert strip([0, 0, 1, 1, 0, 1], 3) == "▁█▄"
    assert strip([1] * 7 + [0], 3) == "██▅"


@settings(max_examples=60)
@given(FRACTIONS, st.integers(-2, 100))
def test_a_strip_fits_and_spans_all_layers(fractions: list[float], width: int) -> None:
    drawn = strip(fractions, width)
    assert len(drawn) == max(min(width, len(fractions)), 0)
    if drawn:
        assert min(fractions) <= 1 / 7 or drawn != "▁" * len(drawn)
        assert LEVELS.index(max(drawn)) <= max(fractions) * 7 + 0.04


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, -3.0, 12.0])
def test_numbers_that_are_no_fractions_are_drawn_as_the_nearest(broken: float) -> None:
    assert strip([broken], 5) in LEVELS
    assert len(bar(broken, 5)) == 5


def test_a_bar_tells_nothing_from_little_and_much_from_all() -> None:
    drawn = [bar(share, 6) for share in (0, 0.01, 0.5, 0.99, 1)]
    assert drawn == ["──────", "━─────", "━━━───", "━━━━━─", "━━━━━━"]


@settings(max_examples=40)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 60))
def test_a_bar_never_shrinks(one: float, other: float, width: int) -> None:
    less, more = sorted((one, other))
    assert bar(less, width).count("━") <= bar(more, width).count("━")


def test_a_speed_has_a_decimal_only_where_it_is_slow() -> None:
    assert [rate(x) for x in (0.43, 9.94, 9.96, 412.7)] == [
        "0.4 tok/s",
        "9.9 tok/s",
        "10 tok/s",
        "413 tok/s",
    ]


def test_parameters_change_their_unit_at_a_billion() -> None:
    assert [parameters(n) for n in (134_515_008, 994_000_000, 1.24e9)] == ["135M", "994M", "1.24B"]


HEAD = "192 axes, then 3035 rows on average; 2 of 3169 winners missed in calibration"


@pytest.mark.parametrize(
    ("sentence", "short"),
    [
        ("dense: switched off", "dense: switched off"),
        (f"sparse head: {HEAD}; whole FFN: not faster here", "sparse head, whole FFN"),
        (
            f"sparse FFN: 30% of the neurons left out, as asked; sparse head: {HEAD}",
            "sparse FFN (30% left out), sparse head",
        ),
        ("dense: not calibrated; run stem-local calibrate smollm2-135m-instruct", "dense"),
        ("dense: skipping neurons was slow; the sparse head was not faster here", "dense"),
    ],
)
def test_the_long_reason_is_cut_to_what_was_left_out(sentence: str, short: str) -> None:
    assert brief(sentence) == short


def test_the_summary_is_one_line() -> None:
    assert summary({**STATS, "sparsity": f"sparse head: {HEAD}"}) == (
        "254 tok/s · 112M of 135M active (83%) · ▃▄▄▄▄▅▅▅▅▆▆▆▆▇▇▇ · sparse head"
    )


def test_what_is_unknown_is_left_out() -> None:
    assert summary({}) == ""
    assert summary({"tokens_per_second": 12.0}) == "12 tok/s"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens_per_second", "fast"),
        ("tokens_per_second", math.nan),
        ("tokens_per_second", 1e300),
        ("active_parameters", None),
        ("total_parameters", True),
        ("layer_active_fraction", "▇▇▇"),
        ("layer_active_fraction", 7),
        ("sparsity", ["off"]),
    ],
)
def test_a_value_of_the_wrong_kind_is_left_out(name: str, value: Any) -> None:
    parts = summary({**STATS, name: value}).split(" · ")
    assert len(parts) == 3
    assert set(parts) < set(summary(STATS).split(" · "))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=90),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(STATS)), JSON))
def test_any_imported_figures_make_one_harmless_line(stats: dict[str, Any]) -> None:
    line = summary(stats)
    assert line.isprintable()
    assert len(line) < 160


def test_unknown_text_is_made_harmless() -> None:
    assert one_line("a\n b\x1b[31m\t\u202ec\x9b") == "a b[31m c"
