from __future__ import annotations

import copy
import math
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stem_local
from stem_local import api, store
from stem_local.errors import NotInstalledError
from stem_local.generate_options import GenerateOptions, Options
from stem_local.generation import common_prefix
from stem_local.model import Model
from stem_local.sparsity import Choice
from stem_runtime import energy
from stem_runtime.chat_template import ChatTemplate
from stem_runtime.errors import ContextFullError, FormatError, StemError, UsageError
from stem_runtime.kernels import DeviceChoice, jit
from tests.local.fakes import CHUNK, FakeEngine, fake_model, random_logits
from tests.runtime.tiny import random_packed, tiny_config

Made = tuple[Model, FakeEngine]


@pytest.fixture
def hello(tmp_path: Path) -> Made:
    return fake_model(tmp_path)


@pytest.fixture
def varied(tmp_path: Path) -> Made:
    return fake_model(tmp_path, reply=None)


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys, stem_local; "
        "print([m for m in ('numpy', 'numba', 'click', 'jinja2', 'tokenizers', 'stem_runtime') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_public_name_is_there() -> None:
    for name in stem_local.__all__:
        assert getattr(stem_local, name) is not None
        assert name in dir(stem_local)
    with pytest.raises(AttributeError, match="generat"):
        _ = stem_local.generat


def test_a_completion_prints_as_its_text(hello: Made) -> None:
    completion = hello[0].generate("Hi", temperature=0)
    assert str(completion) == completion.text == "Hello there."
    assert completion.finish_reason == "stop"
    assert bytes(token - 3 for token in completion.tokens) == b"Hello there."
    assert completion.logprobs is None
    assert completion.dropped_turns == 0


def test_stats_add_up(hello: Made) -> None:
    model, engine = hello
    stats = model.generate("Hi", temperature=0, draft=False).stats
    assert (stats.model, stats.kernels, stats.threads) == ("tiny", "fake", 1)
    assert stats.reused_tokens == 0
    assert stats.completion_tokens == stats.decode_steps == len("Hello there.")
    assert engine.evaluated == stats.prompt_tokens + stats.decode_steps
    assert 0 < stats.prefill_seconds <= stats.time_to_first_token
    assert stats.bytes_per_token == 1000 + stats.prompt_tokens + stats.completion_tokens // 2
    as_dict = stats.to_dict()
    assert as_dict["tokens_per_second"] == pytest.approx(stats.decode_steps / stats.decode_seconds)
    assert as_dict["gb_per_second"] == pytest.approx(
        stats.bytes_per_token * stats.tokens_per_second / 1e9
    )
    assert "tok/s" in str(stats)


def test_energy_is_that_of_the_decode_steps(
    hello: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine = hello
    assert model.generate("Hi", temperature=0).stats.joules_per_token is None
    folder = tmp_path / "powercap" / "intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0")
    (folder / "max_energy_range_uj").write_text("1000000")
    counter = folder / "energy_uj"
    counter.write_text("0")

    def spend(microjoules: int) -> None:
        counter.write_text(str((int(counter.read_text()) + microjoules) % 1_000_000))

    monkeypatch.setattr(energy, "ROOT", folder.parent)
    engine.before_step = lambda _: spend(150_000)
    pieces = []
    for chunk in model.stream("Hi", temperature=0, draft=False):
        pieces.append(chunk)
        spend(70_000)  # what the caller does between the pieces is not the model's
    stats = pieces[-1].stats
    assert len(pieces) > 5
    assert stats is not None
    assert stats.joules_per_token == pytest.approx(0.15)
    assert stats.to_dict()["joules_per_token"] == stats.joules_per_token


def test_streaming_gives_the_same_answer_in_pieces(varied: Made) -> None:
    model, _ = varied
    whole = model.generate("Hi", max_tokens=20, seed=3)
    chunks = list(model.generate("Hi", max_tokens=20, seed=3, stream=True))
    assert len(chunks) > 10
    assert "".join(map(str, chunks)) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.tokens) == whole.tokens
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].stats is not None
    assert [*model.stream("Hi", max_tokens=20, seed=3)][-1].finish_reason == "length"


