"""The arena of candidates' records, and what is given back of the files that they come from."""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_runtime.arena import Arena
from stem_runtime.engine import Engine
from stem_runtime.kernels.cpu import layout
from stem_runtime.mapped import Span, can_give_back, span_of
from stem_runtime.sparsity.neurons import Neurons, mask_of
from stem_runtime.sparsity.plan import FfnPlan

from .looks import make_look
from .mapped_files import mapped
from .skipping import changed, neurons_of
from .sparse_steps import FFN, TOKENS, Models, plan_of, run

needs_madvise = pytest.mark.skipif(not can_give_back(), reason="the system takes no memory back")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


# -- the arena


def at(address: int, count: int) -> bytes:
    return ctypes.string_at(address, count)


def check(
    arena: Arena,
    records: list[np.ndarray],
    whose: list[np.ndarray],
    cuts: list[int],
    sets: np.ndarray,
) -> None:
    """Every record is where the tables say, and those of the sets side by side in the arena."""
    gates, rests = [], []
    for layer, rows in enumerate(records):
        cut, size = cuts[layer], rows.shape[1]
        for neuron, row in zip(np.flatnonzero(whose[layer] >= 0), rows, strict=True):
            gate = int(arena.gate_places[layer, neuron])
            rest = int(arena.places[layer, neuron]) + cut
            assert at(gate, cut) + at(rest, size - cut) == row.tobytes()
            inside = gate != row.ctypes.data
            assert inside == (rest != row.ctypes.data + cut) == sets[layer, neuron]
            if inside:
                gates.append(gate)
                rests.append(rest)
    wide = max(rows.shape[1] - cut for rows, cut in zip(records, cuts, strict=True))
    for found, each in ((gates, max(cuts)), (rests, wide)):
        assert sorted(found) == [min(found) + each * slot for slot in range(len(found))]
    assert arena.held == len(gates) == (sets & (np.array(whose) >= 0)).sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 70))
