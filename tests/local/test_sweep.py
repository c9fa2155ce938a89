"""Settings and controls side by side: show, bench --sparsity and bench --ablate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import stem_local
from stem_local import ablation
from stem_local.ablation import ablate, judge, plan_of, usual_share, workloads
from stem_local.calibration import built_in_texts
from stem_local.pairs import Figures
from stem_local.sweep import sweep
from stem_runtime import bandwidth
from stem_runtime.engine import Cancelled
from stem_runtime.errors import UsageError
from stem_runtime.kernels import choose
from stem_runtime.sparsity.ffn_profile import PolicyTrial
from stem_runtime.sparsity.profile import FILE
from tests.local.command import stem
from tests.local.profiles import add_ffn_profile, setting
from tests.runtime.looks import add_profile

SHORT = {"chat": "User: Hello there! " * 12, "prose": "The mill was closed in winter. " * 8}


def figures(speed: float, perplexity: float) -> dict[str, Figures]:
    return {name: Figures(50.0, 0.5, perplexity, speed) for name in ("a", "b")}


def test_show_tells_what_auto_would_do(folder: Path) -> None:
    add_ffn_profile(folder, {"name": "half"}, {"name": "slow", "tokens_per_second": 80.0}, head={})
    known = json.loads(stem("show", str(folder), "--json").stdout)
    assert [row["name"] for row in known["calibration"]["ffn"]["settings"]] == ["half", "slow"]
    auto = known["auto"]
    assert auto["sparsity"].startswith("sparse FFN: setting half (global), 70% of the weights")
    assert auto["perplexity_change"] == 0.005
    # 30% of two FFNs of three matrices less, 12.5 rows of 320 and a look along 32 axes
    left_out = 0.3 * 2 * 3 * 96 * 64 + (320 - 12.5) * 64 - 32 * (64 + 320)
    assert auto["active_parameters"] == round(known["parameters"] - left_out)
    text = stem("show", str(folder)).stdout
    for words in (
        "auto:",
        "sparse FFN: setting half (global)",
        "active:",
        "half",
        "slow",
        "winners missed:",
    ):
        assert words in text
    (folder / FILE).unlink()
    known = json.loads(stem("show", str(folder), "--json").stdout)
    assert known["calibration"] is None
    assert known["auto"]["active_fraction"] == 1
    assert "none; stem-local calibrate makes one" in stem("show", str(folder)).stdout


def test_the_sweep_has_a_row_for_every_setting(folder: Path) -> None:
    add_ffn_profile(
        folder,
        {"name": "half", "target": 0.5},
        {"name": "most", "target": 0.9, "perplexity_change": 0.2},
        head={"margin": 20.0},
    )
    args = ("bench", str(folder), "--tokens=8", "--repeats=2", "--threads=1", "--contexts=16")
    rows = json.loads(stem(*args, "--json", "--sparsity").stdout)["settings"]
    assert [row["setting"] for row in rows] == ["off", "auto", "half", "most"]
    assert [row["perplexity_change"] for row in rows] == [0.0, 0.005, 0.005, 0.2]
    off, auto, half, most = (row["active_parameters"] for row in rows)
    assert off > half > most
    assert auto != half
    assert rows[1]["layer_active_fraction"] == rows[2]["layer_active_fraction"]
    assert [row["head_rows"] < 320 for row in rows] == [False, True, False, False]
    for row in rows:
        speed = row["tokens_per_second"] * row["bytes_per_token"] / 1e9
        assert row["gb_per_second"] == pytest.approx(speed)
        assert len(row["layer_active_fraction"]) == 2
    chosen = json.loads(stem(*args, "--json", "--sparsity=0.9,off,0.9").stdout)["settings"]
    assert [row["setting"] for row in chosen] == ["0.9", "off"]
    assert chosen[0]["perplexity_change"] is None
    assert chosen[0]["layer_active_fraction"] == rows[3]["layer_active_fraction"]
    assert chosen[0]["head_rows"] < 320
    text = stem(*args, "--sparsity", "off,auto,0.6").stdout
    assert "not measured" in text
    assert "auto: sparse FFN: setting half (global), " in text


def test_the_sweep_of_a_model_that_is_not_calibrated(folder: Path) -> None:
    with stem_local.load(folder, threads=1) as model:
        rows = sweep(model, tokens=4, repeats=1, context=8)
        assert [(row.setting, row.run.cost.active_fraction) for row in rows] == [
            ("off", 1),
            ("auto", 1),
        ]
        with pytest.raises(UsageError, match="context of 256 tokens"):
            sweep(model, tokens=200, context=100)
    result = stem("bench", str(folder), "--sparsity=0.5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "stem-local calibrate tiny" in result.stderr
    result = stem("bench", "--sparsity", str(folder))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the name of a model comes before it" in result.stderr


def test_bench_measures_what_auto_does_beside_dense(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "MIN_BUFFER", 1 << 20)
    add_profile(folder, kernels=choose().name, margin=20.0)
    args = ("bench", str(folder), "--no-start", "--tokens=4", "--repeats=1", "--threads=1")
    report = json.loads(stem(*args, "--json").stdout)
    assert [row["sparsity"] for row in report["decode"]] == ["off", "auto"]
    assert [row["head_rows"] < 320 for row in report["decode"]] == [False, True]
    assert "rows of the head" in stem(*args).stdout


def test_the_texts_are_not_those_of_calibration() -> None:
    texts = workloads()
    assert list(texts) == ["chat", "prose", "python", "sql"]
    known = "".join(built_in_texts())
    for text in texts.values():
        assert 3000 < len(text) < 4500
        lines = [line for line in text.splitlines() if len(line) > 40]
        assert not [line for line in lines if line in known]


def test_ablation_adds_one_control_after_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ffn_profile(folder, {"target": 0.6})
    seen: list[tuple[str, int, int]] = []
    monkeypatch.setattr(ablation, "workloads", lambda: SHORT)
    with stem_local.load(folder, threads=1) as model:
        found = ablate(model, progress=lambda *step: seen.append(step))
    assert found.share == 0.6
    controls = [stage.control for stage in found.stages]
    assert controls[:6] == ["dense", *ablation.CONTROLS]
    kept = [stage for stage in found.stages[2:6] if stage.helps]
    assert controls[6:] == ["together"][: len(kept)]
    stages = {stage.control: stage for stage in found.stages}
    assert stages["prediction"].verdict.startswith("off: gates are only predicted")
    assert stages["prediction"].figures == {}
    for name in ("dense", "potentials", "policy"):
        assert set(stages[name].figures) == set(SHORT)
    dense, potentials = stages["dense"].figures["chat"], stages["potentials"].figures["chat"]
    assert dense.active_fraction == 1 > potentials.active_fraction
    assert dense.perplexity != potentials.perplexity
    with stem_local.load(folder, threads=1) as model:
        whole = model.perplexity(SHORT["chat"], window=256, sparsity="auto", quality=0.0)
    assert dense.perplexity == pytest.approx(whole, rel=0.2)
    assert seen[0] == ("Ablating", 0, seen[0][2])
    assert seen[-1][1] <= seen[-1][2]
    for stage in found.stages[1:]:
        assert stage.verdict.startswith(("helps: ", "does not help", "off: ", "potentials and "))


def test_what_was_kept_is_compared_with_dense(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_ffn_profile(folder, {"target": 0.6})
    monkeypatch.setattr(ablation, "judge", lambda *_: (True, "so they say"))
    with stem_local.load(folder, threads=1) as model:
        stages = ablate(model, texts=SHORT).stages
    last = stages[-1]
    assert last.control == "together"
    assert last.verdict.startswith("potentials and ")
    assert last.verdict.endswith(" and policy: so they say")
    assert last.figures["chat"].perplexity == stages[-2].figures["chat"].perplexity


def test_ablation_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "workloads", lambda: SHORT)
    result = stem("bench", str(folder), "--ablate")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing to ablate in tiny: not calibrated" in result.stderr
    add_ffn_profile(folder, {})
    args = ("bench", str(folder), "--ablate", "--threads=1")
    text = stem(*args, "--sparsity=0.7").stdout
    for words in ("70% of the neurons", "potentials", "chat", "prose", "dense: what the rest"):
        assert words in text
    known = json.loads(stem(*args, "--json").stdout)
    assert known["share"] == 0.5
    assert known["stages"][0]["figures"]["prose"]["tokens_per_second"] > 0
    for wrong in ("0.5,0.6", "auto"):
        result = stem(*args, f"--sparsity={wrong}")
        assert result.exit_code == 2
        assert "--ablate takes one share" in result.stderr


def test_ablation_can_be_cancelled_and_wants_text(folder: Path) -> None:
    add_ffn_profile(folder, {})
    with stem_local.load(folder, threads=1) as model:
        with pytest.raises(Cancelled):
            ablate(model, texts=SHORT, cancel=lambda: True)
        with pytest.raises(UsageError, match="too short"):
            ablate(model, texts={"chat": "Hi."})


def test_controls_are_put_together(folder: Path) -> None:
    ffn = add_ffn_profile(folder, {})
    assert plan_of(ffn, 0.6, ()) == (None, "")
    plain, _ = plan_of(ffn, 0.6, ("potentials",))
    assert plain == ffn.plan(0.6, "uniform")
    bound, _ = plan_of(ffn, 0.6, ("potentials", "constraints"))
    assert bound is not None and bound.core and bound.floors and not bound.implications
    drawn, why = plan_of(ffn, 0.6, ("potentials", "resampling", "constraints"))
    if "gate" in ffn.plan(0.6, "uniform").modes:
        assert drawn is not None and (drawn.candidates, drawn.implications) == ("resampled", False)
    assert why == ""
    spread, _ = plan_of(ffn, 0.6, ("potentials", "policy"))
    assert spread == ffn.plan(0.6, "global")
    late = dataclasses.replace(ffn, tables=dataclasses.replace(ffn.tables, gated=ffn.tables.active))
    assert plan_of(late, 0.6, ("potentials", "prediction"))[1].startswith("gates are only")


def test_the_policy_is_the_one_that_calibration_found_best(folder: Path) -> None:
    ffn = add_ffn_profile(folder, {})
    assert ffn.policy == "global"
    trials = tuple(
        PolicyTrial(
            policy=policy,
            target=0.5,
            active_parameters=0.6,
            perplexity_change=change,
            divergence=change,
        )
        for policy, change in (("uniform", 0.02), ("greedy", 0.01), ("learned", 0.03))
    )
    assert dataclasses.replace(ffn, trials=trials).policy == "greedy"
    alone = dataclasses.replace(ffn, trials=trials[:1])
    assert plan_of(alone, 0.5, ("potentials", "policy"))[1].startswith("calibration found nothing")


def test_the_share_is_the_one_in_use(folder: Path) -> None:
    def share(*changes: dict[str, Any]) -> float:
        ffn = add_ffn_profile(folder, *changes)
        with stem_local.load(folder, threads=1) as model:
            return usual_share(model, ffn)

    slow = {"tokens_per_second": 90.0}
    assert share({"target": 0.6}, {"target": 0.7, "perplexity_change": 0.5}) == 0.6
    assert share({"target": 0.6, **slow}, {"target": 0.55, **slow}) == 0.6
    worse = {"perplexity_change": 0.5}
    assert share({"target": 0.7, **worse}, {"target": 0.6, **worse}) == 0.6
    assert share() == 0.3
    assert setting("x", add_ffn_profile(folder).plan(0.5)).faster


@pytest.mark.parametrize(
    ("after", "helps"),
    [
        (figures(120, 10.0), True),
        (figures(120, 10.05), True),
        (figures(120, 10.2), False),
        (figures(100, 9.9), True),
        (figures(100, 10.0), False),
        (figures(80, 9.9), False),
        (figures(100.5, 9.999), False),
    ],
)
def test_a_control_helps_where_it_is_faster_or_better(
    after: dict[str, Figures], helps: bool
) -> None:
    dense = figures(90, 10.0)
    found, why = judge(dense, figures(100, 10.0), after, 0.01)
    assert found is helps
    assert "x the speed" in why