def test_same_seed_same_text(varied: Made) -> None:
    model, _ = varied
    first, again, other = (
        model.generate("Hi", seed=seed, max_tokens=24, temperature=1.5) for seed in (7, 7, 8)
    )
    assert first.tokens == again.tokens != other.tokens


def test_max_tokens(hello: Made) -> None:
    completion = hello[0].generate("Hi", max_tokens=5, temperature=0)
    assert (completion.text, completion.finish_reason) == ("Hello", "length")
    assert completion.stats.decode_steps == 4


def test_half_a_character_is_shown_whole_or_replaced(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path, reply="a€")
    assert model.generate("Hi", temperature=0).text == "a€"
    assert [c.text for c in model.stream("Hi", temperature=0)] == ["a", "€", ""]
    assert model.generate("Hi", temperature=0, max_tokens=3).text == "a\ufffd"


@settings(max_examples=40, deadline=None)
@given(
    reply=st.text("ab€\n", min_size=1, max_size=30),
    stops=st.lists(st.text("ab€\n", min_size=1, max_size=4), min_size=1, max_size=3),
    limit=st.integers(1, 60),
)
def test_stop_strings_never_leak(
    tmp_path_factory: pytest.TempPathFactory, reply: str, stops: list[str], limit: int
) -> None:
    model, _ = fake_model(tmp_path_factory.mktemp("stop"), reply=reply)
    chunks = list(model.stream("Hi", stop=stops, max_tokens=limit, temperature=0))
    said = reply.encode()[:limit].decode(errors="replace")
    cut = min((said.find(s) for s in stops if s in said), default=len(said))
    text = "".join(chunk.text for chunk in chunks)
    # of two stops that begin together the first to be complete counts, which cuts no later
    assert text == said[: len(text)]
    assert not any(s in text for s in stops)
    assert len(text) >= cut
    ended = any(s in said for s in stops) or limit > len(reply.encode())
    assert chunks[-1].finish_reason == ("stop" if ended else "length")


def test_logprobs_are_the_models_own(varied: Made) -> None:
    model, _ = varied
    prompt = model.tokenizer.encode("Hi")
    completion = model.generate(
        "Hi", raw=True, max_tokens=6, logprobs=3, temperature=2, repetition_penalty=1.5, seed=1
    )
    assert completion.logprobs is not None
    assert [entry.token for entry in completion.logprobs] == list(completion.tokens)
    context = list(prompt)
    for entry in completion.logprobs:
        logits = random_logits(context, model.config.vocab_size).astype(np.float64)
        exact = logits - np.log(np.exp(logits).sum())
        assert entry.logprob == pytest.approx(exact[entry.token], abs=1e-4)
        best = np.argsort(-exact)[:3]
        assert [token for token, _ in entry.top] == best.tolist()
        assert [value for _, value in entry.top] == pytest.approx(exact[best].tolist(), abs=1e-4)
        context.append(entry.token)


def test_cancel_before_and_during_the_prefill(hello: Made) -> None:
    model, engine = hello
    event = threading.Event()
    event.set()
    completion = model.generate("x" * 100, cancel=event)
    assert (completion.text, completion.finish_reason) == ("", "cancelled")
    assert engine.evaluated == 0

    completion = model.generate("x" * 100, cancel=lambda: engine.evaluated >= 3 * CHUNK)
    assert (completion.text, completion.finish_reason) == ("", "cancelled")
    assert engine.evaluated == 3 * CHUNK
    assert completion.stats.time_to_first_token == 0

    again = model.generate("x" * 100, temperature=0)
    assert again.text == "Hello there."
    assert again.stats.reused_tokens == 3 * CHUNK


def test_cancel_while_decoding_keeps_the_text(hello: Made) -> None:
    model, _ = hello
    event = threading.Event()
    text = ""
    for chunk in model.stream("Hi", temperature=0, cancel=event):
        text += chunk.text
        if text == "Hello":
            event.set()
    assert text == "Hello "
    assert chunk.finish_reason == "cancelled"
    assert chunk.stats is not None and chunk.stats.completion_tokens == 6


