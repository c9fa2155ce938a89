"""Drafts looked up in a text, and when they are worth their time."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from stem_local.drafting import MATCHES, Gain, Match, PromptLookup

LONG, SHORT, LAST = MATCHES


def searched(tokens: list[int], most: int) -> tuple[list[int], Match | None]:
    """What `PromptLookup.propose` says, found by looking at every place of the text."""
    for match in MATCHES:
        length = match.length
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:]:
                going_on = list(tokens)
                while len(going_on) < len(tokens) + most:
                    going_on.append(going_on[place + len(going_on) - len(tokens)])
                return going_on[len(tokens) :], match
    return [], None


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 40)), st.integers(1, 5))
def test_what_is_looked_up_is_what_a_search_finds(
    tokens: list[int], stops: list[int], most: int
) -> None:
    lookup = PromptLookup()
    for stop in sorted(stops):
        assert lookup.propose(tokens[:stop], most) == searched(tokens[:stop], most)
    assert lookup.propose(tokens, most) == searched(tokens, most)


def test_the_longer_match_and_the_later_place_count() -> None:
    #                          1 2 3 -> 4       9 3 -> 7, later
    assert PromptLookup().propose([1, 2, 3, 4, 8, 2, 3, 7, 1, 2, 3], 2) == ([4, 8], LONG)
    assert PromptLookup().propose([1, 2, 3, 4, 8, 2, 3, 7, 9, 2, 3], 2) == ([7, 9], SHORT)
    assert PromptLookup().propose([5, 5, 5], 3) == ([5, 5, 5], SHORT)
    assert PromptLookup().propose([1, 2, 6, 1, 7, 1], 3) == ([7, 1, 7], LAST)


def drafts_of(
    gain: Gain,
    holding: int,
    costs: dict[int, float],
    steps: int = 2000,
    match: Match = LONG,
) -> list[int]:
    """How many tokens the steps draft where the first `holding` hold, at costs in plain steps."""
    counts = []
    for step in range(steps):
        count = gain.count(match, 3) if step % 3 else 0
        if count:
            gain.drafted(match, count, min(holding, count), costs[count])
        else:
            gain.plain(1.0)
        counts.append(count)
    return counts


def share(counts: list[int], count: int) -> float:
    return counts.count(count) / len(counts)


def test_drafts_go_on_where_they_pay() -> None:
    assert share(drafts_of(Gain(), 3, {1: 2.5, 3: 3.5}), 3) > 0.6
    assert share(drafts_of(Gain(), 3, {1: 1.8, 3: 1.9}), 3) > 0.6


def test_short_drafts_are_left_where_long_ones_take_too_long() -> None:
    assert share(drafts_of(Gain(), 3, {1: 1.05, 3: 2.8}), 1) > 0.6
    gain, rng, counts = Gain(), random.Random(1), []
    gain.plain(1.0)
    for _ in range(1000):
        count = gain.count(LONG, 3)
        held = next((i for i in range(count) if rng.random() < 0.5), count)
        gain.drafted(LONG, count, held, 1.9 if count == 3 else 1.05)
        counts.append(count)
    assert share(counts, 1) > 0.8


def test_drafts_that_do_not_pay_become_rare_and_never_end() -> None:
    for holding, costs in ((0, {1: 1.1, 3: 1.3}), (1, {1: 2.5, 3: 2.5}), (2, {1: 2.2, 3: 3.5})):
        gain = Gain()
        drafts_of(gain, holding, costs, 100)
        assert 0.85 < share(drafts_of(gain, holding, costs), 0) < 1


def test_drafts_come_back_when_the_text_changes() -> None:
    gain = Gain()
    drafts_of(gain, 0, {1: 1.1, 3: 1.3}, steps=300)
    assert not gain.count(LONG, 3)
    assert share(drafts_of(gain, 3, {1: 1.1, 3: 1.3}, steps=300), 3) > 0.5


def test_a_draft_is_never_longer_than_there_is_room() -> None:
    gain = Gain()
    gain.plain(1.0)
    assert [gain.count(LONG, most) for most in (0, 1, 2, 3)] == [0, 1, 1, 3]


def test_matches_of_every_length_are_judged_on_their_own() -> None:
    gain = Gain()
    gain.plain(1.0)
    for _ in range(20):
        gain.drafted(SHORT, 3, 0, 1.3)
    assert not gain.count(SHORT, 3)
    assert gain.count(LONG, 3) == 3
    assert gain.count(LAST, 3) == 1


def test_one_step_that_took_forever_changes_little() -> None:
    gain = Gain()
    gain.plain(1.0)
    gain.drafted(LONG, 3, 3, 1e6)
    assert gain.count(LONG, 3) == 3
    gain.plain(1e6)
    gain.drafted(LONG, 3, 3, 2.0)
    assert gain.count(LONG, 3) == 3


def test_without_a_plain_step_nothing_is_known_of_costs() -> None:
    gain = Gain()
    gain.drafted(LONG, 3, 3, 50.0)
    assert gain.count(LONG, 3) == 3
