"""Drafts looked up in a text, and when they are worth their time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stem_local.drafting import MATCHES, Gain, Match, PromptLookup

LONG, SHORT, LAST = MATCHES


def searched(tokens: list[int], most: int) -> tuple[list[int], Match | None]:
    """What `PromptLookup.propose` says, found by looking at every place of the text."""
    for match in MATCHES:
        length, count = match.length, min(most, match.drafted)
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:]:
                going_on = list(tokens)
                while len(going_on) < len(tokens) + count:
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
    assert PromptLookup().propose([1, 2, 6, 1, 7, 1], 3) == ([7], LAST)


def drafts_of(gain: Gain, accepted: int, cost: float, steps: int = 2000) -> float:
    """The share of steps that draft where so many tokens hold, at a cost in plain steps."""
    count = 0
    for step in range(steps):
        if step % 3 == 0 or not gain.expected(LONG):
            gain.plain(1.0)
        else:
            gain.drafted(LONG, accepted, cost)
            count += 1
    return count / steps


def test_drafts_go_on_where_they_pay() -> None:
    assert drafts_of(Gain(), accepted=1, cost=1.5) > 0.6
    assert drafts_of(Gain(), accepted=3, cost=3.5) > 0.6


def test_drafts_that_do_not_pay_become_rare_and_never_end() -> None:
    for accepted, cost in ((0, 1.3), (1, 2.5), (2, 3.5)):
        gain = Gain()
        drafts_of(gain, accepted, cost, 100)
        assert 0 < drafts_of(gain, accepted, cost) < 0.1


def test_drafts_come_back_when_the_text_changes() -> None:
    gain = Gain()
    drafts_of(gain, accepted=0, cost=1.3, steps=300)
    assert not gain.expected(LONG)
    assert drafts_of(gain, accepted=3, cost=1.3, steps=300) > 0.5


def test_matches_of_every_length_are_judged_on_their_own() -> None:
    gain = Gain()
    gain.plain(1.0)
    for _ in range(20):
        gain.drafted(SHORT, 0, 1.3)
    assert not gain.expected(SHORT)
    assert gain.expected(LONG)
    assert gain.expected(LAST)


def test_one_step_that_took_forever_changes_little() -> None:
    gain = Gain()
    gain.plain(1.0)
    gain.drafted(SHORT, 1, 1e6)
    assert gain.expected(SHORT)
    gain.plain(1e6)
    for _ in range(15):
        gain.drafted(SHORT, 0, 1.3 * 1.2)
    assert not gain.expected(SHORT)


def test_without_a_plain_step_drafts_are_taken_to_pay() -> None:
    gain = Gain()
    gain.drafted(LONG, 0, 5.0)
    assert gain.expected(LONG)