def test_the_cache_is_reused_by_longest_prefix(hello: Made) -> None:
    model, engine = hello
    first = model.generate("Say it now", temperature=0)
    engine.evaluated = 0
    again = model.generate("Say it then", temperature=0)
    same = len(model.tokenizer.encode("<|im_start|>user\nSay it ", special=True))
    assert again.stats.reused_tokens == same
    stats = again.stats
    read = stats.prompt_tokens + stats.decode_steps + stats.drafted_tokens
    assert engine.evaluated == read - same
    assert again.text == first.text
    assert engine.caches == 1


def test_reuse_changes_no_text(tmp_path: Path, varied: Made) -> None:
    used, _ = varied
    for prompt in ("One two three", "One two four", "One two", "Nine", "One two four five"):
        fresh, _ = fake_model(tmp_path / prompt, reply=None)
        warm = used.generate(prompt, seed=5, max_tokens=12)
        cold = fresh.generate(prompt, seed=5, max_tokens=12)
        assert warm.tokens == cold.tokens
    assert warm.stats.reused_tokens > cold.stats.reused_tokens == 0


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2), min_size=1))
def test_common_prefix(held: list[int], prompt: list[int]) -> None:
    count = common_prefix(held, prompt)
    assert count < len(prompt)
    assert held[:count] == prompt[:count]
    assert count in (len(held), len(prompt) - 1) or held[count] != prompt[count]


def test_a_prompt_that_does_not_fit_is_refused_with_numbers(tmp_path: Path) -> None:
    model, engine = fake_model(tmp_path, context=40)
    with pytest.raises(ContextFullError, match=r"tiny holds 40.*up to 256"):
        model.generate("x" * 40)
    with pytest.raises(ContextFullError, match="100 tokens long"):
        model.generate("x" * 100, raw=True)
    assert engine.evaluated == 0


