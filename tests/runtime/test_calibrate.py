"""Calibration of tiny models: what it writes, what it refuses, and going on where it stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stem_runtime import paths
from stem_runtime.engine import Cancelled, Engine
from stem_runtime.errors import FormatError, UsageError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.sparsity import budget, capture, ffn_settings
from stem_runtime.sparsity import calibrate as calibrate_module
from stem_runtime.sparsity.budget import POLICIES
from stem_runtime.sparsity.calibrate import calibrate, calibrate_head, passages
from stem_runtime.sparsity.capture import Material, Part
from stem_runtime.sparsity.ffn_profile import FfnProfile
from stem_runtime.sparsity.head import HeadLook
from stem_runtime.sparsity.head_fit import dims_for, split
from stem_runtime.sparsity.plan import FfnPlan
from stem_runtime.sparsity.profile import FILE, Profile, read_profile, write_profile

from ..quick import shorten
from .fitted import SPARSE
from .tiny import random_packed, tiny_config

HEAD_STEPS = ["Reading", "Fitting", "Timing"]
STEPS = [
    *HEAD_STEPS,
    "Listening",
    "Watching",
    "Weighing",
    "Budgeting",
    "Comparing",
    "Measuring",
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def material(tokens: int = 3000, prompts: int = 4, vocab: int = 320) -> Material:
    rng = np.random.default_rng(tokens)
    texts = [rng.integers(3, vocab, tokens // 3).tolist() for _ in range(3)]
    asked = [rng.integers(3, vocab, 20).tolist() for _ in range(prompts)]
    return Material(texts, asked, frozenset({2}))


def look_of(profile: Profile) -> HeadLook:
    assert profile.head is not None
    return profile.head.look


@pytest.fixture
def model(tmp_path: Path) -> PackedModel:
    return open_packed(random_packed(tmp_path / "m", tiny_config()))


@pytest.fixture
def hidden_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the sequences whose hidden states were computed."""
    calls: list[int] = []
    hidden = Engine.hidden

    def counted(self: Engine, cache: object, tokens: list[int]) -> object:
        calls.append(len(tokens))
        return hidden(self, cache, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "hidden", counted)
    return calls


def test_a_profile_is_written_and_says_what_was_measured(model: PackedModel) -> None:
    told: list[tuple[str, int, int]] = []
    profile = calibrate(model, material(), threads=1, progress=lambda *now: told.append(now))
    found = read_profile(model.folder, model.config, model.info["weights_sha256"])
    assert found is not None
    assert found.head is not None
    assert profile.head is not None
    assert found.head.setting == profile.head.setting
    setting = profile.head.setting
    assert (setting.dims, setting.threads) == (32, 1)
    assert setting.limit in (20, 40)
    assert 1000 < setting.positions < 2000
    assert 0 < setting.mean_rows <= 320
    assert min(setting.tokens_per_second, setting.dense_tokens_per_second) > 0
    assert setting.dense_head_bytes == model.matrix("embed").nbytes
    assert setting.good == (
        setting.miss_rate <= 0.001 and min(setting.default_mass, setting.warm_mass) >= 0.999
    )
    assert list(dict.fromkeys(step for step, _, _ in told)) == STEPS
    for step in STEPS:
        done = [now for name, now, _ in told if name == step]
        (total,) = {total for name, _, total in told if name == step}
        assert (done[-1], done) == (total, sorted(done))
    assert list((paths.cache_dir() / "calibration").iterdir()) == []


def test_the_same_material_gives_the_same_look(model: PackedModel) -> None:
    first = look_of(calibrate(model, material(), threads=1))
    (model.folder / FILE).unlink()
    again = look_of(calibrate(model, material(), threads=1))
    assert (first.margin, first.dims, first.limit) == (again.margin, again.dims, again.limit)
    assert np.array_equal(first.look.joined(), again.look.joined())
    assert np.array_equal(first.rotation.joined(), again.rotation.joined())


@pytest.mark.parametrize("stop_at", [3, 22, 220])
def test_a_calibration_goes_on_where_it_stopped(
    model: PackedModel, hidden_calls: list[int], stop_at: int
) -> None:
    asked = iter(range(10**9))
    with pytest.raises(Cancelled):
        calibrate(model, material(), threads=1, cancel=lambda: next(asked) == stop_at)
    assert not (model.folder / FILE).exists()
    done = list(hidden_calls)
    profile = calibrate(model, material(), threads=1)
    resumed = list(hidden_calls)
    hidden_calls.clear()
    (model.folder / FILE).unlink()
    whole = calibrate(model, material(), threads=1)
    assert resumed == hidden_calls
    assert len(done) < len(resumed)
    assert look_of(profile).margin == look_of(whole).margin


