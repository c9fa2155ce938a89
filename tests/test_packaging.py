"""What is installed, and which package may know which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "stem_runtime": ROOT / "runtime" / "stem_runtime",
    "stem_local": ROOT / "stem_local",
    "stem_tui": ROOT / "tui" / "stem_tui",
}
MAY_IMPORT = {
    "stem_runtime": set(),
    "stem_local": {"stem_runtime"},
    "stem_tui": {"stem_local"},
}
KEPT_OUT = {
    "stem_runtime": {"click", "huggingface_hub", "textual", "urllib", "http", "socket"},
    "stem_local": {"textual"},
    "stem_tui": {"numba", "numpy"},
}
GPU = {"torch", "triton"}
"""What only the GPU backend may import, which is itself imported only when it is asked for."""


def of_gpu(path: Path) -> bool:
    return "gpu" in path.parts


def imported_names(path: Path) -> set[str]:
    """Top-level names that a file imports absolutely, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package: str) -> None:
    forbidden = (PACKAGES.keys() - MAY_IMPORT[package] - {package}) | KEPT_OUT[package]
    found = {
        str(path.relative_to(ROOT)): sorted(bad)
        for path in PACKAGES[package].rglob("*.py")
        if (bad := imported_names(path) & (forbidden if of_gpu(path) else forbidden | GPU))
    }
    assert not found


def test_importing_stem_local_loads_nothing_heavy() -> None:
    heavy = (
        "numpy",
        "numba",
        "llvmlite",
        "tokenizers",
        "huggingface_hub",
        "jinja2",
        "gguf",
        "click",
    )
    code = f"import sys, stem_local; print(*[m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


def test_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = project["dependencies"] + extras["plot"] + extras["gpu"]
    declared = {canonical(re.split(r"[^A-Za-z0-9_.-]", need)[0]) for need in needs}
    sources = packages_distributions()
    files = (path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
    imported = set().union(*map(imported_names, files)) - sys.stdlib_module_names - set(PACKAGES)
    assert not any(need.startswith(("torch", "triton")) for need in project["dependencies"])
    found = {name: {canonical(source) for source in sources.get(name, [name])} for name in imported}
    assert {name for name, carriers in found.items() if not carriers & declared} == set()


def canonical(name: str) -> str:
    """A distribution's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_wheel_holds_the_three_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    shipped = {f"{package}/py.typed" for package in PACKAGES}
    texts = {str(p.relative_to(ROOT).as_posix()) for p in ROOT.glob("stem_local/*_text/*.txt")}
    assert len(texts) == 17
    assert shipped | texts | {"stem_local/catalog.toml"} <= set(names)
    for package, folder in PACKAGES.items():
        sources = {f"{package}/{p.relative_to(folder).as_posix()}" for p in folder.rglob("*.py")}
        assert sources <= set(names)
