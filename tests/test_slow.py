"""`make quick`: what it leaves out exists, and every room keeps laws in it."""

from __future__ import annotations

import ast
from functools import cache

from places import TESTS
from slow import SLOW, slow_names
from test_layers import PACKAGE


@cache
def _tests(path: str) -> set[str]:
    nodes = ast.walk(ast.parse((TESTS / path).read_text()))
    return {n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def test_what_is_listed_exists() -> None:
    for name in SLOW:
        path, _, function = name.partition("::")
        assert (TESTS / path).is_file(), name
        assert not function or function in _tests(path), name


def test_every_room_is_in_make_quick() -> None:
    """Of each folder of tests at least three run."""
    for folder in (path for path in TESTS.iterdir() if (PACKAGE / path.name).is_dir()):
        files = [path.relative_to(TESTS).as_posix() for path in folder.glob("test_*.py")]
        quick = [f"{f}::{t}" for f in files if f not in SLOW for t in _tests(f) if f"{f}::{t}" not in SLOW]
        assert len(quick) >= 3 or not files, folder.name


def test_measuring_rewrites_the_lines_of_what_ran() -> None:
    known = {"a.py", "b.py::old", "c.py::other"}
    took = {"b.py::old": 0.1, "b.py::new": 2.0, "a.py::long": 9.0}
    assert slow_names(known, took) == {"a.py", "b.py::new", "c.py::other"}
