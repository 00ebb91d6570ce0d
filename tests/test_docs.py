"""What the docs name exists: links, files, functions, and the map of rooms."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import ROOT
from test_layers import PACKAGE, ROOMS

import kvplan

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "calibration" / "README.md"]
PAGES += sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("README.md")])
FOLDERS = "kvplan|tests|benchmarks|scenarios|examples|docs|calibration"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file, and a heading in it where it names one."""
    for link, _, anchor in re.findall(r"\]\((?!http)([^)#]*)(#([^)]+))?\)", page.read_text()):
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{link}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_exist(page: Path) -> None:
    """Every path between backquotes that begins with a folder of the project, and every module's name."""
    text = page.read_text()
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text):
        made = "local" in path or "NAME" in path
        assert made or (ROOT / path).exists(), path
    for name in re.findall(r"`(kvplan(?:\.[a-z_]+)+)`", text):
        assert name.split(".")[1] in kvplan.__all__ or find_spec(name), name


@cache
def defined_in(room: str) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a room."""
    paths = (PACKAGE / room).rglob("*.py")
    found = set()
    for node in (n for path in paths if path.is_file() for n in ast.parse(path.read_text()).body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_map_has_the_rooms_in_their_order() -> None:
    rows = re.findall(r"^\| (\w+) \|", ARCHITECTURE.partition("## The life")[0], re.M)
    assert rows == ["room", *ROOMS]


def test_what_a_walk_names_is_in_that_room() -> None:
    """`name` (room)."""
    named = re.findall(r"`([\w.]+)`\s+\((\w+)\)", ARCHITECTURE)
    assert len(named) > 30
    for name, room in named:
        assert name in defined_in(room), f"{name} ({room})"


def test_recipes_name_what_they_say() -> None:
    """`NAME` in `file` or `NAME` of `file`."""
    for name, path in re.findall(r"`(\w+)`\s+(?:in|of)\s+`(kvplan/[\w/]+\.py)`", ARCHITECTURE):
        assert re.search(rf"^(def|class) {name}\b|^{name}\b", (ROOT / path).read_text(), re.M), (
            f"{name} in {path}"
        )