def test_what_was_kept_may_be_damaged(model: PackedModel, hidden_calls: list[int]) -> None:
    asked = iter(range(10**9))
    with pytest.raises(Cancelled):
        calibrate(model, material(), threads=1, cancel=lambda: next(asked) == 6)
    kept = sorted((paths.cache_dir() / "calibration").rglob("*.npz"))
    assert len(kept) == len(hidden_calls) == 6
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    kept[1].write_bytes(b"")
    np.savez(kept[2], tokens=np.zeros(3), hidden=np.zeros((3, 5), np.float32))
    np.savez(kept[3], other=np.zeros(3))
    before = hidden_calls[:]
    profile = calibrate(model, material(), threads=1)
    assert hidden_calls[6:10] == before[:4]
    (model.folder / FILE).unlink()
    assert look_of(profile).margin == look_of(calibrate(model, material(), threads=1)).margin


@pytest.mark.parametrize("stage", STEPS)
def test_it_can_be_cancelled_at_every_stage(model: PackedModel, stage: str) -> None:
    reached: list[str] = []
    with pytest.raises(Cancelled):
        calibrate(
            model,
            material(),
            threads=1,
            progress=lambda step, *_: reached.append(step),
            cancel=lambda: stage in reached,
        )
    assert reached[-1] == stage
    assert not (model.folder / FILE).exists()


@pytest.mark.parametrize(("tokens", "prompts"), [(0, 0), (300, 0), (0, 2)])
def test_too_little_text_is_refused(model: PackedModel, tokens: int, prompts: int) -> None:
    with pytest.raises(UsageError, match=r"too little text: \d+ tokens"):
        calibrate(model, material(tokens, prompts), threads=1)


def test_hidden_states_that_are_no_numbers_are_refused(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = Engine.hidden

    def broken(self: Engine, cache: object, tokens: list[int]) -> object:
        states = hidden(self, cache, tokens)  # type: ignore[arg-type]
        states[-1, 5] = np.nan
        return states

    monkeypatch.setattr(Engine, "hidden", broken)
    with pytest.raises(FormatError, match="not finite"):
        calibrate(model, material(), threads=1)
    assert not list((paths.cache_dir() / "calibration").rglob("*.npz"))


def test_models_whose_head_cannot_be_looked_at_have_none(tmp_path: Path) -> None:
    int4 = open_packed(random_packed(tmp_path / "a", tiny_config(), kinds="int4"))
    narrow = open_packed(random_packed(tmp_path / "b", tiny_config(d_model=48)))
    for model in (int4, narrow):
        profile = calibrate(model, material(), threads=1)
        assert profile.head is None
        assert profile.ffn is not None
        assert profile.ffn.settings
        read = read_profile(model.folder, model.config, model.info["weights_sha256"])
        assert read is not None
        assert read.head is None


def ffn_of(profile: Profile | None) -> FfnProfile:
    assert profile is not None
    assert profile.ffn is not None
    return profile.ffn


def test_ways_to_skip_neurons_are_measured(model: PackedModel) -> None:
    ffn = ffn_of(calibrate(model, material(), threads=1))
    assert [setting.name for setting in ffn.settings] == ["1%", "5%"]
    assert [trial.policy for trial in ffn.trials] == list(POLICIES)
    assert len({trial.target for trial in ffn.trials}) == 1
    best = max(ffn.trials, key=lambda trial: trial.reward)
    for setting in ffn.settings:
        assert setting.policy == best.policy
        plan = ffn.plan(setting.target, setting.policy)
        assert setting.plan in (plan, ffn.constrained(plan))
        assert setting.positions > 100
        assert 0 < setting.active_neurons <= 1
        assert setting.active_neurons <= setting.active_parameters <= 1
        assert min(setting.tokens_per_second, setting.dense_tokens_per_second) > 0
    less, more = ffn.settings
    assert less.target <= more.target
    assert ffn.tables.measured
    assert (ffn.rules.sharpness > 0).all()
    pays = any(s.faster and s.perplexity_change <= 0.05 for s in ffn.settings)
    assert pays == (ffn.stored is not None) == (not ffn.reason)
    read = read_profile(model.folder, model.config, model.info["weights_sha256"])
    assert ffn_of(read).settings == ffn.settings


def test_a_naturally_sparse_model_is_measured_with_candidates_too(tmp_path: Path) -> None:
    model = open_packed(random_packed(tmp_path / "m", tiny_config(**SPARSE)))
    ffn = ffn_of(calibrate(model, material(), threads=1))
    found = {setting.name: setting for setting in ffn.settings}
    assert list(found) == ["exact", "predicted", "resampled", "1%", "5%"]
    exact = found["exact"]
    assert exact.plan == FfnPlan.exact(2)
    assert exact.perplexity_change == pytest.approx(0, abs=0.01)
    assert 0.1 < exact.active_neurons < 0.5
    assert exact.recall == 1
    assert found["predicted"].plan.candidates == "predicted"
    assert "prediction" in found["predicted"].controls
    assert 0.5 < found["predicted"].recall <= 1
    assert found["resampled"].controls[:2] == ("potentials", "resampling")
    # exact zeros are skipped by every setting
    assert all(setting.active_neurons < 0.5 for setting in ffn.settings)


@pytest.mark.parametrize(("change", "error", "kept"), [(-0.2, 0.04, 4), (-0.2, 0.2, 0)])
def test_rules_are_kept_where_they_surely_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float, error: float, kept: int
) -> None:
    """But never where nothing but zeros is left out, since a cap would leave out more."""
    monkeypatch.setattr(ffn_settings, "compare", lambda _losses, _dense: (change, error))
    model = open_packed(random_packed(tmp_path / "m", tiny_config(**SPARSE)))
    ffn = ffn_of(calibrate(model, material(), threads=1))
    exact, *others = ffn.settings
    assert exact.plan == FfnPlan.exact(2)
    ruled = [setting for setting in others if setting.plan.core]
    assert (len(others), len(ruled)) == (4, kept)
    for setting in ruled:
        assert "constraints" in setting.controls
        assert setting.plan == ffn.constrained(setting.plan)
        assert setting.plan.implications == (setting.plan.candidates == "predicted")


