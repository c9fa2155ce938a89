"""The FFN part of a profile's file."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import UsageError
from ..quant import GROUP, GROUP_BYTES, Kind, groups_of
from .budget import POLICIES
from .container import MAX_TEXT, Arrays, Container
from .ffn_profile import FfnProfile, FfnRules, FfnSetting, PolicyTrial
from .neurons import PARTS, LayerWeights, Parts, Predictor
from .plan import FfnPlan
from .potentials import LEVELS, FfnTables

_MAX_SETTINGS = 64
_MAX_IMPLIED = 64
_MAX_RANK = 4096
_MAX_RECORD = 1 << 22  # bytes of a neuron
_TABLES = ("gate_cutoffs", "contribution_cutoffs", "gated", "active", "groups", "dropped")
_SHARES = ("gated", "active", "groups")
_PARTS_OF_TABLE = {"settings", "trials", "rank", "parts", "reason"}
_PLAN = {field.name for field in dataclasses.fields(FfnPlan)}


def ffn_table(ffn: FfnProfile) -> dict[str, Any]:
    """The part of the table of settings; tuples become lists."""
    return {
        "settings": [setting.to_dict() for setting in ffn.settings],
        "trials": [dataclasses.asdict(trial) for trial in ffn.trials],
        "rank": 0 if ffn.predictors is None else ffn.predictors[0].axes.rows,
        "parts": "" if ffn.stored is None else ffn.stored[0].parts,
        "reason": ffn.reason,
    }


def ffn_arrays(ffn: FfnProfile) -> Arrays:
    """The tensors."""
    found: dict[str, NDArray[Any]] = {}
    for prefix, part in (("ffn.tables.", ffn.tables), ("ffn.", ffn.rules)):
        for field in dataclasses.fields(part):
            array = getattr(part, field.name)
            if field.name == "implied" and array is not None:
                array = array.reshape(-1, array.shape[2])
            if array is not None:
                found[prefix + field.name] = array
    for layer, predictor in enumerate(ffn.predictors or ()):
        name = f"ffn.{layer}.predictor."
        found[name + "axes"] = predictor.axes.joined()
        found[name + "scores"] = predictor.scores.joined()
        found[name + "cutoffs"] = predictor.cutoffs
    for layer, stored in enumerate(ffn.stored or ()):
        found[f"ffn.{layer}.records"] = stored.records
        found[f"ffn.{layer}.shared"] = stored.shared
        if stored.gates is not None:
            found[f"ffn.{layer}.gate_tiles"] = stored.gates.joined()
    return found


def read_ffn(file: Container, config: ModelConfig) -> FfnProfile:
    """The FFN part of a file. Raises FormatError for what a model of this shape cannot have."""
    table = file.table["ffn"]
    if not isinstance(table, dict) or set(table) != _PARTS_OF_TABLE:
        raise file.error("the table of the FFNs is not whole")
    lists = (table["settings"], table["trials"])
    if not all(isinstance(part, list) and len(part) <= _MAX_SETTINGS for part in lists):
        raise file.error("the table of the FFNs has too many settings, or none")
    rank, reason = table["rank"], table["reason"]
    if type(rank) is not int or rank % GROUP or not 0 <= rank <= min(_MAX_RANK, config.d_model):
        raise file.error("the predictors' rank does not fit this model")
    parts = table["parts"]
    if parts != "" and parts not in PARTS:
        raise file.error(f"records cannot be of {parts!r:.40}")
    if not isinstance(reason, str) or len(reason) > MAX_TEXT:
        raise file.error("the reason is no sentence")
    settings = tuple(_setting(file, config, values) for values in table["settings"])
    if len({setting.name for setting in settings}) != len(settings):
        raise file.error("two settings have one name")
    layers = range(config.n_layers)
    rules = _rules(file, config)
    return FfnProfile(
        settings,
        tuple(file.settings(PolicyTrial, values) for values in table["trials"]),
        _tables(file, config),
        rules,
        tuple(_predictor(file, config, i, rank) for i in layers) if rank else None,
        tuple(_stored(file, config, i, parts, rules.alive[i]) for i in layers) if parts else None,
        reason,
    )


def _setting(file: Container, config: ModelConfig, values: Any) -> FfnSetting:
    if not isinstance(values, dict) or "plan" not in values or "controls" not in values:
        raise file.error("a setting of the FFNs is not whole")
    flat = {name: value for name, value in values.items() if name not in ("plan", "controls")}
    controls = values["controls"]
    words = isinstance(controls, list) and len(controls) <= 8
    if not words or not all(isinstance(word, str) and len(word) <= MAX_TEXT for word in controls):
        raise file.error("the controls of a setting are not a list of names")
    known = file.settings(_Flat, flat)
    if known.policy not in POLICIES or known.threads < 1 or known.positions < 1:
        raise file.error(f"setting {known.name!r:.40} has a policy or counts that cannot be")
    if max(known.target, known.active_neurons, known.active_parameters, known.recall) > 1.001:
        raise file.error(f"setting {known.name!r:.40} has a share over 1")
    plan = _plan(file, config, values["plan"])
    return FfnSetting(**flat, controls=tuple(controls), plan=plan)


_Flat: Any = dataclasses.make_dataclass(
    "FfnSetting",
    [
        (field.name, field.type)
        for field in dataclasses.fields(FfnSetting)
        if field.name not in ("plan", "controls")
    ],
)


def _plan(file: Container, config: ModelConfig, values: Any) -> FfnPlan:
    if not isinstance(values, dict) or set(values) != _PLAN:
        raise file.error("a plan is not whole")
    known: dict[str, Any] = {}
    for name, value in values.items():
        known[name] = tuple(value) if isinstance(value, list) else value
        if name in ("core", "implications"):
            fits = isinstance(value, bool)
        elif name == "candidates":
            fits = isinstance(value, str)
        elif name in ("attention", "sinks"):
            fits = _number(value, name == "sinks")
        elif name == "modes":
            fits = isinstance(value, list) and all(isinstance(mode, str) for mode in value)
        else:
            whole = name in ("floors", "caps")
            fits = (whole and value is None) or (
                isinstance(value, list) and all(_number(item, whole) for item in value)
            )
        if not fits:
            raise file.error(f"{name} of a plan cannot be {value!r:.40}")
    if len(known["modes"]) != config.n_layers:
        raise file.error("a plan is for another number of layers")
    try:
        return FfnPlan(**known)
    except UsageError as error:
        raise file.error(f"a plan cannot be: {error}") from None


def _number(value: Any, whole: bool) -> bool:
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    return type(value) in kinds and 0 <= value < 2**31


def _tables(file: Container, config: ModelConfig) -> FfnTables:
    n = config.n_layers
    found = {name: file.array(f"ffn.tables.{name}", "F32", (n, 2, LEVELS)) for name in _TABLES}
    found["costs"] = file.array("ffn.tables.costs", "F32", (n, 4))
    for name in ("hurts", "learned"):
        found[name] = file.array(f"ffn.tables.{name}", "F32", (n,))
    found["gather"] = file.array("ffn.tables.gather", "F32", (2,))
    if any(array.size and array.min() < 0 for array in found.values()):
        raise file.error("a table of the FFNs has numbers under 0")
    if any(found[name].max() > 1 for name in _SHARES) or not found["costs"].any():
        raise file.error("a table of the FFNs has shares over 1 or no costs")
    return FfnTables(**found)


def _rules(file: Container, config: ModelConfig) -> FfnRules:
    n, ffn = config.n_layers, config.ffn_dim
    groups = groups_of(ffn)
    rules = FfnRules(
        weights=file.array("ffn.weights", "F32", (n, ffn)),
        norms=file.array("ffn.norms", "F32", (n, ffn)),
        core=file.array("ffn.core", "U32", (n, groups)),
        alive=file.array("ffn.alive", "U32", (n, groups)),
        implied=_implied(file, config) if file.has("ffn.implied") else None,
        sharpness=file.array("ffn.sharpness", "F32", (n, 2)),
        floors=file.array("ffn.floors", "F32", (n,)),
        caps=file.array("ffn.caps", "F32", (n,)),
        frequency=(
            file.array("ffn.frequency", "F32", (n, ffn)) if file.has("ffn.frequency") else None
        ),
    )
    if min(rules.weights.min(), rules.norms.min(), rules.sharpness.min()) < 0:
        raise file.error("the weights of the FFNs' neurons are under 0")
    if not ((rules.floors >= 0) & (rules.floors <= rules.caps) & (rules.caps < 1e6)).all():
        raise file.error("floors and caps of the FFNs do not fit this model")
    if rules.frequency is not None and not ((rules.frequency >= 0) & (rules.frequency <= 1)).all():
        raise file.error("the FFNs' neurons fire less than never or more than always")
    if ffn % GROUP and ((rules.core | rules.alive)[:, -1] >> np.uint32(ffn % GROUP)).any():
        raise file.error("the masks of the FFNs name neurons that there are not")
    return rules


def _implied(file: Container, config: ModelConfig) -> NDArray[np.int32]:
    flat = file.width("ffn.implied", "I32", config.n_layers * config.ffn_dim, _MAX_IMPLIED)
    if flat.size and not -1 <= flat.min() <= flat.max() < config.ffn_dim:
        raise file.error("the implications of the FFNs name neurons that there are not")
    return flat.reshape(config.n_layers, config.ffn_dim, -1)


def _predictor(file: Container, config: ModelConfig, layer: int, rank: int) -> Predictor:
    name = f"ffn.{layer}.predictor."
    kinds: tuple[Kind, ...] = ("int4", "int8")  # profiles were int8 before
    return Predictor(
        file.matrix(name + "axes", rank, config.d_model, kinds),
        file.matrix(name + "scores", config.ffn_dim, rank, kinds),
        file.array(name + "cutoffs", "F32", (config.ffn_dim,)),
    )


def _stored(
    file: Container, config: ModelConfig, layer: int, parts: Parts, alive: NDArray[np.uint32]
) -> LayerWeights:
    name, ffn = f"ffn.{layer}.", config.ffn_dim
    # profiles from before the dead were dropped have everyone's
    whole = file.length(name + "records") == ffn
    count = ffn if whole else int(np.bitwise_count(alive).sum())
    records = file.width(name + "records", "U8", count, _MAX_RECORD, copied=True)
    shared = file.width(name + "shared", "U8", groups_of(ffn), _MAX_RECORD, copied=True)
    if parts == "down":
        return LayerWeights(records, shared, parts)
    if file.length(name + "gate_tiles"):
        name, rows = name + "gate_tiles", count
    else:  # profiles from when the dead kept their gates
        name, rows = name + "gates", ffn
    gates = file.matrix(name, rows, config.d_model, tuple(GROUP_BYTES), copied=True)
    return LayerWeights(records, shared, parts, gates)
