"""The knob: what auto decides, what a share of the neurons does, and what the figures say."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import stem_local
from stem_local.commands import _options
from stem_local.cost import dense_ffn_bytes, layer_parameters
from stem_local.decoding import Decoding
from stem_local.model import Model
from stem_local.sparsity import Choice, Sparsity, check_quality, check_sparsity
from stem_runtime.errors import UsageError
from stem_runtime.neuron_tables import COUNTS
from stem_runtime.sparsity import resampling
from stem_runtime.sparsity.profile import FILE
from stem_runtime.stats import Rules, Stats
from tests.local.command import stem
from tests.local.profiles import add_ffn_profile
from tests.runtime.looks import add_profile
from tests.runtime.tiny import random_packed, tiny_config

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "draft": False}
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."


def reason(folder: Path, **options: Any) -> str:
    with stem_local.load(folder, threads=1, **options) as model:
        return model.generate("Hi", temperature=0, max_tokens=3).stats.sparsity


@given(value=st.one_of(st.floats(0, 0.95), st.sampled_from(["auto", "off", 0])))
def test_settings_that_there_are(value: float | str) -> None:
    assert check_sparsity(value) == value
    assert _options.sparsity(str(value)) == value


@pytest.mark.parametrize(
    "value", ["on", "", "0.5x", -0.1, 0.951, 1, float("nan"), float("inf"), True, None, [], 10**400]
)
def test_settings_that_there_are_not(value: object, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"'auto', 'off' or a share of the neurons from 0\.0 to"):
        check_sparsity(value)
    with (
        stem_local.load(folder, threads=1) as model,
        pytest.raises(UsageError, match="sparsity is"),
    ):
        model.perplexity(TEXT, sparsity=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.01, 1.1, "x", True, None, float("nan")])
def test_qualities_that_there_are_not(value: object) -> None:
    with pytest.raises(UsageError, match=r"quality is how much .*0\.01 is \+1%"):
        check_quality(value)


def test_quality_is_a_share_or_percent() -> None:
    assert _options.quality("1%") == _options.quality("0.01") == check_quality(0.01) == 0.01
    with pytest.raises(UsageError, match="quality is"):
        _options.quality("much")
    with pytest.raises(UsageError, match="quality is"):
        _options.quality("200%")


def test_auto_takes_the_fastest_setting_within_the_budget(folder: Path) -> None:
    add_ffn_profile(
        folder,
        {"name": "slower", "tokens_per_second": 110.0, "perplexity_change": 0.001},
        {"name": "right", "tokens_per_second": 140.0, "perplexity_change": 0.0099},
        {"name": "worse", "tokens_per_second": 190.0, "perplexity_change": 0.0101},
    )
    about = reason(folder)
    assert about.startswith(
        "sparse FFN: setting right (global), 70% of the weights and +1.0% perplexity"
    )
    assert about.endswith("whole head: calibrated without its output head")
    assert reason(folder, quality=0.05).startswith("sparse FFN: setting worse (global), ")
    assert reason(folder, quality=0.002).startswith("sparse FFN: setting slower (global), ")
    with stem_local.load(folder, threads=1, quality=0.05) as model:
        stats = model.generate("Hi", quality=0.01, **GREEDY).stats
        assert "right" in stats.sparsity
        assert stats.active_fraction < 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"tokens_per_second": 99.0},
            "dense: calibrated without its output head; skipping neurons within +1.0% perplexity "
            "was not faster here (99 tok/s, dense 100)",
        ),
        (
            {"perplexity_change": 0.031},
            "dense: calibrated without its output head; skipping neurons cost at least +3.1% "
            "perplexity, +1.0% is allowed",
        ),
        (
            {"kernels": "other"},
            "calibrated with the other kernels, not ",
        ),
    ],
)
def test_auto_runs_dense_where_skipping_does_not_pay(
    folder: Path, changes: dict[str, Any], says: str
) -> None:
    with stem_local.load(folder, threads=1) as model:
        dense = model.generate("Hi", **GREEDY)
    add_ffn_profile(folder, changes)
    with stem_local.load(folder, threads=1) as model:
        found = model.generate("Hi", **GREEDY)
        assert says in found.stats.sparsity
        assert found.tokens == dense.tokens
        assert found.stats.active_fraction == 1
        assert found.stats.layer_active_fraction == (1.0, 1.0)


def test_no_setting_at_all_is_told(folder: Path) -> None:
    add_ffn_profile(folder)
    assert "no way to skip neurons was measured" in reason(folder)


def test_head_and_neurons_are_left_out_together(folder: Path) -> None:
    add_ffn_profile(folder, {"name": "half"}, head={"margin": 20.0})
    with stem_local.load(folder, threads=1) as model:
        both = model.generate("Hi", **GREEDY).stats
        assert both.sparsity.startswith("sparse FFN: setting half (global), ")
        assert "; sparse head: 32 axes" in both.sparsity
        assert both.head_rows < 320
        whole = model.generate("Hi", logprobs=0, **GREEDY).stats
        assert whole.sparsity.endswith("; whole head: logprobs need the whole head")
        assert whole.head_rows == 320
        off = model.generate("Hi", sparsity="off", **GREEDY).stats
        assert (off.sparsity, off.head_rows) == ("dense: switched off", 320)
        assert off.active_parameters == off.total_parameters
        assert both.active_parameters < off.active_parameters > whole.active_parameters
        # both follow the same tokens, so that only the head makes the difference
        looked = 32 * (64 + 320) - round((320 - both.head_rows) * 64)
        assert both.active_parameters == pytest.approx(whole.active_parameters + looked, abs=1)
        share = model.generate("Hi", sparsity=0.6, **GREEDY).stats
        assert share.sparsity.startswith("sparse FFN: 60% of the neurons left out, as asked; ")
        assert share.head_rows < 320
    add_ffn_profile(folder, {"tokens_per_second": 50.0}, head={"margin": 20.0})
    about = reason(folder)
    assert about.startswith("sparse head: 32 axes")
    assert "; whole FFN: skipping neurons within" in about


def test_a_share_leaves_out_about_that_share(folder: Path) -> None:
    add_ffn_profile(folder, {"tokens_per_second": 50.0})
    with stem_local.load(folder, threads=1) as model:
        for share in (0.6, 0.75, 0.9):
            decoding, counts = decoded(model, model.choose(share))
            active = counts[:, COUNTS.index("active")].mean() / model.config.ffn_dim
            assert 1 - active == pytest.approx(share, abs=0.1)
            cost = decoding.cost(10)
            rows = counts[:, :3].sum(axis=1)
            left_out = 64 * (3 * 96 - rows)
            whole = np.array(layer_parameters(model.config))
            assert cost.layer_active_fraction == pytest.approx(tuple(1 - left_out / whole))
            assert cost.active_parameters == round(cost.total_parameters - left_out.sum())
            dense = model.engine.weight_bytes_per_token(10)
            read = model.engine.ffn_bytes(counts)
            assert cost.bytes_per_token == dense - dense_ffn_bytes(model.packed) + round(read)


def test_a_share_keeps_to_the_rules_where_they_helped(folder: Path) -> None:
    ffn = add_ffn_profile(folder, {})
    some, drawn = ffn.plan(0.5), dataclasses.replace(ffn.plan(0.5), candidates="resampled")
    for plan, helped in ((ffn.constrained(some), True), (ffn.constrained(drawn), False)):
        add_ffn_profile(folder, {}, {"name": "ruled", "plan": plan})
        with stem_local.load(folder, threads=1) as model:
            asked = ffn.plan(0.6)
            assert model.choose(0.6).plan == (ffn.constrained(asked) if helped else asked)
            assert model.choose(0.6).plan != model.choose(0.7).plan


def decoded(model: Model, choice: Choice) -> tuple[Decoding, NDArray[np.float64]]:
    """Steps over a text, and the mean of the counts that the engine gave for each."""
    cache = model.engine.new_cache(100)
    decoding = Decoding(model, choice, cache)
    decoding.prefill(model.tokenize("Sixteen letters."))
    total = np.zeros((model.config.n_layers, len(COUNTS)))
    tokens = model.tokenize(TEXT)
    for token in tokens:
        decoding.step(token)
        total += model.engine.last_counts
    return decoding, total / len(tokens)


def test_nothing_is_lost_where_only_zeros_are_left_out(folder: Path) -> None:
    with stem_local.load(folder, threads=1, sparsity="off") as model:
        dense = model.generate(TEXT, **GREEDY)
        # the engine is given what it lacks when it is first asked for
        exact = model.generate(TEXT, sparsity=0.0, **GREEDY)
        assert exact.tokens == dense.tokens
        assert exact.stats.active_fraction < 0.95
        assert exact.stats.sparsity.startswith(
            "sparse FFN: only neurons that are exactly zero left out; whole head: not calibrated"
        )
        off = model.perplexity(TEXT, window=64)
        assert model.perplexity(TEXT, window=64, sparsity=0.0) == pytest.approx(off, rel=0.02)
    add_ffn_profile(folder, {"tokens_per_second": 50.0})
    with stem_local.load(folder, threads=1, sparsity=0) as model:
        again = model.generate(TEXT, **GREEDY)
        assert again.tokens == dense.tokens
        assert again.stats.active_parameters == exact.stats.active_parameters
        assert again.stats.rules.dense_tokens == 0


def test_a_share_needs_a_calibrated_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sparsity=0.5 needs .*run stem-local calibrate tiny"):
        stem_local.load(folder, threads=1, sparsity=0.5)
    silu = random_packed(tmp_path / "silu", tiny_config())
    with (
        stem_local.load(silu, threads=1) as model,
        pytest.raises(UsageError, match=r"sparsity=0 needs .*run stem-local calibrate tiny"),
    ):
        model.generate("Hi", sparsity=0.0)
    add_profile(folder)
    with (
        stem_local.load(folder, threads=1) as model,
        pytest.raises(UsageError, match="Only the output head of tiny is calibrated"),
    ):
        model.perplexity(TEXT, sparsity=0.5)
    result = stem("run", str(folder), "Hi", "--sparsity=0.5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Only the output head of tiny is calibrated" in result.stderr


def test_a_profile_of_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    add_ffn_profile(folder, {})
    other = random_packed(tmp_path / "other", tiny_config(activation="relu"), seed=1)
    (other / FILE).write_bytes((folder / FILE).read_bytes())
    assert "dense: " in (about := reason(other)) and "belongs to other weights" in about
    with pytest.raises(UsageError, match=r"sparsity=0.5 needs .*belongs to other .* again\.$"):
        stem_local.load(other, threads=1, sparsity=0.5)


def test_perplexity_is_measured_on_the_decode_path(folder: Path) -> None:
    add_ffn_profile(folder, {"tokens_per_second": 50.0}, head={"margin": 0.5})
    with stem_local.load(folder, threads=1) as model:
        off = model.perplexity(TEXT, window=16)
        assert off == model.perplexity(TEXT, window=16, sparsity="off")
        # auto leaves no neurons out here, and never rows of the head
        auto = model.perplexity(TEXT, window=16, sparsity="auto")
        assert auto == pytest.approx(off, rel=0.02)
        found = [model.perplexity(TEXT, window=16, sparsity=share) for share in (0.8, 0.95)]
        assert len({off, *found}) == 3
        with pytest.raises(UsageError, match="too short"):
            model.perplexity("", window=16, sparsity=0.5)


def test_perplexity_is_that_of_a_loop_by_hand(folder: Path) -> None:
    ffn = add_ffn_profile(folder, {"tokens_per_second": 50.0})
    with stem_local.load(folder, threads=1, sparsity=0.9) as model:
        plan = ffn.plan(0.9)
        ids = model.tokenize(TEXT)
        found = model.perplexity(TEXT, window=256, sparsity=0.9)
        cache = model.engine.new_cache(len(ids))
        model.engine.set_plan(plan)
        loss = 0.0
        for token, following in pairwise(ids):
            logits = model.engine.decode(cache, token, sparse=True).astype(np.float64)
            loss += np.log(np.exp(logits - logits[following]).sum())
        assert found == pytest.approx(np.exp(loss / (len(ids) - 1)), rel=1e-5)


def test_a_conversation_keeps_its_candidates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # random weights use all of their neurons alike, so that sets are large and would be given up
    monkeypatch.setattr(resampling, "_MOST", 1.0)
    ffn = add_ffn_profile(folder, {})
    plan = dataclasses.replace(
        ffn.constrained(ffn.plan(0.6)), modes=("gate", "gate"), candidates="resampled"
    )
    add_ffn_profile(folder, {"name": "drawn", "plan": plan})
    with stem_local.load(folder, threads=1) as model:
        chat = model.chat(**GREEDY)
        first = chat.send(TEXT).stats
        assert first.sparsity.startswith("sparse FFN: setting drawn (global), ")
        assert first.rules.refreshes >= 1
        assert len(model.resamplers) == 1
        (held,) = model.resamplers.values()
        second = chat.send("And then?").stats
        assert second.reused_tokens > 0
        assert next(iter(model.resamplers.values())) is held
        # another conversation shares too little with the first to be helped by its candidates
        model.generate("One two three four five six seven eight nine ten.", raw=True, **GREEDY)
        assert next(iter(model.resamplers.values())) is not held
        assert model.generate(TEXT, sparsity="off", **GREEDY).stats.rules == Rules()


def test_resampling_that_does_not_pay_is_told(folder: Path) -> None:
    ffn = add_ffn_profile(folder, {})
    plan = dataclasses.replace(ffn.plan(0.6), modes=("gate", "gate"), candidates="resampled")
    add_ffn_profile(folder, {"name": "drawn", "plan": plan})
    assert "resampling switched itself off: its sets of candidates hold" in reason(folder)


def test_rules_that_acted_are_counted(folder: Path) -> None:
    ffn = add_ffn_profile(folder, {})
    free = dataclasses.replace(ffn.plan(0.6), modes=("gate", "gate"), sinks=3)
    bound = dataclasses.replace(free, core=True, floors=(0, 95), caps=(1, 96))
    add_ffn_profile(folder, {"name": "bound", "plan": bound})
    with stem_local.load(folder, threads=1) as model:
        stats = model.generate("H", raw=True, **GREEDY).stats
        assert stats.decode_steps > 3
        assert stats.rules.dense_tokens == 2
        ran = stats.decode_steps - 2
        assert (stats.rules.floors, stats.rules.caps) == (ran, ran)
        assert stats.rules.core_added > 0
        assert stats.to_dict()["rules"]["caps"] == ran
        assert (stats.rules.implied_added, stats.rules.refreshes) == (0, 0)


def test_generations_that_take_turns_keep_their_own_settings(folder: Path) -> None:
    add_ffn_profile(folder, {"tokens_per_second": 50.0})
    settings: tuple[Sparsity, ...] = (0.8, "off", 0.9)

    def alone(sparsity: Sparsity) -> tuple[str, int, int]:
        with stem_local.load(folder, threads=1) as model:
            return figures(model.generate(TEXT, sparsity=sparsity, **GREEDY).stats)

    def figures(stats: Stats) -> tuple[str, int, int]:
        return stats.sparsity, stats.active_parameters, stats.bytes_per_token

    with stem_local.load(folder, threads=1) as model:
        answers = [model.stream(TEXT, sparsity=sparsity, **GREEDY) for sparsity in settings]
        together = [chunks for chunks in zip_longest(*answers) if any(chunks)]
    for column, sparsity in enumerate(settings):
        last = [chunks[column] for chunks in together if chunks[column] is not None][-1]
        assert last.stats is not None
        assert figures(last.stats) == alone(sparsity)


def test_run_takes_the_knob_and_prints_the_figures(folder: Path) -> None:
    add_ffn_profile(folder, {"name": "half"})
    args = ("run", str(folder), "Hi", "--json", "--temperature=0", "--max-tokens=6")
    stats = json.loads(stem(*args).stdout)["stats"]
    assert stats["sparsity"].startswith("sparse FFN: setting half (global)")
    assert set(stats) >= {
        "active_parameters",
        "total_parameters",
        "active_fraction",
        "layer_active_fraction",
        "bytes_per_token",
        "tokens_per_second",
        "gb_per_second",
        "joules_per_token",
        "rules",
    }
    assert len(stats["layer_active_fraction"]) == 2
    assert "70%" not in json.loads(stem(*args, "--sparsity=off").stdout)["stats"]["sparsity"]
    dense = json.loads(stem(*args, "--quality=0.1%").stdout)["stats"]
    assert dense["sparsity"].startswith("dense: ")
    assert json.loads(stem(*args, "--sparsity=0.9").stdout)["stats"]["active_fraction"] < 0.9
    wrong = stem("run", str(folder), "Hi", "--sparsity=most")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "--sparsity takes auto, off or shares" in wrong.stderr
