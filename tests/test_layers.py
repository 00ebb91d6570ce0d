"""The layers: who may know whom, and what asking for a capacity must not load.

One list of rooms, bottom to top. A file imports its own room or lower ones. Imports inside functions and under
`TYPE_CHECKING` count, and so do module names in strings (`import_module("kvplan.cli.main")`, the table of commands).
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "kvplan"

FACE = ("__init__", "__main__", "capacity")
"""What stands above all rooms. Public names (`from kvplan import estimate`) are the face's: no room uses them."""
ROOMS = (
    "ground",
    "formulas",
    "models",
    "schedulers",
    "timing",
    "workload",
    "engines",
    "conformance",
    "profiles",
    "memory",
    "scenario",
    "calibrate",
    "simulation",
    "observed",
    "search",
    "charts",
    "cli",
    "pages",
    "face",
)
"""Bottom to top."""
STRANGERS = ("schedulers", "timing", "workload")
"""Rooms that do not know each other, whatever their order."""

ONLY_IN = {
    "simpy": ("simulation/run.py",),
    "torch": ("calibrate/measure",),
    "transformers": ("calibrate/measure",),
    "triton": ("calibrate/measure",),
    "altair": ("charts/",),
    "rich": ("cli/terminal.py", "cli/progress.py"),
    "streamlit": ("pages/",),
    "ray": ("search/execution.py",),
    "joblib": ("search/execution.py",),
    "pynvml": ("ground/gpu.py", "calibrate/measure"),
}
"""Module -> the only places of the package that may import it; a name is the beginning of a path."""
PURE = ("formulas/", "timing/", "schedulers/", "workload/")
PURE_MAY = {"numpy", "pydantic", "kvplan", "yaml"}

MODULE = re.compile(r"kvplan(\.\w+)+(:\w+)?")


def imports(path: Path, package: Path = PACKAGE) -> set[str]:
    """Every module that a file names, at any depth; `a.b.c` for `from a.b import c`."""
    return _imports(path.read_text(), ("kvplan", *path.relative_to(package).with_suffix("").parts))


@cache
def _imports(text: str, inside: tuple[str, ...]) -> set[str]:
    return {name for node in ast.walk(ast.parse(text)) for name in _named(node, inside)}


