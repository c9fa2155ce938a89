"""The documentation says what is so: links, commands, targets, names and the generated page."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import stem_local
from stem_local.cli import main as command
from stem_runtime.families import FAMILIES
from stem_tui.cli import main as chat

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")])


def read(name: str | Path) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page))
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["cli", "config"])
def test_generated_pages_are_current(page: str) -> None:
    # in a process of its own: click keeps what a command was first called with
    command = [sys.executable, ROOT / "docs" / f"generate_{page}.py", "--check"]
    subprocess.run(command, check=True)


def test_changelog_has_this_version() -> None:
    assert f"\n## [{stem_local.__version__}]" in read("CHANGELOG.md")


def test_make_prints_the_targets_there_are() -> None:
    makefile = read("Makefile")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    printed = re.findall(r"^## make (\w+)", makefile, re.MULTILINE)
    assert set(phony.split()) == {*printed, "help", "model"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_examples_name_what_exists(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        elif words[:1] == ["stem-local"]:
            context = click.Context(command)
            verb = command.get_command(context, words[1])
            assert verb is not None, line
            verb.make_context(words[1], words[2:], parent=context)
        elif words[:1] == ["stem-chat"]:
            chat.make_context("stem-chat", words[1:])


def test_python_examples_use_what_exists() -> None:
    for block in blocks(ROOT / "README.md", "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "stem_local":
                    assert node.attr in stem_local.__all__
                elif node.value.id == "model":
                    assert hasattr(stem_local.Model, node.attr)


def test_readme_names_every_family() -> None:
    assert {family.name for family in FAMILIES} == set(
        re.findall(
            r"\*\*(\w+)\*\*", re.search(r"^Models of.*?\n\n", read("README.md"), re.M | re.S)[0]
        )
    )
