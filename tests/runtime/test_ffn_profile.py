"""The FFN part of a profile file: what is written is read, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_runtime.engine import Engine
from stem_runtime.errors import FormatError, StemError
from stem_runtime.formats.packed import PackedModel
from stem_runtime.sparsity import container
from stem_runtime.sparsity.ffn_profile import FfnProfile, FfnSetting, PolicyTrial
from stem_runtime.sparsity.neurons import layer_weights
from stem_runtime.sparsity.profile import FILE, Profile, read_profile, write_profile

from .fitted import SPARSE, fitted

TRIAL = PolicyTrial("greedy", 0.4, 0.8, -0.001, 0.01)


def setting(profile: FfnProfile, name: str, **changes: Any) -> FfnSetting:
    found = FfnSetting(
        name=name,
        policy="global",
        target=0.4,
        controls=("potentials", "prediction"),
        plan=profile.constrained(profile.plan(0.4)),
        active_neurons=0.6,
        active_parameters=0.7,
        recall=0.99,
        perplexity_change=-0.002,
        positions=100,
        dense_tokens_per_second=100.0,
        tokens_per_second=120.0,
        kernels="portable",
        threads=1,
    )
    return dataclasses.replace(found, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedModel, FfnProfile]:
    """A naturally sparse model and a profile of it with all that there is."""
    model, profile = fitted(tmp_path_factory.mktemp("made"), **SPARSE)
    stored = tuple(layer_weights(model, layer, "gate") for layer in (0, 1))
    predicted = dataclasses.replace(profile.plan(0.4), candidates="predicted", implications=True)
    both = (setting(profile, "some"), setting(profile, "few", plan=predicted))
    return model, dataclasses.replace(profile, settings=both, trials=(TRIAL,), stored=stored)


@pytest.fixture
def folder(made: tuple[PackedModel, FfnProfile], tmp_path: Path) -> Path:
    model, profile = made
    write_profile(tmp_path, Profile(model.info["weights_sha256"], None, profile))
    return tmp_path


def read(folder: Path, model: PackedModel) -> FfnProfile:
    found = read_profile(folder, model.config, model.info["weights_sha256"])
    assert found is not None
    assert found.head is None
    assert found.ffn is not None
    return found.ffn


def same(left: Any, right: Any) -> bool:
    if dataclasses.is_dataclass(left):
        names = [field.name for field in dataclasses.fields(left)]
        return all(same(getattr(left, n), getattr(right, n)) for n in names if n != "name")
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return bool(left == right)


def test_what_is_written_is_read(made: tuple[PackedModel, FfnProfile], folder: Path) -> None:
    model, profile = made
    found = read(folder, model)
    assert found.settings == profile.settings
    assert found.trials == profile.trials
    assert same(found, profile)
    assert found.plan(0.5) == profile.plan(0.5)
    assert not found.tables.dropped.flags.writeable


def test_the_engine_decodes_with_what_is_read(
    made: tuple[PackedModel, FfnProfile], folder: Path
) -> None:
    model, profile = made
    found = read(folder, model)
    logits = []
    for neurons in (found.neurons(model), profile.neurons(model)):
        with Engine(model, threads=1, neurons=neurons) as engine:
            engine.set_plan(found.settings[1].plan)
            cache = engine.new_cache(16)
            engine.prefill(cache, [5, 6, 7, 8, 9])
            logits.append(engine.decode(cache, 10, sparse=True).copy())
            assert engine.last_counts[:, 2].mean() < 96
    assert np.array_equal(*logits)


def test_dead_neurons_are_dropped(made: tuple[PackedModel, FfnProfile], tmp_path: Path) -> None:
    """The file is smaller, answers are the same, and files that hold the dead too are read."""
    model, profile = made
    alive = profile.rules.alive & np.uint32(0x5A5A5A5A)
    rules = dataclasses.replace(profile.rules, alive=alive)
    found, sizes = [], []
    for masks in (None, alive):
        stored = tuple(
            layer_weights(model, layer, "gate", None if masks is None else masks[layer])
            for layer in (0, 1)
        )
        kept = dataclasses.replace(profile, rules=rules, stored=stored)
        path = write_profile(tmp_path, Profile(model.info["weights_sha256"], None, kept))
        sizes.append(path.stat().st_size)
        again = read(tmp_path, model)
        assert same(again.stored, stored)
        with Engine(model, threads=1, neurons=again.neurons(model)) as engine:
            engine.set_plan(again.settings[1].plan)
            cache = engine.new_cache(16)
            engine.prefill(cache, [5, 6, 7, 8, 9])
            found.append(engine.decode(cache, 10, sparse=True).copy())
    dead = 2 * 96 - int(np.bitwise_count(alive).sum())
    assert dead > 50
    assert sizes[0] - sizes[1] >= dead * stored[0].records.shape[1]
    assert np.array_equal(*found)


def test_a_profile_without_weights_is_small(
    made: tuple[PackedModel, FfnProfile], tmp_path: Path
) -> None:
    model, profile = made
    small = dataclasses.replace(profile, stored=None, predictors=None, reason="slower")
    write_profile(tmp_path, Profile(model.info["weights_sha256"], None, small))
    found = read(tmp_path, model)
    assert found.reason == "slower"
    assert found.stored is None
    assert found.predictors is None
    assert not found.sparse
    weights = found.neurons(model, parts="down").layers[0]
    assert weights is not None
    assert weights.stored.parts == "down"


def test_faster_is_more_than_noise(made: tuple[PackedModel, FfnProfile]) -> None:
    speeds = (99.0, 100.5, 102.0)
    found = [setting(made[1], "x", tokens_per_second=speed).faster for speed in speeds]
    assert found == [False, False, True]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the table of settings, and leave the rest as it is."""
    arrays = load(folder)
    table = json.loads(arrays["profile.json"].tobytes())
    change(table)
    arrays["profile.json"] = np.frombuffer(json.dumps(table).encode(), np.uint8)
    save(folder, arrays)