def _named(node: ast.AST, inside: tuple[str, ...]) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
            yield from ("kvplan.*" for alias in node.names if alias.name == "kvplan" and alias.asname)
        case ast.ImportFrom():
            above = inside[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        case ast.Attribute(value=ast.Name(id="kvplan")):  # after `import kvplan`
            yield f"kvplan.{node.attr}"
        case ast.Constant(value=str(text)) if MODULE.fullmatch(text):
            yield text.partition(":")[0]


def room_of(name: str, package: Path) -> str:
    """The room of a module or of a name in one.

    >>> room_of("kvplan.ground.errors.KvplanError", PACKAGE), room_of("kvplan.cli", PACKAGE)
    ('ground', 'cli')
    >>> room_of("kvplan.estimate", PACKAGE), room_of("kvplan.__version__", PACKAGE)
    ('face', 'ground')
    """
    part = [*name.split("."), "__init__"][1]
    if part in ("__version__", "__init__"):  # which the ground reads
        return "ground"
    return part if (package / part).is_dir() else "face"


def layer_faults(package: Path) -> list[str]:
    """Every import of a higher room, or of a stranger, as a line; empty where the layers hold."""
    faults = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        top = file.parts[0].removesuffix(".py")
        mine = "face" if top in FACE else room_of(f"kvplan.{top}", package)
        if mine not in ROOMS or (mine == "face" and top not in FACE):
            faults.append(f"{file} lies in no room of the list")
            continue
        for name in sorted(imports(path, package)):
            if not name.startswith("kvplan"):
                continue
            theirs = room_of(name, package)
            if theirs not in ROOMS:
                faults.append(f"{file} imports {name}, of no room of the list")
            elif ROOMS.index(theirs) > ROOMS.index(mine):
                faults.append(f"{file} ({mine}) imports {name} ({theirs})")
            elif mine != theirs and {mine, theirs} <= set(STRANGERS):
                faults.append(f"{file} ({mine}) knows {name} ({theirs})")
    return faults


def circle(package: Path) -> list[str]:
    """Files that import each other in a ring, if there are any."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = ["kvplan", *path.relative_to(package).with_suffix("").parts]
        modules[".".join(parts).removesuffix(".__init__")] = path
    graph = {}
    for module, path in modules.items():
        names = imports(path, package) if module != "kvplan" else set()
        graph[module] = {found for name in names if (found := _module(name, modules))} - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _module(name: str, modules: dict[str, Path]) -> str | None:
    """The module that a name is or lies in; the package itself is the face, which is not asked for circles."""
    while name not in modules and name:
        name = name.rpartition(".")[0]
    return name if name and name != "kvplan" else None


def test_a_file_imports_its_own_room_or_lower_ones() -> None:
    faults = layer_faults(PACKAGE)
    assert not faults, "\n".join(faults)


def test_no_files_import_each_other_in_a_ring() -> None:
    """Type-only and lazy imports count."""
    ring = circle(PACKAGE)
    assert not ring, " -> ".join(reversed(ring))


FORBIDDEN = {
    "at the top": ("schedulers/vllm/request_queue.py", "import kvplan.simulation.run\n"),
    "from, at the top": ("schedulers/vllm/request_queue.py", "from kvplan.simulation import run\n"),
    "inside a function": ("formulas/capacity.py", "def f():\n    from kvplan.memory.forward import Plan\n"),
    "for types only": (
        "timing/step.py",
        "import typing\nif typing.TYPE_CHECKING:\n    from kvplan.simulation.simulator import simulate\n",
    ),
    "a public name": ("workload/load.py", "from kvplan import simulate\n"),
    "an attribute": ("workload/load.py", "import kvplan\n\nverb = kvplan.estimate\n"),
    "another name": ("workload/load.py", "import kvplan as k\n\nverb = k.estimate\n"),
    "by its name in a string": (
        "profiles/profile.py",
        'from importlib import import_module\nm = import_module("kvplan.cli.main")\n',
    ),
    "relative": ("models/spec.py", "from ..search import bounds\n"),
    "a stranger": ("workload/load.py", "from kvplan.timing.step import StepTime\n"),
    "from the ground": ("ground/units.py", "from kvplan.formulas import capacity\n"),
    "a room not in the list": ("attic/dust.py", "x = 1\n"),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's Python files."""
    copy = tmp_path_factory.mktemp("tree") / "kvplan"
    shutil.copytree(PACKAGE, copy, ignore=lambda folder, names: [n for n in names if _is_data(folder, n)])
    return copy


def _is_data(folder: str, name: str) -> bool:
    return name == "__pycache__" or not (name.endswith(".py") or Path(folder, name).is_dir())


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_forbidden_import_is_found(copied: Path, what: str) -> None:
    """The rule itself is tested: each import, added to a copy of the tree, is a fault, and the only new one."""
    name, added = FORBIDDEN[what]
    path = copied / name
    before, known = path.read_text() if path.exists() else None, layer_faults(copied)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before or ''}\n\n{added}")
    try:
        [fault] = set(layer_faults(copied)) - set(known)
        assert fault.startswith(name)
    finally:
        path.write_text(before) if before is not None else shutil.rmtree(path.parent)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_ring_is_found(tmp_path: Path, lazy: bool) -> None:
    """Two files, one of them importing the other only inside a function."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("from kvplan.room import b\n")
    (tmp_path / "room" / "c.py").write_text("from kvplan.room.a import x\n")
    assert not circle(tmp_path)
    back = "from kvplan.room.a import x\n"
    (tmp_path / "room" / "b.py").write_text(f"def f():\n    {back}" if lazy else back)
    assert set(circle(tmp_path)) == {"kvplan.room.a", "kvplan.room.b"}


@pytest.mark.parametrize("name", sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")))
def test_heavy_libraries_stay_in_their_place(name: str) -> None:
    """And the pure rooms import numpy, pydantic, yaml and the standard library only."""
    roots = {module.split(".")[0] for module in imports(PACKAGE / name)}
    for library, allowed in ONLY_IN.items():
        assert library not in roots or name.startswith(allowed), f"{name} must not import {library}"
    if name.startswith(PURE):
        foreign = roots - PURE_MAY - sys.stdlib_module_names
        assert not foreign, f"{name} imports {foreign}"


def test_capacity_loads_nothing_heavy() -> None:
    """Asking whether a model fits needs neither torch nor simpy, pandas, streamlit."""
    code = "import kvplan.formulas.capacity, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {m.split(".")[0] for m in out.stdout.split()}
    assert not loaded & {"torch", "streamlit", "simpy", "pandas", "altair", "ray", "joblib", "pyarrow"}


ESTIMATE = """
import contextlib, io, sys
from kvplan.cli.main import run
with contextlib.redirect_stdout(io.StringIO()):
    run(["estimate", *sys.argv[1:], "--gpu", "h100"])
print(*sys.modules)
"""


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "google/gemma-3-27b-it"])
def test_a_cold_estimate_needs_no_arrays(model: str) -> None:
    """Neither numpy nor YAML nor what knows the time of a step."""
    out = subprocess.run(
        [sys.executable, "-c", ESTIMATE, model], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(out.stdout.split())
    assert "kvplan.memory.forward" in loaded
    assert not {"numpy", "yaml", "kvplan.timing.step", "kvplan.profiles.step_times"} & loaded