def test_an_answer_that_fills_the_context_says_so(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path, context=26)
    prompt = len(model.tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n", special=True)) + 11
    completion = model.generate("Hi", temperature=0)
    assert completion.finish_reason == "context"
    assert completion.stats.completion_tokens == 26 - prompt
    assert model.generate("Hi", temperature=0, max_tokens=26 - prompt).finish_reason == "length"


def test_messages_system_and_raw(hello: Made) -> None:
    model, _ = hello
    counts = [
        model.generate(prompt, system=system, temperature=0).stats.prompt_tokens
        for prompt, system in (
            ("Hi", None),
            ([{"role": "user", "content": "Hi"}], None),
            ("Hi", "Be kind."),
            ([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], None),
        )
    ]
    assert counts[0] == counts[1] < counts[2] == counts[3]
    assert model.generate("Hi", raw=True, max_tokens=1).stats.prompt_tokens == 2


def test_control_tokens_spelled_in_a_message_stay_text(varied: Made) -> None:
    model, _ = varied
    plain = model.generate("Hi", max_tokens=1).stats.prompt_tokens
    spelled = model.generate("Hi<|im_end|>", max_tokens=1).stats.prompt_tokens
    assert spelled == plain + len("<|im_end|>")


@pytest.mark.parametrize(
    ("call", "about"),
    [
        (lambda m: m.generate(""), "empty"),
        (lambda m: m.generate("", raw=True), "empty"),
        (lambda m: m.generate([]), "non-empty list"),
        (lambda m: m.generate([{"role": "robot", "content": "Hi"}]), r"messages\[0\]"),
        (lambda m: m.generate(["Hi"]), r"messages\[0\]"),
        (lambda m: m.generate([{"role": "user", "content": "Hi"}], raw=True), "raw prompt"),
        (lambda m: m.generate("Hi", raw=True, system="Be kind."), "system"),
        (
            lambda m: m.generate([{"role": "system", "content": "A"}], system="B"),
            "system message already",
        ),
        (lambda m: m.generate("Hi", max_tokens=0), "max_tokens"),
        (lambda m: m.generate("Hi", max_tokens=True), "max_tokens"),
        (lambda m: m.generate("Hi", max_tokens=np.True_), "max_tokens"),  # type: ignore[call-overload]
        (lambda m: m.generate("Hi", sparsity=np.float32("nan")), "sparsity"),  # type: ignore[call-overload]
        (lambda m: m.chat(forgotten=-1), "forgotten"),
        (lambda m: m.chat(system=5), "system is a text, not 5"),  # type: ignore[arg-type]
        (copy.copy, "cannot be copied or pickled"),
        (pickle.dumps, "cannot be copied or pickled"),
        (lambda m: m.chat(forgotten=1.5), "forgotten"),  # type: ignore[arg-type]
        (lambda m: m.generate("Hi", temperature=-1), "temperature"),
        (lambda m: m.generate("Hi", seed=10**5000), "not a number of thousands of digits"),
        (lambda m: m.generate("Hi", stop=""), "stop"),
        (lambda m: m.generate("Hi", stop=["a", ""]), "stop"),
        (lambda m: m.generate("Hi", stop=1), "stop"),  # type: ignore[call-overload]
        (lambda m: m.generate("Hi", cancel=1), "cancel"),  # type: ignore[call-overload]
        (lambda m: m.generate(None), "list of mappings"),  # type: ignore[call-overload]
        (lambda m: m.chat().send(1), "text, not 1"),  # type: ignore[arg-type]
        (lambda m: m.generate("Hi", logprobs=-1), "logprobs"),
        (lambda m: m.generate("Hi", context_policy="shift"), "context_policy"),
        (lambda m: m.logits([]), "no tokens"),
        (lambda m: m.logits([1, 320]), "320"),
        (lambda m: m.logits([1.5]), "whole numbers"),  # type: ignore[list-item]
        (lambda m: m.detokenize([-1]), "-1"),
        (lambda m: m.tokenize(b"Hi"), "text can be tokenized"),  # type: ignore[arg-type]
        (lambda m: m.perplexity("Hi", window=1), "window"),
        (lambda m: m.perplexity("Hi", window=8.0), "window"),  # type: ignore[arg-type]
        (lambda m: m.perplexity("H", window=8), "too short"),
        (lambda m: m.perplexity("", window=8), "too short"),
    ],
)
def test_bad_arguments_are_refused(
    hello: Made, call: Callable[[Model], object], about: str
) -> None:
    with pytest.raises(UsageError, match=about):
        call(hello[0])


def test_unknown_options_are_type_errors(hello: Made) -> None:
    model, _ = hello
    wrong: Any = {"temprature": 1}
    for call in (
        lambda: model.generate("Hi", **wrong),
        lambda: model.stream("Hi", **wrong),
        lambda: model.chat(**wrong),
        lambda: model.chat().send("Hi", **wrong),
        lambda: api.generate("Hi", model=model, **wrong),
        lambda: api.stream("Hi", model=model, **wrong),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
            call()


def test_numbers_of_numpy_are_taken_as_pythons_own() -> None:
    given: dict[str, Any] = {
        "max_tokens": np.int64(3),
        "temperature": np.float32(0.5),
        "top_k": np.uint8(4),
        "top_p": np.float16(0.5),
        "min_p": np.float64(0.25),
        "repetition_penalty": np.int32(1),
        "seed": np.uint64(2**64 - 1),
        "logprobs": np.array(2),
        "sparsity": np.float32(0.5),
        "quality": np.int64(0),
    }
    assert repr(Options.parse(given, "generate")) == repr(
        Options.parse({name: value.item() for name, value in given.items()}, "generate")
    )


def test_every_option_reaches_the_generation() -> None:
    given = {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.6,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 9,
        "stop": "a",
        "logprobs": 2,
        "cancel": lambda: False,
        "context_policy": "drop_oldest",
        "sparsity": "off",
        "quality": 0.05,
        "draft": False,
    }
    assert set(given) == set(get_type_hints(GenerateOptions))
    options = Options.parse(given, "generate")
    sampling = options.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 4, 0.6)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.2, 9)
    assert (options.max_tokens, options.stop, options.logprobs) == (3, ("a",), 2)
    assert options.cancelled is given["cancel"]
    assert options.context_policy == "drop_oldest"
    assert (options.sparsity, options.quality, options.draft) == ("off", 0.05, False)


def test_a_model_without_a_template_gets_a_plain_one(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path)
    (model.packed.folder / "chat_template.jinja").unlink()
    # the tiny tokenizer has ChatML's control tokens, and so the model is taken to know ChatML
    assert model.generate("Hi", temperature=0).text == "Hello there."


