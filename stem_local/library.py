"""Every model that there is to choose from: what is installed, and what the catalogue knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stem_runtime.cache_kinds import DEFAULT, memory_share
from stem_runtime.cache_kinds import CacheKind as CacheKind
from stem_runtime.errors import StemError

from . import catalog, machine, store
from .catalog import CatalogEntry
from .store import InstalledModel


@dataclass(frozen=True, slots=True)
class Choosable:
    """A model to choose, on this machine or not.

    `parameters`, `activation` and `context` are empty or 0 of a damaged model that the catalogue
    does not know. `size` is bytes on disk of an installed model, of another the bytes to download.
    `sparsity` is the published share of neurons that are zero, None where nothing is known.
    `needed` is the memory that it takes when it is run with the default context full, in bytes, 0
    where that is not known; see `machine.needed_bytes`.
    """

    name: str
    parameters: int
    size: int
    license: str
    activation: str
    sparsity: float | None
    context: int
    needed: int
    entry: CatalogEntry | None
    installed: InstalledModel | None = None
    calibrated: bool = False

    @property
    def usable(self) -> bool:
        return self.installed is not None and self.installed.damage is None


def choosable(kv_cache: CacheKind | None = None) -> list[Choosable]:
    """Installed models by name, then the rest of the catalogue in its order.

    `kv_cache` is what they would keep of the tokens they have read.
    """
    kind = kv_cache or DEFAULT
    here = [_installed(model, kind) for model in store.installed()]
    names = {model.name for model in here}
    known = catalog.entries().values()
    return here + [_known(entry, kind) for entry in known if entry.name not in names]


def decoding(model: InstalledModel) -> str:
    """What `auto` leaves out when this model decodes here, or why it leaves out nothing.

    A sentence, also where the model was damaged or removed meanwhile.
    """
    from stem_runtime.formats.packed import open_packed
    from stem_runtime.kernels import choose

    from .sparsity import Calibrated

    try:
        return Calibrated(open_packed(model.folder), choose().name).choose("auto").reason
    except StemError as error:
        return str(error)
    except OSError:
        return f"{model.name} is no longer there."


def _installed(model: InstalledModel, kind: CacheKind) -> Choosable:
    from stem_runtime.sparsity.profile import FILE

    entry = catalog.find(model.name)
    if model.damage is not None:
        return Choosable(
            name=model.name,
            parameters=entry.parameters if entry else 0,
            size=model.size,
            license=entry.license if entry else "",
            activation=entry.activation if entry else "",
            sparsity=entry.sparsity if entry else None,
            context=entry.context if entry else 0,
            needed=0,
            entry=entry,
            installed=model,
        )
    config, source = model.info["config"], model.info["source"]
    weights = _size_of(model.folder / "model.safetensors")
    kv_bytes = machine.kv_bytes(config, kind)
    return Choosable(
        name=model.name,
        parameters=model.info["parameters"],
        size=model.size,
        license=str(model.info.get("license") or source.get("license") or ""),
        activation=str(config["activation"]),
        sparsity=entry.sparsity if entry else None,
        context=int(config["context_length"]),
        needed=_needed(weights, kv_bytes, int(config["context_length"])),
        entry=entry,
        installed=model,
        calibrated=(model.folder / FILE).is_file(),
    )


def _known(entry: CatalogEntry, kind: CacheKind) -> Choosable:
    kv_bytes = round(entry.kv_bytes * memory_share(kind))
    return Choosable(
        name=entry.name,
        parameters=entry.parameters,
        size=entry.download,
        license=entry.license,
        activation=entry.activation,
        sparsity=entry.sparsity,
        context=entry.context,
        needed=_needed(entry.packed, kv_bytes, entry.context),
        entry=entry,
    )


def _needed(weights: int, kv_bytes: int, longest: int) -> int:
    from .api import DEFAULT_CONTEXT

    return machine.needed_bytes(weights, kv_bytes, min(longest, DEFAULT_CONTEXT))


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