def load(folder: Path) -> dict[str, Any]:
    arrays = safetensors.numpy.load_file(folder / FILE)
    return {name: array for name, array in arrays.items() if not name.startswith("pad.")}


def save(folder: Path, arrays: dict[str, Any]) -> None:
    (folder / FILE).write_bytes(b"".join(bytes(part) for part in container.laid_out(arrays)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 7),
        ("name", "x" * 300),
        ("name", "few"),
        ("policy", "clever"),
        ("target", 1.5),
        ("target", -0.1),
        ("active_neurons", float("nan")),
        ("active_parameters", True),
        ("recall", 2),
        ("perplexity_change", -2.0),
        ("perplexity_change", float("inf")),
        ("positions", 0),
        ("threads", 0.5),
        ("controls", "potentials"),
        ("controls", [1]),
        ("controls", ["a"] * 9),
        ("plan", None),
        ("surprise", 1),
    ],
)
def test_settings_that_cannot_be_are_refused(
    made: tuple[PackedModel, FfnProfile], folder: Path, name: str, value: object
) -> None:
    rewrite(folder, lambda table: table["ffn"]["settings"][0].update({name: value}))
    with pytest.raises(FormatError, match=r"profile\.safetensors"):
        read(folder, made[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modes", ["gate"]),
        ("modes", ["gate", "sideways"]),
        ("modes", "gate"),
        ("modes", [1, 2]),
        ("gate_cutoffs", [0.1]),
        ("gate_cutoffs", [0.1, -1]),
        ("gate_cutoffs", [0.1, None]),
        ("contribution_cutoffs", [0.1, float("inf")]),
        ("contribution_cutoffs", [[0.1], 1]),
        ("candidates", "everyone"),
        ("candidates", ["all"]),
        ("floors", [1.5, 2]),
        ("caps", [1, True]),
        ("core", 1),
        ("attention", 100),
        ("attention", "strong"),
        ("sinks", 2.5),
        ("sinks", -1),
        ("surprise", 1),
    ],
)
def test_plans_that_cannot_be_are_refused(
    made: tuple[PackedModel, FfnProfile], folder: Path, name: str, value: object
) -> None:
    rewrite(folder, lambda table: table["ffn"]["settings"][0]["plan"].update({name: value}))
    with pytest.raises(FormatError, match=r"profile\.safetensors"):
        read(folder, made[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda ffn: ffn.pop("rank"),
        lambda ffn: ffn.update(rank=33),
        lambda ffn: ffn.update(rank=96),
        lambda ffn: ffn.update(rank=-32),
        lambda ffn: ffn.update(reason=None),
        lambda ffn: ffn.update(settings={}),
        lambda ffn: ffn.update(settings=ffn["settings"] * 40),
        lambda ffn: ffn.update(settings=[1]),
        lambda ffn: ffn["settings"][0].pop("plan"),
        lambda ffn: ffn["settings"][0].pop("recall"),
        lambda ffn: ffn["trials"][0].update(target="much"),
    ],
)
def test_tables_without_their_fields_are_refused(
    made: tuple[PackedModel, FfnProfile],
    folder: Path,
    change: Callable[[dict[str, Any]], object],
) -> None:
    rewrite(folder, lambda table: change(table["ffn"]))
    with pytest.raises(FormatError):
        read(folder, made[0])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ffn.implied", lambda a: np.full_like(a, 96)),
        ("ffn.implied", lambda a: np.full_like(a, -2)),
        ("ffn.implied", lambda a: np.repeat(a, 20, axis=1)),
        ("ffn.core", lambda a: a[:, :1]),
        ("ffn.core", lambda a: a.astype(np.int32)),
        ("ffn.weights", lambda a: -a),
        ("ffn.weights", lambda a: a * np.float32("nan")),
        ("ffn.norms", lambda a: a.T),
        ("ffn.floors", lambda a: a + 1000),
        ("ffn.frequency", lambda a: a + 1),
        ("ffn.frequency", lambda a: a - 1),
        ("ffn.frequency", lambda a: a[:1]),
        ("ffn.sharpness", lambda a: a - 1),
        ("ffn.tables.active", lambda a: a + 1),
        ("ffn.tables.dropped", lambda a: a - 1),
        ("ffn.tables.costs", lambda a: a * 0),
        ("ffn.tables.gate_cutoffs", lambda a: a[:, :1]),
        ("ffn.0.predictor.cutoffs", lambda a: a * np.float32("inf")),
        ("ffn.0.predictor.scores", lambda a: a[:, :, :272]),
        ("ffn.1.predictor.axes", lambda a: a[:1]),
        ("ffn.1.records", lambda a: a[:1]),
        ("ffn.1.shared", lambda a: a[:1]),
        ("ffn.1.gate_tiles", lambda a: a[:1]),
        ("ffn.1.gate_tiles", lambda a: a[:, :, :32]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    made: tuple[PackedModel, FfnProfile],
    folder: Path,
    name: str,
    change: Callable[[Any], Any],
) -> None:
    arrays = load(folder)
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    save(folder, arrays)
    with pytest.raises(FormatError):
        read(folder, made[0])


