"""The import rules: who may know whom, and what asking for a capacity must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "kvplan"

MEASURE = (
    "allocation", "attention", "mixed_attention", "probes", "steps", "transformers_batches", "triton_kernels",
)  # fmt: skip
"""The files that touch a GPU."""
PAGES = (
    "calibration", "deployments_tab", "memory_tab", "sidebar", "simulation_tab", "strategies_tab", "widgets",
)  # fmt: skip
"""The app's tabs; `app.py` itself lies outside the package."""
ONLY_IN = {
    "simpy": {"simulation/run.py"},
    "torch": {f"calibrate/measure/{name}.py" for name in MEASURE},
    "transformers": {"calibrate/measure/transformers_batches.py"},
    "triton": {"calibrate/measure/triton_kernels.py"},
    "altair": {f"charts/{name}.py" for name in ("drawing", "fits", "plans", "runs", "searches")},
    "streamlit": {f"pages/{name}.py" for name in PAGES},
    "ray": {"search/execution.py"},
    "joblib": {"search/execution.py"},
    "pynvml": {"gpu.py", "calibrate/measure/probes.py"},
}
"""Module -> the only files of the package that may import it (folders count as prefixes, ending in /)."""

PURE = ("formulas/", "timing/", "schedulers/", "workload/")
PURE_MAY = {"numpy", "pydantic", "kvplan", "yaml"}
STRANGERS = {  # room -> rooms it must not know
    "timing/": {"kvplan.schedulers", "kvplan.simulation", "kvplan.workload"},
    "schedulers/": {"kvplan.timing", "kvplan.workload", "kvplan.simulation"},
    "workload/": {"kvplan.timing", "kvplan.schedulers", "kvplan.simulation"},
}


def imports(path: Path) -> set[str]:
    """Every module name a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("name", FILES)
def test_rooms_keep_to_themselves(name: str) -> None:
    """Heavy libraries stay in their one file; pure rooms import numpy, pydantic and the standard library only."""
    found = imports(PACKAGE / name)
    roots = {m.split(".")[0] for m in found}
    for library, allowed in ONLY_IN.items():
        assert library not in roots or name in allowed, f"{name} must not import {library}"
    if name.startswith(PURE):
        foreign = {r for r in roots if r not in sys.stdlib_module_names} - PURE_MAY
        assert not foreign, f"{name} imports {foreign}"
    for room, strangers in STRANGERS.items():
        if name.startswith(room):
            known = {s for s in strangers for m in found if m == s or m.startswith(s + ".")}
            assert not known, f"{name} knows {known}"


def test_capacity_loads_nothing_heavy() -> None:
    """Asking whether a model fits needs neither torch nor simpy, pandas, streamlit."""
    code = "import kvplan.formulas.capacity, sys; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = {m.split(".")[0] for m in out.stdout.split()}
    assert not loaded & {"torch", "streamlit", "simpy", "pandas", "altair", "ray", "joblib", "pyarrow"}
