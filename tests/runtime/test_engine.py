"""The whole engine, every variant that runs here, against the oracle and against itself."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stem_runtime import workspace
from stem_runtime.config import ACTIVATIONS
from stem_runtime.engine import Cancelled, Engine
from stem_runtime.errors import ContextFullError, UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.kernels import available, oracle
from stem_runtime.quant import Kind
from stem_runtime.team import Team
from stem_runtime.threads import MAX_THREADS

from . import golden
from .tiny import MIXED, random_packed, tiny_config

VARIANTS = [name for name, lacks in available().items() if not lacks]
CHUNK = 32
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    # nothing is a multiple of what the kernels work in
    "odd": {"d_model": 72, "head_dim": 20, "n_heads": 3, "kv_heads": 1, "ffn_dim": 104},
    "seven": {"d_model": 40, "head_dim": 8, "n_heads": 14, "ffn_dim": 48, "tied_head": False},
    "wide": {"d_model": 96, "head_dim": 80, "n_heads": 3, "kv_heads": 3, "ffn_dim": 33},
    "window": {"layer_windows": (7, 40)},
    "qwen2": {"family": "qwen2", "d_model": 48, "ffn_dim": 80},
    "qwen3": {"family": "qwen3", "d_model": 100, "ffn_dim": 49},
    "gemma3": {"family": "gemma3", "layer_windows": (5, 0)},
    "minicpm": {"family": "minicpm", "d_model": 60, "head_dim": 20, "n_heads": 3, "kv_heads": 3},
}
SHAPES |= {f"act-{name}": {"n_layers": 1, "activation": name} for name in ACTIVATIONS}


@dataclass(frozen=True, slots=True)
class Case:
    """`logits` [n, vocab] are the oracle's after each of `tokens`."""

    model: PackedModel
    tokens: list[int]
    logits: NDArray[np.float32]