def test_an_arena_has_what_it_should_and_no_more(seed: int, layers: int, ffn: int) -> None:
    rng = np.random.default_rng(seed)
    cuts = rng.choice([64, 128], layers).tolist()
    alive = rng.random((layers, ffn)) < rng.choice([0.7, 1])
    whose = [np.where(some, np.cumsum(some) - 1, -1) for some in alive]
    records = [
        rng.integers(0, 256, (some.sum(), cut + 192), np.uint8)
        for some, cut in zip(alive, cuts, strict=True)
    ]
    arena = Arena(records, whose, cuts, -(-ffn // 32) * 32)
    sets = np.zeros((layers, ffn), np.bool_)
    for _ in range(8):
        layer = int(rng.integers(layers))
        sets[layer] = rng.random(ffn) < rng.choice([0, 0.2, 0.8, 1])
        arena.keep(layer, sets[layer])
        check(arena, records, whose, cuts, sets)
    assert arena.nbytes == (sets & alive).sum() * (max(cuts) + 192)
    arena.clear()
    check(arena, records, whose, cuts, np.zeros_like(sets))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes pages at once")
def test_a_smaller_set_gives_its_memory_back() -> None:
    """What lies behind the last slot is no longer in memory, and so reads as zeros."""
    records = np.full((1000, 4096), 7, np.uint8)
    arena = Arena([records], [np.arange(1000)], [1024], 1024)
    arena.keep(0, np.ones(1000, np.bool_))
    rests = int(arena.places[0].min(where=arena.places[0] > 0, initial=1 << 62)) + 1024
    assert set(at(rests, 1000 * 3072)) == {7}
    few = np.arange(1000) % 10 == 9
    arena.keep(0, few)
    assert arena.held == 100
    here = at(rests, 1000 * 3072)
    assert set(here[: 100 * 3072]) == {7}
    assert set(here[100 * 3072 + mmap.PAGESIZE :]) == {0}
    arena.keep(0, ~few)
    assert set(at(rests, 900 * 3072)) == {7}


# -- parts of files


def test_only_parts_of_read_only_maps_are_spans(tmp_path: Path) -> None:
    content = np.arange(5 * mmap.PAGESIZE, dtype=np.uint64).astype(np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    with (tmp_path / "file").open("rb") as file:
        data, other = (mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for _ in range(2))
    whole = np.frombuffer(data, np.uint8)
    part = whole[mmap.PAGESIZE + 5 : 2 * mmap.PAGESIZE + 9].view(np.uint8)
    span = span_of([part])
    assert span is not None
    assert (span.data, span.start) == (data, mmap.PAGESIZE)
    assert span.start + span.nbytes == 2 * mmap.PAGESIZE + 9
    span.give_back()
    np.testing.assert_array_equal(whole, content)
    Span(data, 1, 100).give_back()  # refused by the system, which is no reason to stop
    wide = span_of([part, whole[-3:].reshape(3, 1)])
    assert wide is not None
    assert wide.start + wide.nbytes == len(content)
    anonymous = np.frombuffer(mmap.mmap(-1, 4096), np.uint8)
    for arrays in (
        [content],
        [anonymous],
        [part, content[:3]],
        [part, np.frombuffer(other, np.uint8)],
        [part.copy()],
        [],
    ):
        assert span_of(arrays) is None


# -- what an engine keeps


class Given:
    """Counts what is given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, really: bool) -> None:
        self._count, give = 0, Span.give_back

        def note(span: Span) -> None:
            self._count += 1
            if really:
                give(span)

        monkeypatch.setattr(Span, "give_back", note)

    def count(self) -> int:
        """How often since the last time this was asked."""
        found, self._count = self._count, 0
        return found


def sets_of(layers: int, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([mask_of(rng.random(FFN) < share) for _ in range(layers)])


@dataclass(frozen=True, slots=True)
class Steps:
    """Of each token: what it gave back, the arena's size after it, how many candidates of a group
    [n_layers] it read by rows of gate; and all logits.
    """

    given: list[int]
    arena: list[int]
    rows: list[list[int]]
    logits: np.ndarray


def steps(engine: Engine, plan: FfnPlan, given_: Given | None = None) -> Steps:
    """A prompt, then tokens with sets, looks and layers that run dense."""
    engine.set_plan(plan)
    cache, layers = engine.new_cache(32), engine.config.n_layers
    cache.heat = np.zeros((layers, 128), np.float32)
    everyone = mask_of(np.ones(FFN, np.bool_))
    first, second = sets_of(layers, 0.3, 1), sets_of(layers, 0.6, 2)
    looking = first.copy()
    looking[1] = everyone
    changed_ = first.copy()
    changed_[1] = second[1]
    given_back, arena, rows, logits = [], [], [], [engine.prefill(cache, TOKENS[:4]).copy()]
    for candidates, dense in (
        (first, ""),
        (first, ""),
        (looking, ""),
        (changed_, ""),
        (changed_, "layer 0"),
        (changed_, ""),
        (changed_, "all"),
        (changed_, ""),
        (None, ""),
        (first, ""),
    ):
        cache.candidates = candidates
        cache.rest[:] = 0
        cache.rest[0] = 2 * (dense == "layer 0")
        logits.append(engine.decode(cache, 5, sparse=dense != "all").copy())
        given_back.append(0 if given_ is None else given_.count())
        arena.append(engine.arena_bytes)
        assert engine._work.ffn is not None
        rows.append(engine._work.ffn.words[:, layout.F_GATE_ROWS].tolist())
    return Steps(given_back, arena, rows, np.stack(logits))


@needs_madvise
def test_what_is_given_back_and_when(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(n_layers=3)
    neurons = mapped(neurons_of(model), tmp_path / "records")
    record = neurons.layers[0].stored.records.shape[1]  # type: ignore[union-attr]
    plan = plan_of(3, "gate", 0.05, candidates="resampled")
    first, second = sets_of(3, 0.3, 1), sets_of(3, 0.6, 2)
    drawn = first.copy()
    drawn[1] = second[1]
    few, more = (record * int(np.bitwise_count(sets).sum()) for sets in (first, drawn))
    with Engine(model, threads=2, neurons=neurons) as engine:
        given_ = Given(monkeypatch, really=True)
        seen = steps(engine, plan, given_)
        # all that opening the file touched; of three layers gates, records, gate and up, down
        assert seen.given == [1 + 12, 0, 0, 2, 0, 2, 0, 6, 0, 6]
        assert seen.arena == [few] * 3 + [more] * 6 + [few]
        # in an arena no gate is read by tiles, which would touch the file
        some, look = [32, 32, 32], [32, 16, 32]
        assert seen.rows == [some, some, look, *[some] * 5, [16, 16, 16], some]
        every = plan_of(3, "gate", 0.05)
        engine.set_plan(every)
        assert engine.arena_bytes == 0
        engine.decode(engine.new_cache(4), 5, sparse=True)
        after = run(engine, every).logits
        assert given_.count() == 0
        assert steps(engine, plan).arena == seen.arena
        cache = engine.new_cache(4)  # as when resampling has switched itself off
        engine.decode(cache, 5, sparse=True)
        assert engine.arena_bytes == 0
    monkeypatch.undo()
    Given(monkeypatch, really=False)
    with Engine(model, threads=2, neurons=neurons) as engine:
        np.testing.assert_array_equal(run(engine, every).logits, after)  # gates by tiles again
        np.testing.assert_array_equal(steps(engine, plan).logits, seen.logits)


def test_weights_that_are_in_no_file_stay_where_they_are(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(n_layers=3)
    plain = neurons_of(model)
    filed = mapped(plain, tmp_path / "records")
    plan = plan_of(3, "gate", 0.05, candidates="resampled")
    given_ = Given(monkeypatch, really=True)
    with Engine(model, threads=2, neurons=plain) as engine:
        seen = steps(engine, plan, given_)
        assert not any(seen.given + seen.arena)
        assert seen.rows == [[16] * 3] * 10
    mixed = Neurons((plain.layers[0], *filed.layers[1:]))
    with Engine(model, threads=2, neurons=mixed) as engine:
        seen = steps(engine, plan, given_)
    if can_give_back():
        assert seen.given == [1 + 8, 0, 0, 2, 0, 0, 0, 4, 0, 4]


@needs_madvise
def test_the_head_is_given_back_where_only_rows_of_its_copy_are_read(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models()
    look = make_look(model, 3.0)
    neurons, plan = neurons_of(model), plan_of(1, "gate", 0.05, candidates="resampled")
    given_ = Given(monkeypatch, really=True)
    with Engine(model, threads=1, neurons=neurons, head=look) as engine:
        engine.set_plan(plan)
        cache = engine.new_cache(16)
        cache.candidates = sets_of(1, 0.3, 1)
        engine.prefill(cache, TOKENS[:3])
        for looks, count in ((False, 0), (True, 1), (True, 0), (False, 0), (True, 1)):
            engine.decode(cache, 5, sparse=True, look=looks)
            assert given_.count() == count


@needs_madvise
def test_the_core_is_in_the_arena_too(models: Models, tmp_path: Path) -> None:
    model = models(n_layers=1)
    core = np.arange(FFN) % 9 == 0
    filed = mapped(changed(neurons_of(model), 0, core=mask_of(core)), tmp_path / "records")
    record = filed.layers[0].stored.records.shape[1]  # type: ignore[union-attr]
    with Engine(model, threads=1, neurons=filed) as engine:
        for on in (False, True):
            engine.set_plan(plan_of(1, "gate", 0.05, candidates="resampled", core=on))
            cache = engine.new_cache(4)
            cache.candidates = mask_of(np.arange(FFN) < 20)[None]
            engine.decode(cache, 5, sparse=True)
            assert engine.arena_bytes == record * ((core & on) | (np.arange(FFN) < 20)).sum()