def test_the_stops_of_a_plain_template_end_the_answer(hello: Made) -> None:
    model, _ = hello
    model.template = ChatTemplate(model.template.source, stop=(" there",))
    assert model.generate("Hi", temperature=0).text == "Hello"
    assert model.generate("Hi", temperature=0, stop="ll").text == "He"
    assert model.chat(temperature=0).send("Hi").text == "Hello"


def test_a_template_that_is_not_text_is_refused(tmp_path: Path) -> None:
    model, _ = fake_model(tmp_path)
    (model.packed.folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=r"jinja is not UTF-8"):
        model.generate("Hi")


def test_tokens_there_and_back(hello: Made) -> None:
    model, _ = hello
    assert model.tokenize("a€") == [3 + byte for byte in "a€".encode()]
    assert model.tokenize("<|im_end|>", special=True) == [2]
    assert model.detokenize(model.tokenize("a€ <|im_end|>")) == "a€ <|im_end|>"


def test_logits_are_those_after_every_token(varied: Made) -> None:
    model, _ = varied
    ids = model.tokenize("Some text.")
    logits = model.logits(ids)
    assert logits.shape == (len(ids), model.config.vocab_size)
    assert logits.dtype == np.float32
    for place in range(len(ids)):
        exact = random_logits(ids[: place + 1], model.config.vocab_size)
        np.testing.assert_array_equal(logits[place], exact)
    np.testing.assert_array_equal(model.logits(np.array(ids, np.uint64)), logits)
    with pytest.raises(ContextFullError, match="201 tokens"):
        model.logits([5] * 201)


