"""Answers are the same with and without drafts, and their figures say what drafts did."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pytest

import stem_local
from stem_local.choosing import choosing
from stem_local.completion import Completion, collect
from stem_local.decoding import Decoding, total_cost
from stem_local.drafting import Gain
from stem_local.generate_options import Options
from stem_local.generation import Stream
from stem_local.model import Model
from stem_runtime.errors import UsageError
from stem_runtime.kernels import DeviceChoice

from ..runtime.tiny import random_packed, tiny_config
from .fakes import END, FakeCache, fake_model
from .profiles import add_ffn_profile

PROMPT = 12 * "abc"
"""What a tiny model says to it repeats itself at times, so that drafts hold and do not hold."""

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 150}
SAMPLED: dict[str, Any] = {"temperature": 0.3, "top_k": 3, "seed": 1, "max_tokens": 150}


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft wherever there is something to draft, however long steps take in a test."""
    monkeypatch.setattr(Gain, "count", lambda _gain, _match, most: most)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a tied head would say the same token for ever
    config = tiny_config(activation="relu", tied_head=False)
    folder = random_packed(tmp_path_factory.mktemp("m") / "tiny", config)
    add_ffn_profile(folder, head={"margin": 2.0})
    return folder


@pytest.fixture(scope="module")
def model(packed: Path) -> Iterator[Model]:
    with stem_local.load(packed, threads=2) as loaded:
        yield loaded


def held(model: Model) -> list[int]:
    """The tokens that the cache was left with."""
    cache = model.borrow_cache()
    model.give_back_cache(cache)
    return list(cache.tokens)


def both(model: Model, prompt: str = PROMPT, **options: Any) -> tuple[Completion, Completion]:
    """An answer with drafts and without, which are the same and leave the same behind."""
    found, caches = [], []
    model.generate(prompt, max_tokens=1)
    for draft in (True, False):
        found.append(model.generate(prompt, draft=draft, **options))
        caches.append(held(model))
    drafted, plain = found
    assert drafted.tokens == plain.tokens
    assert (drafted.text, drafted.finish_reason) == (plain.text, plain.finish_reason)
    assert drafted.logprobs == plain.logprobs
    assert caches[0] == caches[1]
    stats = drafted.stats
    assert stats.decode_steps + stats.accepted_tokens == plain.stats.decode_steps
    assert (plain.stats.drafted_tokens, plain.stats.accepted_tokens) == (0, 0)
    return drafted, plain


@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        GREEDY | {"sparsity": "off"},
        GREEDY | {"logprobs": 3},
        GREEDY | {"repetition_penalty": 1.05},
        SAMPLED,
        SAMPLED | {"logprobs": 0},
        SAMPLED | {"repetition_penalty": 1.02, "sparsity": "off"},
    ],
    ids=str,
)
def test_drafts_change_no_token(model: Model, options: dict[str, Any]) -> None:
    drafted, plain = both(model, **options)
    stats = drafted.stats
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    if drafted.logprobs is not None:
        assert tuple(entry.token for entry in drafted.logprobs) == plain.tokens


def test_with_an_int8_cache(packed: Path) -> None:
    with stem_local.load(packed, threads=2, kv_cache="int8") as model:
        assert both(model, **GREEDY)[0].stats.accepted_tokens > 0


def test_no_draft_goes_beyond_the_tokens_that_were_asked_for(model: Model) -> None:
    whole = model.generate(PROMPT, **GREEDY)
    for most in range(1, 30):
        drafted, _ = both(model, **GREEDY | {"max_tokens": most})
        assert drafted.tokens == whole.tokens[:most]
        assert drafted.finish_reason == "length"


