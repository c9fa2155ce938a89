"""Finding messages: whatever people type is a query."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_local.history import Conversation, ConversationInfo, Entry, History


@pytest.fixture
def history() -> Iterator[History]:
    opened = History.in_memory()
    yield opened
    opened.close()


def save(history: History, text: str, title: str = "") -> int:
    """A conversation of one message, named so that its title is not what is found."""
    conversation = history.create({})
    history.rename(conversation, title or f"Chat {conversation}")
    return history.add(conversation, None, "user", text).id


def found(history: History, query: str) -> list[int]:
    return [hit.entry for hit in history.search(query)]


def test_all_words_must_occur_and_the_last_may_be_a_beginning(history: History) -> None:
    both = save(history, "The quick brown fox jumps")
    one = save(history, "A quick lunch")
    assert found(history, "quick") == [one, both]
    assert found(history, "quick fo") == [both]
    assert found(history, "fo quick") == []
    assert found(history, "QUICK") == [one, both]
    assert found(history, '"brown fox"') == [both]
    assert found(history, '"fox brown"') == []
    assert found(history, "quick OR lunch") == []
    assert found(history, "quick -lunch") == [one]


def test_accents_do_not_matter(history: History) -> None:
    entry = save(history, "Crème brûlée")
    assert found(history, "creme brulee") == [entry]
    assert found(history, "CRÈME") == [entry]


def test_a_hit_says_where_it_is(history: History) -> None:
    entry = save(history, "one\ntwo \x1b three\x02 four <b>", title="Numbers")
    (hit,) = history.search("three")
    assert (hit.conversation, hit.title, hit.entry, hit.role) == (1, "Numbers", entry, "user")
    assert hit.created == history.get(1).entries[0].created
    assert hit.snippet == "one two \x02three\x03 four <b>"


def test_scripts_without_spaces_and_signs_are_found_within_words(history: History) -> None:
    chinese = save(history, "我昨天在北京吃了烤鸭、很好吃。" * 20)
    thai = save(history, "สวัสดีครับผมชื่อ")
    code = save(history, "int *p = a->b; // 100% sure_thing")
    assert found(history, "烤鸭") == [chinese]
    assert found(history, "ครับ") == [thai]
    assert found(history, "好吃 烤鸭") == [chinese]
    assert found(history, "好吃 鸡") == []
    assert found(history, "->") == [code]
    assert found(history, "%") == [code]
    assert found(history, "* _") == [code]
    assert found(history, "_%") == []
    (hit,) = history.search("烤鸭")
    assert "吃了\x02烤鸭\x03、很" in hit.snippet
    assert hit.snippet.endswith("…")


def test_an_answer_is_found_once_it_is_finished_as_it_is_then(history: History) -> None:
    asked = save(history, "q")
    answer = history.add(1, asked, "assistant", "draft", state="streaming").id
    assert found(history, "draft") == []
    history.update(answer, content="drafted banana")
    history.update(answer, content="final banana", state="whole")
    assert found(history, "draft") == []
    assert found(history, "banana") == [answer]
    history.update(answer, content="final cherry")
    assert found(history, "banana") == []
    history.update(answer, state="streaming")
    assert found(history, "cherry") == []
    history.update(answer, state="stopped")
    assert found(history, "cherry") == [answer]


def test_titles_are_found_first(history: History) -> None:
    named = save(history, "nothing of the kind", title="Holiday in Rome")
    said = save(history, "Rome was not built in a day")
    assert found(history, "rome") == [named, said]
    assert found(history, "rome hol") == [named]
    assert history.search("rome")[0].snippet == "Holiday in \x02Rome\x03"
    both = save(history, "Rome again", title="Rome")
    assert found(history, "rome") == [named, both, said]


def test_closed_branches_are_searched_too(history: History) -> None:
    entry = save(history, "first try")
    history.add(1, None, "user", "second attempt")
    assert found(history, "try") == [entry]


def test_the_newest_are_kept_where_there_are_too_many(history: History) -> None:
    entries = tuple(Entry(n, n - 1 or None, "user", f"word {n}", 1.0) for n in range(1, 101))
    history.insert(Conversation(ConversationInfo(0, "Many", 1.0, 1.0, 100), {}, entries))
    hits = history.search("word", limit=3)
    assert [hit.snippet[-3:] for hit in hits] == ["100", " 99", " 98"]
    assert history.search("word", limit=0) == []


ODD = ["", "  ", '"', '""', '"""', '" "', "*", "^a", "a:b", "NEAR(a b)", "a AND", "(", "'", "\\"]
ODD += ["a\x00b", "\ud800", "content:x", "-", "a*b", "x" * 10_000, "a " * 1000, "{a}", "+ +", "a^2"]


@pytest.mark.parametrize("query", ODD)
def test_no_query_is_wrong(history: History, query: str) -> None:
    save(history, "a b x")
    assert isinstance(history.search(query), list)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_nothing_typed_breaks_the_search(query: str, content: str) -> None:
    history = History.in_memory()
    save(history, content)
    for hit in history.search(query):
        assert hit.snippet.count("\x02") == hit.snippet.count("\x03")
        assert hit.snippet.replace("\x02", "").replace("\x03", "").isprintable()
    history.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abcäßЖ9", min_size=1, max_size=6), min_size=1, max_size=8), st.data())
def test_every_word_finds_its_message(words: list[str], data: st.DataObject) -> None:
    history = History.in_memory()
    entry = save(history, " ".join(words))
    assert found(history, data.draw(st.sampled_from(words))) == [entry]
    first, last = words[0], words[-1]
    assert found(history, f"{first} {last[:1]}") == [entry]
    history.close()