def test_perplexity_by_hand(varied: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = varied
    text = "The quick brown fox jumps."
    ids = model.tokenize(text)
    monkeypatch.setattr("stem_local.scoring._BLOCK_BYTES", 3 * 4 * model.config.vocab_size)
    loss, scored = 0.0, 0
    for start in range(0, len(ids), 8):
        window = ids[start : start + 8]
        for place in range(1, len(window)):
            logits = random_logits(window[:place], model.config.vocab_size).astype(np.float64)
            loss += float(np.log(np.exp(logits).sum()) - logits[window[place]])
            scored += 1
    assert model.perplexity(text, window=8) == pytest.approx(math.exp(loss / scored), rel=1e-5)


def test_perplexity_starts_windows_with_the_begin_token(varied: Made) -> None:
    model, _ = varied
    model.tokenizer.bos, model.tokenizer.add_bos = 0, True
    ids = model.tokenize("abcd")
    loss = 0.0
    for window in (ids[:2], ids[2:]):
        for place, target in enumerate(window):
            context = [0, *window[:place]]
            logits = random_logits(context, model.config.vocab_size).astype(np.float64)
            loss += float(np.log(np.exp(logits).sum()) - logits[target])
    assert model.perplexity("abcd", window=3) == pytest.approx(math.exp(loss / 4), rel=1e-5)
    assert model.perplexity("a", window=3) > 1


def test_what_a_model_is(hello: Made) -> None:
    info = hello[0].info
    assert (info.name, info.family, info.quant, info.kernels) == ("tiny", "llama", "random", "fake")
    assert (info.context, info.context_length, info.vocab_size) == (200, 256, 320)
    assert info.to_dict()["folder"] == str(info.folder)
    assert "tiny" in repr(hello[0])


def test_a_closed_model_says_so(hello: Made) -> None:
    model, engine = hello
    running = model.stream("Hi", temperature=0)
    next(running)
    with model as same:
        assert same is model
    assert engine.closed and model.closed
    for call in (
        lambda: next(running),
        lambda: model.generate("Hi"),
        lambda: model.logits([1]),
        lambda: model.info,
    ):
        with pytest.raises(UsageError, match="tiny is closed; load it again"):
            call()
    model.close()
    assert "closed" in repr(model)


def test_streams_may_be_interleaved_and_abandoned(varied: Made) -> None:
    model, _ = varied
    alone = [model.generate(p, seed=1, max_tokens=10).text for p in ("One", "Two")]
    streams = [model.stream(p, seed=1, max_tokens=10) for p in ("One", "Two")]
    texts = ["", ""]
    for pair in zip(*streams, strict=True):
        texts = [text + chunk.text for text, chunk in zip(texts, pair, strict=True)]
    assert texts == alone
    next(model.stream("Three", seed=1))
    assert model.generate("One", seed=1, max_tokens=10).text == alone[0]


def test_threads_take_turns(varied: Made) -> None:
    model, engine = varied
    busy = threading.Lock()

    def alone(cache: object) -> None:
        del cache
        assert busy.acquire(blocking=False), "two threads were in the engine at once"
        busy.release()

    engine.before_step = alone
    prompts = [f"Prompt {i}" for i in range(6)]
    expected = [model.generate(p, seed=2, max_tokens=15).text for p in prompts]
    found: dict[str, str] = {}

    def work(prompt: str) -> None:
        found[prompt] = model.generate(prompt, seed=2, max_tokens=15).text

    threads = [threading.Thread(target=work, args=(p,)) for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[p] for p in prompts] == expected


def test_the_shared_model_is_loaded_once(hello: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = hello
    loads: list[object] = []

    def load(folder: object) -> Model:
        loads.append(folder)
        return model

    names = {None: Path("a"), "first": Path("a"), "second": Path("b")}
    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(api, "_loaded", {})
    monkeypatch.setattr(store, "resolve", names.__getitem__)
    threads = [threading.Thread(target=lambda: api.generate("Hi", temperature=0)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert next(api.stream("Hi", model="first", temperature=0)).text == "H"
    assert loads == [Path("a")]
    api.generate("Hi", model="second", temperature=0)
    assert loads == [Path("a"), Path("b")]
    assert api.generate("Hi", model=model, temperature=0).text == "Hello there."
    model.close()
    with pytest.raises(UsageError, match="closed"):
        api.generate("Hi", model=model)
    with pytest.raises(UsageError, match="closed"):
        api.generate("Hi")
    assert loads == [Path("a"), Path("b"), Path("a")]


def test_a_forked_process_loads_its_own(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        return
    monkeypatch.setattr(api, "_loaded", {})
    answers = multiprocessing.get_context("fork").SimpleQueue()

    def answer() -> None:
        with pytest.raises(UsageError, match="before the process was forked"):
            shared.generate("Hi")
        shared.close()
        with api._shared(tiny) as model:
            answers.put(model.generate("Hi", temperature=0, max_tokens=4).text)

    shared = api._shared(tiny)
    # as another thread may that does not come along
    with api._loading, shared.engine_lock, shared.engine._lock, shared.tokenizer._lock:
        process = multiprocessing.get_context("fork").Process(target=answer, daemon=True)
        process.start()
        process.join(60)
    assert process.exitcode == 0
    assert shared.generate("Hi", temperature=0, max_tokens=4).text == answers.get()
    shared.close()


def test_without_the_default_model_a_script_is_told_how_to_get_it() -> None:
    with pytest.raises(NotInstalledError, match="stem-local pull smollm2-135m"):
        stem_local.generate("Hi")
    assert store.installed() == []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_packed(tmp_path_factory.mktemp("api") / "tiny", tiny_config())


@pytest.mark.parametrize("policy", ["stop", "drop_oldest"])
def test_prompts_of_no_tokens_or_as_many_as_the_context(tmp_path: Path, policy: Any) -> None:
    folder = random_packed(tmp_path / "tiny", tiny_config())
    for rendered, error in (("", "has nothing in it"), ("ab", "2 tokens long")):
        (folder / "chat_template.jinja").write_text(f"{{{{ '{rendered}' }}}}")
        with stem_local.load(folder, context=2) as model, pytest.raises(StemError, match=error):
            model.generate("Hi", context_policy=policy)


def test_loading_checks_the_context(tiny: Path) -> None:
    wrong: Any
    for wrong in (1, 257, 64.0, "64"):
        with pytest.raises(UsageError, match="context must be a whole number from 2 to 256"):
            stem_local.load(tiny, context=wrong)
    with pytest.raises(UsageError, match=r"threads must be a whole number from 1 to 64, not 1\.5"):
        stem_local.load(tiny, threads=1.5)  # type: ignore[arg-type]
    with stem_local.load(tiny) as model:
        assert model.context == 256
    with stem_local.load(tiny, context=64, threads=1, kernels="portable") as model:
        assert (model.context, model.info.threads, model.info.kernels) == (64, 1, "portable")


def test_a_model_keeps_what_it_was_told_to(tiny: Path) -> None:
    for asked, kept in ((None, "fp16"), ("fp16", "fp16"), ("int8", "int8")):
        with stem_local.load(tiny, threads=1, kv_cache=asked) as model:  # type: ignore[arg-type]
            model.equip(Choice(True, None, "an engine that is built anew"))
            assert model.borrow_cache().kind == model.info.kv_cache == kept
    with pytest.raises(UsageError, match="kv_cache is fp16 or int8, not 'q8'"):
        stem_local.load(tiny, kv_cache="q8")  # type: ignore[arg-type]


def test_a_card_is_asked_for_no_int8_cache(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = DeviceChoice("cuda", "triton", "a test")
    monkeypatch.setattr(api, "choose_device", lambda *_: card)
    with pytest.raises(UsageError, match='runs on cuda; load it with device="cpu"'):
        stem_local.load(tiny, kv_cache="int8")


def test_a_compilation_is_told_to_a_terminal(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[str] = []

    def load_unit(module: str, variant: str, notify: Callable[[str], None]) -> Any:
        notify("Compiling")
        return jit.load_unit(module, variant)

    monkeypatch.setattr("stem_runtime.engine.load_unit", load_unit)
    stem_local.load(tiny, notify=compiled.append).close()
    stem_local.load(tiny).close()
    assert (compiled, capsys.readouterr().err) == (["Compiling"], "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    stem_local.load(tiny).close()
    assert capsys.readouterr().err == "Compiling\n"


def test_a_real_engine_gives_the_same_text_from_a_used_cache(tiny: Path) -> None:
    prompts = ("One two three", "One two four", "One two", "Nine", "One two four five")
    with stem_local.load(tiny, threads=2) as used:
        for prompt in prompts:
            warm = used.generate(prompt, seed=5, max_tokens=24)
            with stem_local.load(tiny, threads=2) as fresh:
                cold = fresh.generate(prompt, seed=5, max_tokens=24)
            assert warm.tokens == cold.tokens
        assert warm.stats.reused_tokens > cold.stats.reused_tokens == 0


def test_a_real_engine_agrees_with_itself(tiny: Path) -> None:
    with stem_local.load(tiny, threads=1) as model:
        ids = model.tokenize("The quick brown fox jumps over the lazy dog.")
        logits = model.logits(ids).astype(np.float64)
        exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -exact[np.arange(len(ids) - 1), ids[1:]].mean()
        assert model.perplexity(model.detokenize(ids), window=64) == pytest.approx(math.exp(loss))
        text = model.generate(
            "The quick", raw=True, max_tokens=8, logprobs=1, temperature=0, repetition_penalty=1
        )
        assert text.logprobs is not None
        assert all(entry.token == entry.top[0][0] for entry in text.logprobs)


def test_a_script_may_end_without_closing(tiny: Path) -> None:
    code = f"import stem_local; print(stem_local.generate('Hi', model={str(tiny)!r}, max_tokens=3))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.real_model
def test_the_real_model_answers(real_model: Path) -> None:
    with stem_local.load(real_model) as model:
        completion = model.generate("Name the capital of Italy.", temperature=0, logprobs=1)
        assert "Rome" in completion.text
        assert completion.finish_reason == "stop"
        again = model.generate("Name the capital of Italy.", temperature=0, logprobs=1)
        assert again.logprobs == completion.logprobs
        assert again.stats.reused_tokens == again.stats.prompt_tokens - 1


@pytest.mark.real_model
def test_the_real_model_remembers_a_conversation(real_model: Path) -> None:
    with stem_local.load(real_model) as model:
        chat = model.chat(temperature=0, max_tokens=40)
        first = chat.send("What is the capital of Germany?")
        second = chat.send("And of Italy?")
        assert "Berlin" in first.text
        assert "Rome" in second.text
        assert second.stats.reused_tokens >= first.stats.prompt_tokens


@pytest.mark.real_model
def test_the_real_model_tells_english_from_noise(real_model: Path) -> None:
    with stem_local.load(real_model) as model:
        english = "The house stood at the end of the road, and nobody had lived there for years."
        noise = "road The nobody years had for of end at lived house there and the stood the."
        assert model.perplexity(english) < model.perplexity(noise) / 3