def test_profiles_that_do_not_say_how_often_neurons_fire_are_read(
    made: tuple[PackedModel, FfnProfile], folder: Path
) -> None:
    arrays = load(folder)
    assert same(arrays.pop("ffn.frequency"), made[1].rules.frequency)
    save(folder, arrays)
    assert read(folder, made[0]).rules.frequency is None


def test_profiles_that_hold_gates_of_the_dead_are_read(
    made: tuple[PackedModel, FfnProfile], tmp_path: Path
) -> None:
    """Under the name that they had when records alone were dropped."""
    model, profile = made
    rules = dataclasses.replace(profile.rules, alive=profile.rules.alive & np.uint32(0x5A5A5A5A))
    stored = tuple(layer_weights(model, i, "gate", rules.alive[i]) for i in (0, 1))
    kept = dataclasses.replace(profile, rules=rules, stored=stored)
    write_profile(tmp_path, Profile(model.info["weights_sha256"], None, kept))
    arrays = load(tmp_path)
    for layer in (0, 1):
        del arrays[f"ffn.{layer}.gate_tiles"]
        arrays[f"ffn.{layer}.gates"] = model.matrix(f"layers.{layer}.gate").joined()
    save(tmp_path, arrays)
    found = read(tmp_path, model)
    assert found.stored is not None
    for layer, few in zip(found.stored, stored, strict=True):
        assert layer.gates is not None
        assert layer.gates.rows == 96
        assert same(layer.records, few.records)


def test_masks_name_only_neurons_that_there_are(tmp_path: Path) -> None:
    model, profile = fitted(tmp_path, ffn_dim=80)
    rules = dataclasses.replace(profile.rules, core=profile.rules.core | np.uint32(1 << 20))
    for wrong in (False, True):
        found = dataclasses.replace(profile, rules=rules) if wrong else profile
        write_profile(tmp_path, Profile(model.info["weights_sha256"], None, found))
        if wrong:
            with pytest.raises(FormatError, match="neurons that there are not"):
                read(tmp_path, model)
        else:
            assert same(read(tmp_path, model), profile)


def test_records_of_another_size_are_refused_by_the_engine(
    made: tuple[PackedModel, FfnProfile], folder: Path
) -> None:
    model, _ = made
    arrays = load(folder)
    arrays["ffn.0.records"] = np.ascontiguousarray(arrays["ffn.0.records"][:, :-64])
    save(folder, arrays)
    with pytest.raises(StemError):
        Engine(model, threads=1, neurons=read(folder, model).neurons(model))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    made: tuple[PackedModel, FfnProfile], folder: Path, data: st.DataObject
) -> None:
    model, _ = made
    if not (folder / "whole").exists():
        (folder / "whole").write_bytes((folder / FILE).read_bytes())
    whole = (folder / "whole").read_bytes()
    if data.draw(st.booleans(), "cut"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1), "length")]
    else:
        place = data.draw(st.integers(0, 12000), "place")
        more = data.draw(st.binary(min_size=1, max_size=8), "bytes")
        damaged = whole[:place] + more + whole[place + len(more) :]
    (folder / FILE).write_bytes(damaged)
    try:
        found = read_profile(folder, model.config, model.info["weights_sha256"])
    except StemError:
        return
    assert found is not None
    if found.ffn is not None:
        assert len(found.ffn.plan(0.5).modes) == 2