def test_a_step_reads_no_token_that_cannot_be_used(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path)
    question = {"role": "user", "content": "Hi"}
    messages = [question, {"role": "assistant", "content": "Hello there."}, question]
    for most in range(1, 13):
        stats = model.generate(messages, temperature=0, max_tokens=most).stats
        # the first token comes with the prompt; a step gives four, the last one what is left
        assert stats.decode_steps == -(-(most - 1) // 4)
        assert stats.drafted_tokens == stats.accepted_tokens == most - 1 - stats.decode_steps


def test_no_draft_goes_beyond_the_context(packed: Path) -> None:
    for context in range(60, 76):
        with stem_local.load(packed, threads=1, context=context) as small:
            drafted, _ = both(small, raw=True, **GREEDY)
            assert drafted.finish_reason == "context"
            assert len(drafted.tokens) == context - len(PROMPT)


def test_the_end_of_a_turn_ends_a_draft(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path, "Hello.")
    chat = model.chat(temperature=0)
    chat.send("Hi", draft=False)
    stats = chat.send("Hi").stats
    # all of the answer stood in the conversation, and an end behind it that is not read
    assert chat.messages[-1]["content"] == "Hello."
    assert (stats.decode_steps, stats.accepted_tokens, stats.drafted_tokens) == (2, 4, 4)
    assert held(model)[-1] != END


@pytest.mark.parametrize("stop", ["ab", "bab", "cabc", "abcabcx"])
def test_stop_strings_end_an_answer_within_a_draft(tmp_path: Path, stop: str) -> None:
    model, _ = fake_model(tmp_path, "Say abcabcabcabcabcx.")
    drafted, plain = both(model, "Hi", temperature=0, stop=stop)
    assert drafted.finish_reason == "stop"
    assert stop not in plain.text
    assert both(model, "Hi", temperature=0)[0].stats.accepted_tokens > 0


def pieces(stream: Stream, count: int) -> list[tuple[int, ...]]:
    return [chunk.tokens for chunk in islice(stream, count)]


def test_answers_that_take_turns_keep_apart(model: Model) -> None:
    alone = [model.generate(prompt, **GREEDY) for prompt in (PROMPT, "xyxyxyxy")]
    streams = [model.stream(prompt, **GREEDY) for prompt in (PROMPT, "xyxyxyxy")]
    parts = list(zip_longest(*streams))
    for index, expected in enumerate(alone):
        found = [part[index] for part in parts if part[index] is not None]
        assert tuple(token for chunk in found for token in chunk.tokens) == expected.tokens
        stats = found[-1].stats
        assert stats is not None
        assert stats.accepted_tokens > 0


@pytest.mark.parametrize("leave", [Stream.stop, Stream.close])
def test_an_answer_that_is_left_leaves_the_cache_as_without_drafts(
    model: Model, leave: Any
) -> None:
    for count in range(1, 25):
        left = []
        for draft in (True, False):
            stream = model.stream(PROMPT, draft=draft, **GREEDY)
            said = pieces(stream, count)
            leave(stream)
            said += pieces(stream, 5)
            left.append((said, held(model)))
        assert left[0] == left[1]


def test_the_next_prompt_reuses_the_same(tmp_path: Path) -> None:
    chats = []
    for draft in (True, False):
        model, _ = fake_model(tmp_path / str(draft), "Hello hello hello.")
        chat = model.chat(temperature=0, draft=draft)
        turns = [chat.send("Hi", max_tokens=most).stats for most in (99, 7, 8, 9, 99)]
        assert draft == all(stats.accepted_tokens > 0 for stats in turns)
        chats.append(([stats.reused_tokens for stats in turns], chat.messages, held(model)))
    assert chats[0] == chats[1]


def test_steering_ends_drafts_and_begins_them_again(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for name in ("step", "step_ahead"):
        real = getattr(Decoding, name)

        def made(self: Decoding, *args: Any, name: str = name, real: Any = real) -> object:
            steps.append(name if self.can_draft else "sparse " + name)
            return real(self, *args)

        monkeypatch.setattr(Decoding, name, made)

    def steered(draft: bool, first: int) -> tuple[list[tuple[int, ...]], Completion]:
        model.generate(PROMPT, max_tokens=1)
        steps.clear()
        stream = model.stream(PROMPT, draft=draft, **GREEDY | {"max_tokens": 100})
        said = pieces(stream, first)
        stream.steer(0.5)
        said += pieces(stream, 10)
        stream.steer("off")
        return said, collect(stream)

    for count in range(30, 50):
        said, rest = steered(False, count)
        assert set(steps) == {"step", "sparse step"}
        sparse = steps.count("sparse step")
        same, drafted = steered(True, count)
        assert (same, drafted.tokens) == (said, rest.tokens)
        first, last = steps.index("sparse step"), len(steps) - steps[::-1].index("sparse step")
        assert steps[first:last] == sparse * ["sparse step"]
        assert "step_ahead" in steps[:first]
        assert "step_ahead" in steps[last:]
        stats = drafted.stats
        assert stats.decode_steps + stats.accepted_tokens == rest.stats.decode_steps
        assert stats.bytes_per_token < rest.stats.bytes_per_token
        assert rest.stats.active_parameters < stats.active_parameters < stats.total_parameters


def test_several_ways_cost_their_mean_by_the_tokens_they_read_and_gave(model: Model) -> None:
    cache = model.engine.new_cache(100)
    dense = Decoding(model, model.choose("off"), cache)
    dense.prefill([5, 6, 7])
    dense.step_ahead([8, 9, 10, 11])
    dense.accepted += 2
    sparse = Decoding(model, model.choose(0.5), cache, cache.length)
    for token in (12, 13):
        sparse.step(token)
    first, second, total = dense.cost(9), sparse.cost(9), total_cost([dense, sparse], 9)
    assert total.head_rows == pytest.approx((4 * first.head_rows + 2 * second.head_rows) / 6)
    nbytes = 3 * first.bytes_per_token + 2 * second.bytes_per_token
    assert total.bytes_per_token == pytest.approx(nbytes / 5, abs=1)


def test_what_a_draft_costs_is_shared_by_the_tokens_it_gives(model: Model) -> None:
    drafted, plain = (answer.stats for answer in both(model, sparsity="off", **GREEDY))
    assert drafted.head_rows == plain.head_rows == 320
    assert drafted.active_parameters == plain.active_parameters
    assert drafted.layer_active_fraction == plain.layer_active_fraction
    tokens = drafted.decode_steps + drafted.accepted_tokens
    assert drafted.tokens_per_step == pytest.approx(tokens / drafted.decode_steps)
    bytes_of_steps = plain.bytes_per_token * drafted.decode_steps
    assert drafted.bytes_per_token == pytest.approx(bytes_of_steps / tokens, abs=1)
    assert drafted.tokens_per_second == pytest.approx(tokens / drafted.decode_seconds)


def test_rows_of_the_head_are_counted_for_every_token_that_was_read(model: Model) -> None:
    stats = both(model, **GREEDY)[0].stats
    assert 0 < stats.head_rows < 320
    engine, read = model.engine, stats.decode_steps + stats.drafted_tokens
    context = stats.prompt_tokens + stats.completion_tokens // 2
    of_a_step = stats.head_rows * read / stats.decode_steps
    nbytes = engine.weight_bytes_per_token(context, of_a_step) * stats.decode_steps
    tokens = stats.decode_steps + stats.accepted_tokens
    assert stats.bytes_per_token == pytest.approx(nbytes / tokens, abs=1)


def test_figures_of_an_answer_under_way_are_of_all_tokens_that_were_read(model: Model) -> None:
    stream = model.stream(PROMPT, sparsity="off", **GREEDY)
    pieces(stream, 30)
    live = stream.live()
    assert live.active_parameters == live.total_parameters - 319 * 64
    assert live.layer_active_fraction == (1.0, 1.0)
    stream.close()


def test_cards_do_not_draft(tmp_path: Path) -> None:
    model, engine = fake_model(tmp_path)
    cache = FakeCache(99)
    options = Options.parse({}, "generate")
    names = []
    for backend in ("cpu", "torch"):
        device = DeviceChoice("x", backend, "a test")
        placed = Model(model.packed, engine, model.tokenizer, 99, device=device)  # type: ignore[arg-type]
        names.append(type(choosing(placed, cache, options, 99)).__name__)  # type: ignore[arg-type]
    assert names == ["Drafting", "FromLogits"]


@pytest.mark.parametrize("value", ["yes", 1, 0, None])
def test_the_switch_is_on_or_off(model: Model, value: Any) -> None:
    with pytest.raises(UsageError, match="draft is True or False"):
        model.generate("Hi", draft=value)
