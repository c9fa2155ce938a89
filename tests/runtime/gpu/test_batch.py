"""Several texts decoded in one step, as each of them alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stem_runtime.errors import UsageError
from stem_runtime.gpu.cache import GpuCache
from stem_runtime.gpu.engine import GpuEngine
from stem_runtime.sparsity.plan import FfnPlan

from ..skipping import neurons_of
from ..sparse_steps import FFN, Models, plan_of
from .engines import Make, engines

TEXTS = [[5, 40, 3], [7, 1, 30, 22, 9], [8]]
"""Of different lengths; a batch reads the last token of each."""

GROUPS = -(-FFN // 32)
F32 = NDArray[np.float32]


@pytest.fixture
def make(device: str) -> Iterator[Make]:
    with engines(device) as make:
        yield make


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("batch"))


def begin(engine: GpuEngine, caches: Sequence[GpuCache], **known: Any) -> None:
    """Read all but the last token of each text."""
    for row, (cache, text) in enumerate(zip(caches, TEXTS, strict=True)):
        if len(text) > 1:
            engine.prefill(cache, text[:-1])
        cache.heat = np.zeros((1, 32 * GROUPS), np.float32)
        for name, values in known.items():
            setattr(cache, name, values[row])


def alone(engine: GpuEngine, **known: Any) -> tuple[F32, list[GpuCache], NDArray[np.int64]]:
    """Logits, caches and summed counts of the texts one by one."""
    caches, rows, counts = [engine.new_cache(12) for _ in TEXTS], [], []
    begin(engine, caches, **known)
    for cache, text in zip(caches, TEXTS, strict=True):
        assert cache.heat is not None
        cache.heat[:] = 0
        rows.append(engine.decode(cache, text[-1], sparse=True).copy())
        counts.append(engine.last_counts)
    return np.stack(rows), caches, np.sum(counts, axis=0)


PLANS = {
    "gate": plan_of(1, "gate", 0.5),
    "contribution": plan_of(1, "contribution", 0.0, 0.3),
    "bounds": plan_of(1, "gate", 0.3, floors=(20,), caps=(50,)),
    "attention": plan_of(1, "gate", 0.4, 0.1, attention=2.0),
    # the shortest text is dense still, and the two others have candidates, or all of them
    "resampled": plan_of(1, "gate", 0.3, candidates="resampled", sinks=1),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_texts_leave_out_their_own_neurons(plan: FfnPlan, models: Models, make: Make) -> None:
    model, known = models(vocab_size=48), {}
    if plan.candidates == "resampled":
        masks = np.random.default_rng(4).integers(0, 1 << 32, (2, 1, GROUPS), dtype=np.uint32)
        known["candidates"] = [masks[0], masks[1], masks[1]]
    neurons = neurons_of(model, sharpness=(0.4, 0.1))
    plain, engine = make(model, neurons=neurons), make(model, "triton", neurons=neurons)
    caches = engine.new_caches(3, 12)
    # prompts are read in torch: what is tested is a step
    begin(plain, caches, **known)
    compare(plain, engine, plan, caches, **known)
    if not known:
        return
    # another plan of the same kind, and candidates that are drawn anew, are no other step
    plan = dataclasses.replace(plan, gate_cutoffs=(0.1,), contribution_cutoffs=(0.05,))
    known["candidates"] = [np.bitwise_not(mask) for mask in known["candidates"]]
    for cache, mask in zip(caches, known["candidates"], strict=True):
        cache.truncate(cache.length - 1)
        cache.candidates = mask
    compare(plain, engine, plan, caches, **known)


def compare(
    plain: GpuEngine, engine: GpuEngine, plan: FfnPlan, caches: Sequence[GpuCache], **known: Any
) -> None:
    """Let one engine decode the last tokens together, and the other one each of them alone."""
    for one in (plain, engine):
        one.set_plan(plan)
    want, single, counts = alone(plain, **known)
    for cache in caches:
        assert cache.heat is not None
        cache.heat[:] = 0
    found = engine.decode_batch(caches, [text[-1] for text in TEXTS], sparse=True)
    np.testing.assert_allclose(found, want, atol=1e-3 * want.std())
    np.testing.assert_array_equal(engine.last_counts, counts)
    for one, other in zip(caches, single, strict=True):
        assert one.heat is not None
        assert other.heat is not None
        np.testing.assert_allclose(one.heat, other.heat, atol=1e-3 * other.heat.max())
        np.testing.assert_allclose(one.captured, other.captured, rtol=1e-3)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_batch_is_each_of_its_texts(models: Models, make: Make, backend: Any) -> None:
    model = models(family="gemma3", vocab_size=48, layer_windows=(4,))
    engine, plain = make(model, backend), make(model)
    single = [engine.new_cache(12) for _ in TEXTS]
    begin(plain, single)
    want = np.stack(
        [engine.decode(c, text[-1]).copy() for c, text in zip(single, TEXTS, strict=True)]
    )
    caches = engine.new_caches(4, 12)[1:]
    begin(plain, caches)
    order = [2, 0, 1]
    found = engine.decode_batch([caches[i] for i in order], [TEXTS[i][-1] for i in order])
    np.testing.assert_allclose(found, want[order], atol=1e-4 * want.std())
    assert [cache.tokens for cache in caches] == TEXTS
    # and one of them alone, whose keys are not the first ones of the memory
    caches[1].truncate(4)
    found = engine.decode_batch(caches[1:2], TEXTS[1][-1:])
    np.testing.assert_allclose(found, want[1:2], atol=1e-4 * want.std())


def test_what_is_no_batch_is_refused(models: Models, make: Make) -> None:
    engine = make(models())
    (one, two), other = engine.new_caches(2, 20), engine.new_cache(20)
    for caches, told in (
        ([], "1 to 8 caches and a token for each, not 0 and 1"),
        ([one, two], "not 2 and 1"),
        ([one, other], "by one new_caches"),
        ([one, one], "twice"),
        ([one] * 9, "1 to 8"),
    ):
        tokens = [1] * (1 if told.endswith("1") else len(caches))
        with pytest.raises(UsageError, match=told):
            engine.decode_batch(caches, tokens)
    assert one.length == two.length == 0