@pytest.mark.parametrize("stop", ["Comparing", "Measuring"])
def test_finished_measurements_are_kept(
    model: PackedModel, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []
    with pytest.raises(Cancelled):
        calibrate(
            model,
            material(),
            threads=1,
            progress=lambda step, *_: reached.append(step),
            cancel=lambda: reached.count(stop) == 2,
        )

    def again(*_args: object) -> None:
        raise AssertionError("was done already")

    for name in ("fit", "fit_look", "_race", "capture_ffn"):
        monkeypatch.setattr(calibrate_module, name, again)
    monkeypatch.setattr(budget, "learn", again)
    told: list[str] = []
    ffn = ffn_of(calibrate(model, material(), threads=1, progress=lambda s, *_: told.append(s)))
    assert "Budgeting" not in told
    assert len(ffn.settings) == 2
    assert len(ffn.trials) == len(POLICIES)
    assert list((paths.cache_dir() / "calibration").iterdir()) == []


def test_passages_take_a_share_of_every_part() -> None:
    width = np.zeros((1, 4), np.float32)
    parts = [
        Part(list(range(300)), np.repeat(width, 299, axis=0), False),
        Part(list(range(40)), np.repeat(width, 10, axis=0), True),
        Part(list(range(8)), np.repeat(width, 7, axis=0), False),
    ]
    found = passages(parts, 90)
    assert [passage.start for passage in found] == [4, 30, 32]
    assert [len(passage.tokens) for passage in found] == [8, 40, 32 + 76]
    assert passages([Part([1, 2], width, False)], 50) == []


def test_a_head_that_few_axes_describe_is_found(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hidden states lie in a few dimensions, the look is right and keeps few rows."""
    hidden = Engine.hidden
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((8, 64)).astype(np.float32)

    def flat(self: Engine, cache: object, tokens: list[int]) -> object:
        count = len(hidden(self, cache, tokens))  # type: ignore[arg-type]
        return rng.standard_normal((count, 8)).astype(np.float32) @ plane

    monkeypatch.setattr(Engine, "hidden", flat)
    head = calibrate(model, material(), threads=1).head
    assert head is not None
    setting = head.setting
    assert setting.good
    assert setting.mean_rows < 60
    assert setting.head_bytes < setting.dense_head_bytes


def test_long_texts_are_sampled_evenly() -> None:
    windows: Callable[..., list[list[int]]] = lambda *a: list(capture._windows(*a, 40))  # noqa: E731
    pieces = windows([list(range(100)), [7]], 10)
    assert pieces == [list(range(s, s + 10)) for s in (0, 20, 50, 70)]
    assert windows([list(range(25))], 10) == [[*range(10)], [*range(10, 20)], [*range(20, 25)]]
    assert windows([], 10) == []


def test_two_of_five_parts_are_only_judged_by() -> None:
    parts = [Part([], np.full((100, 4), i, np.float32), False) for i in range(10)]
    axes, margin, judged = split(parts)
    assert set(judged[:, 0]) == {1, 4, 6, 9}
    assert set(axes[:, 0]) | set(margin[:, 0]) == {0, 2, 3, 5, 7, 8}
    assert len(axes) + len(margin) + len(judged) == 1000


def test_the_head_alone_is_calibrated_and_built_on(
    model: PackedModel, hidden_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    alone = calibrate_head(
        model, material(), threads=1, progress=lambda step, *_: told.append(step)
    )
    assert alone is not None
    assert alone.ffn is None
    assert list(dict.fromkeys(told)) == HEAD_STEPS
    assert len(hidden_calls) == len(capture.windows(model, material().for_head()))  # no answers
    assert not list((paths.cache_dir() / "calibration").iterdir())
    weights = model.info["weights_sha256"]
    found = read_profile(model.folder, model.config, weights)
    assert found is not None
    assert found.head is not None
    assert found.head.material

    def again(*_args: object) -> None:
        raise AssertionError("was done already")

    monkeypatch.setattr(calibrate_module, "fit_look", again)
    whole = calibrate(model, material(), threads=1)
    assert whole.ffn is not None
    assert look_of(whole).margin == look_of(alone).margin
    monkeypatch.undo()
    # other texts are another material; what is known of the FFNs stays
    other = calibrate_head(model, material(3300), threads=1)
    assert other is not None
    assert ffn_of(other).settings == ffn_of(whole).settings
    read = read_profile(model.folder, model.config, weights)
    assert ffn_of(read).settings == ffn_of(whole).settings


def test_a_look_whose_margin_is_from_the_best_score_is_fitted_anew(model: PackedModel) -> None:
    first = calibrate_head(model, material(), threads=1)
    assert first is not None
    assert first.head is not None
    older = dataclasses.replace(first.head.look, mean=None)
    write_profile(
        model.folder, dataclasses.replace(first, head=dataclasses.replace(first.head, look=older))
    )
    again = calibrate_head(model, material(), threads=1)
    assert again is not None
    assert look_of(again).mean is not None


@pytest.mark.parametrize("stage", HEAD_STEPS)
def test_a_cancelled_head_is_gone_on_with_and_changes_no_profile(
    model: PackedModel, hidden_calls: list[int], stage: str
) -> None:
    calibrate_head(model, material(), threads=1)
    held = (model.folder / FILE).read_bytes()
    hidden_calls.clear()
    reached: list[str] = []
    with pytest.raises(Cancelled):
        calibrate_head(
            model,
            material(4000),
            threads=1,
            progress=lambda step, *_: reached.append(step),
            cancel=lambda: reached.count(stage) == 2,
        )
    assert (model.folder / FILE).read_bytes() == held
    done = len(hidden_calls)
    after = calibrate_head(model, material(4000), threads=1)
    # the second call read what the first had not
    assert len(hidden_calls) == len(capture.windows(model, material(4000).for_head()))
    assert 0 < done <= len(hidden_calls)
    assert after is not None
    assert (model.folder / FILE).read_bytes() != held


def test_a_head_that_takes_too_long_is_left(model: PackedModel, hidden_calls: list[int]) -> None:
    asked: list[float] = []

    def worth(seconds: float) -> bool:
        asked.append(seconds)
        return False

    assert calibrate_head(model, material(), threads=1, worth=worth) is None
    assert 0 < asked[0] < 60
    assert sum(hidden_calls) < capture.WINDOW
    assert not (model.folder / FILE).exists()
    assert calibrate_head(model, material(), threads=1, worth=lambda _: True) is not None


def test_widths_have_numbers_of_axes() -> None:
    assert [dims_for(width) for width in (64, 576, 896, 1024, 4096)] == [
        *([32], [256], [384], [384, 512], [512])
    ]
    for width in range(64, 1400):
        assert all(32 <= dims <= width // 2 for dims in dims_for(width))