Cases = Callable[..., Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    made: dict[tuple[str, str], Case] = {}

    def case(name: str, kinds: Kind | dict[str, Kind] | None = None) -> Case:
        key = (name, str(kinds))
        if key not in made:
            values = {"vocab_size": 301, **SHAPES[name]}
            if values.get("activation") == "fatrelu":
                values["activation_param"] = 0.2
            config = tiny_config(**values)
            folder = tmp_path_factory.mktemp("model") / "packed"
            model = open_packed(random_packed(folder, config, 3, kinds or MIXED))
            rng = np.random.default_rng(len(name))
            tokens = rng.integers(0, config.vocab_size, 2 * CHUNK + 7).tolist()
            made[key] = Case(model, tokens, oracle.forward_packed(model, tokens))
        return made[key]

    return case


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_CHUNK", CHUNK)


@pytest.fixture
def tiny(cases: Cases) -> Iterator[Engine]:
    with Engine(cases("llama").model, threads=2) as engine:
        yield engine


def assert_near(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    """Equal but for activations so near to a half that they round to the other integer."""
    assert got.shape == want.shape
    spread = want.std()
    rows = np.abs(got - want).max(axis=-1) / spread
    assert rows.max() < 0.12, f"row {rows.argmax()} is off by {rows.max():.3f} of the spread"
    assert np.sqrt(np.mean((got - want) ** 2)) < (0.01 if len(got) > 8 else 0.03) * spread


def decode_all(engine: Engine, tokens: list[int]) -> NDArray[np.float32]:
    cache = engine.new_cache(len(tokens))
    return np.stack([engine.decode(cache, token).copy() for token in tokens])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHAPES)
def test_engine_equals_the_oracle(cases: Cases, name: str, variant: str) -> None:
    case = cases(name)
    tokens, want = case.tokens, case.logits
    with Engine(case.model, threads=2, kernels=variant) as engine:
        assert engine.kernels.name == variant
        assert_near(engine.logits(engine.new_cache(len(tokens)), tokens), want)
        assert_near(decode_all(engine, tokens), want)
        assert_near(engine.prefill(engine.new_cache(len(tokens)), tokens)[None], want[-1:])
        cache, done, rows = engine.new_cache(len(tokens)), 0, []
        for count in (1, 3, 1, 1, CHUNK + 5, 1, 17, 1, 1):
            part = tokens[done : done + count]
            done += count
            rows.append((engine.prefill(cache, part).copy(), want[done - 1]))
        assert cache.tokens == tokens[:done]
        assert_near(*map(np.stack, zip(*rows, strict=True)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["int4", "int4m", "int8"])
def test_every_matrix_of_one_kind(cases: Cases, kind: Kind, variant: str) -> None:
    case = cases("odd", kind)
    with Engine(case.model, threads=1, kernels=variant) as engine:
        assert_near(decode_all(engine, case.tokens), case.logits)
        cache = engine.new_cache(len(case.tokens))
        assert_near(engine.logits(cache, case.tokens), case.logits)


@pytest.mark.parametrize("name", ["llama", "odd", "seven", "window"])
def test_the_number_of_threads_does_not_show(cases: Cases, name: str) -> None:
    case = cases(name)
    for threads in (1, 2, 3, 5):
        with Engine(case.model, threads=threads) as engine:
            assert engine.threads == threads
            assert_near(decode_all(engine, case.tokens), case.logits)
            cache = engine.new_cache(len(case.tokens))
            assert_near(engine.logits(cache, case.tokens), case.logits)


def test_as_many_threads_as_there_may_be(cases: Cases) -> None:
    case = cases("llama")
    with Engine(case.model, threads=MAX_THREADS) as engine:
        assert_near(decode_all(engine, case.tokens[:2]), case.logits[:2])
    for threads in (0, MAX_THREADS + 1):
        with pytest.raises(UsageError, match=f"from 1 to {MAX_THREADS}"):
            Engine(case.model, threads=threads)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", golden.CASES)
def test_engine_chooses_as_transformers_do(name: str, variant: str, tmp_path: Path) -> None:
    case = golden.load(name)
    model = open_packed(golden.write_packed(case, tmp_path / "packed"))
    with Engine(model, threads=2, kernels=variant) as engine:
        for logits in (
            engine.logits(engine.new_cache(len(case.tokens)), case.tokens),
            decode_all(engine, case.tokens),
        ):
            best = np.sort(case.logits, axis=-1)
            clear = best[:, -1] - best[:, -2] > 0.3 * case.logits.std()
            assert clear.any()
            same = logits.argmax(-1) == case.logits.argmax(-1)
            assert same[clear].all()


def test_a_prefix_is_used_again(tiny: Engine, cases: Cases) -> None:
    case = cases("llama")
    tokens = case.tokens
    cache = tiny.new_cache(len(tokens))
    tiny.prefill(cache, tokens)
    for kept in (50, 33, 16, 15, 1, 0):
        cache.truncate(kept)
        other = [300 - t for t in tokens[kept : kept + 9]]
        if other:
            tiny.prefill(cache, other)
        cache.truncate(kept)
        assert cache.tokens == tokens[:kept]
        assert_near(tiny.prefill(cache, tokens[kept:])[None], case.logits[-1:])
        assert cache.tokens == tokens
    with pytest.raises(UsageError, match="holds 71 tokens, not 72"):
        cache.truncate(72)


def test_caches_grow_with_what_they_hold(tiny: Engine) -> None:
    cache = tiny.new_cache(250)
    assert (cache.length, cache.capacity, cache.room, cache.nbytes) == (0, 250, 256, 0)
    tiny.prefill(cache, [1, 2, 3, 4])
    assert cache.nbytes == 2 * 2 * 2 * 16 * 2 * 4  # k and v, layers, heads, head_dim, bytes, tokens
    few, many = tiny.weight_bytes_per_token(1), tiny.weight_bytes_per_token(200)
    assert many - few == 199 * cache.nbytes // 4
    for capacity in (0, 257):
        with pytest.raises(UsageError, match="from 1 to 256 tokens"):
            tiny.new_cache(capacity)


def test_a_full_context_is_an_error_and_changes_nothing(tiny: Engine, cases: Cases) -> None:
    case = cases("llama")
    cache = tiny.new_cache(40)
    tiny.prefill(cache, case.tokens[:39])
    for call in (tiny.prefill, tiny.logits):
        with pytest.raises(ContextFullError, match=r"2 more tokens do not fit.* 40 and 39 are"):
            call(cache, case.tokens[39:41])
    assert_near(tiny.decode(cache, case.tokens[39])[None], case.logits[39:40])
    with pytest.raises(ContextFullError):
        tiny.decode(cache, 1)
    assert cache.tokens == case.tokens[:40]


def test_bad_tokens_are_refused(tiny: Engine) -> None:
    cache = tiny.new_cache(8)
    for tokens in ([-1], [301], [5, 301, 5]):
        with pytest.raises(UsageError, match="from 0 to 300"):
            tiny.prefill(cache, tokens)
    with pytest.raises(UsageError, match="no tokens"):
        tiny.logits(cache, [])
    with pytest.raises(UsageError, match="from 0 to 300"):
        tiny.decode(cache, 301)
    assert cache.length == 0


def test_cancelling_keeps_whole_chunks(tiny: Engine, cases: Cases) -> None:
    case = cases("llama")
    cache, asked, read = tiny.new_cache(80), itertools.count(), list[int]()
    with pytest.raises(Cancelled):
        tiny.prefill(cache, case.tokens, cancel=lambda: next(asked) == 2, progress=read.append)
    assert cache.tokens == case.tokens[: 2 * CHUNK]
    assert read == [CHUNK, 2 * CHUNK]
    with pytest.raises(Cancelled):
        tiny.prefill(cache, [1], cancel=lambda: True)
    logits = tiny.prefill(cache, case.tokens[2 * CHUNK :], cancel=lambda: False)
    assert_near(logits[None], case.logits[-1:])
    tiny.prefill(cache, [1], progress=read.append)
    assert read == [CHUNK, 2 * CHUNK, 1]


def test_an_interrupt_stops_inside_of_a_chunk(
    tiny: Engine, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases("llama")
    run, calls = Team.run, itertools.count()

    def interrupted(team: Team, job: int) -> None:
        if next(calls) == 1:
            other = threading.Thread(target=tiny.interrupt)
            other.start()
            other.join()
        run(team, job)

    monkeypatch.setattr(Team, "run", interrupted)
    for call in (tiny.prefill, tiny.logits):
        cache, calls = tiny.new_cache(80), itertools.count()
        with pytest.raises(Cancelled):
            call(cache, case.tokens)
        assert cache.tokens == case.tokens[:CHUNK]
        assert_near(tiny.prefill(cache, case.tokens[CHUNK:])[None], case.logits[-1:])


def test_an_interrupt_between_chunks_counts(tiny: Engine, cases: Cases) -> None:
    case = cases("llama")
    cache = tiny.new_cache(80)
    with pytest.raises(Cancelled):
        tiny.prefill(cache, case.tokens, progress=lambda _read: tiny.interrupt())
    assert cache.tokens == case.tokens[:CHUNK]
    tiny.interrupt()  # nothing runs, so nothing is to stop
    assert_near(tiny.prefill(cache, case.tokens[CHUNK:])[None], case.logits[-1:])


@pytest.mark.parametrize("missed", ["post", "wake"])
def test_ctrl_c_between_waking_the_team_and_joining_it(
    tiny: Engine, cases: Cases, missed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, team = cases("llama"), tiny._team
    cache = tiny.new_cache(80)
    tiny.prefill(cache, case.tokens[:20])
    wake = team._wake_sleepers

    def stop(*_args: Any) -> None:
        monkeypatch.undo()
        if missed == "wake":
            wake()
        raise KeyboardInterrupt

    if missed == "post":
        monkeypatch.setitem(team._entries, "post", stop)
    else:
        monkeypatch.setattr(team, "_wake_sleepers", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny.decode(cache, 3)
    assert cache.tokens == case.tokens[:20]
    assert_near(tiny.prefill(cache, case.tokens[20:])[None], case.logits[-1:])
    assert_near(decode_all(tiny, case.tokens[:8]), case.logits[:8])


def test_ctrl_c_while_room_is_made_is_made_up_for(
    cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, zeros, left = cases("llama"), np.zeros, 0

    def stop(*args: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return zeros(*args, **more)

    for when in itertools.count(1):
        with Engine(case.model, threads=2) as engine:
            cache, left = engine.new_cache(80), when
            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(np, "zeros", stop)
                engine.prefill(cache, case.tokens)
            cache.truncate(0)
            logits = engine.logits(cache, case.tokens)
            assert_near(logits, case.logits)
            cache.truncate(len(case.tokens) - 1)
            assert_near(engine.decode(cache, case.tokens[-1])[None], case.logits[-1:])
        if left > 0:
            break
    assert when > 10


def test_a_closed_engine_says_so(cases: Cases) -> None:
    engine = Engine(cases("llama").model, threads=3)
    cache = engine.new_cache(8)
    workers = engine._team._workers
    engine.decode(cache, 1)
    engine.close()
    engine.close()
    assert not any(worker.is_alive() for worker in workers)
    for call in (engine.prefill, engine.logits):
        with pytest.raises(UsageError, match="closed"):
            call(cache, [1])


def test_an_engine_that_is_dropped_lets_its_threads_go(cases: Cases) -> None:
    engine = Engine(cases("llama").model, threads=3)
    workers = engine._team._workers
    engine.decode(engine.new_cache(8), 1)
    del engine
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)


def test_engines_side_by_side(cases: Cases) -> None:
    names = ("llama", "odd", "gemma3")
    engines = [Engine(cases(name).model, threads=2) for name in names]
    caches = [engine.new_cache(80) for engine in engines]
    for step in range(12):
        for engine, cache, name in zip(engines, caches, names, strict=True):
            case = cases(name)
            got = engine.decode(cache, case.tokens[step])
            assert_near(got[None], case.logits[step : step + 1])
    for engine in engines:
        engine.close()


def test_threads_of_a_program_share_an_engine(tiny: Engine, cases: Cases) -> None:
    case = cases("llama")
    failures: list[BaseException] = []

    def read(start: int) -> None:
        try:
            cache = tiny.new_cache(80)
            tiny.prefill(cache, case.tokens[:start])
            for at in range(start, len(case.tokens)):
                tiny.decode(cache, case.tokens[at])
            cache.truncate(start)
            assert_near(tiny.logits(cache, case.tokens[start:]), case.logits[start:])
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(5 * n + 2,)) for n in range(5)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not failures


@pytest.mark.timeout(240)
@pytest.mark.parametrize("spins", [0, 3, 6000])
def test_short_calls_never_wait_for_each_other(
    cases: Cases, spins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads than cores, workers that fall asleep at once, late or between jobs."""
    monkeypatch.setattr("stem_runtime.team._IDLE_SPINS", spins)
    case = cases("llama")
    with Engine(case.model, threads=5) as engine:
        cache = engine.new_cache(80)
        for turn in range(100):
            cache.truncate(0)
            last = engine.prefill(cache, case.tokens[: 2 + turn % 5])
            for at in range(cache.length, cache.length + turn % 4):
                last = engine.decode(cache, case.tokens[at])
            assert_near(last[None], case.logits[cache.length - 1 : cache.length])


def test_a_forked_process_is_told_to_load_again(tiny: Engine) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        return
    cache = tiny.new_cache(8)
    tiny.decode(cache, 1)
    answers = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        try:
            tiny.decode(cache, 2)
        except UsageError as error:
            answers.put(str(error))
        tiny.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert "forked" in answers.get()
    tiny.decode(cache, 2)
