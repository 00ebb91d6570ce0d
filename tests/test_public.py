"""The public surface: what `kvplan` offers by name, and that nothing shadows it."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT

import kvplan

VERBS = ("compare", "estimate", "plan", "recommend", "reconcile", "simulate", "sweep")
NAMES = (
    *("Demand", "EngineArgs", "GpuSpec", "KvplanError", "ModelSpec", "Plan", "Profile", "Result", "Scenario"),
    *VERBS,
    *("get_gpu", "load_model", "load_profile", "load_scenario", "what_would_fit"),
)
FEW = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "workload": {"num_requests": 3}}
OPTIONAL = {
    "torch",
    "triton",
    "transformers",
    "streamlit",
    "altair",
    "pandas",
    "joblib",
    "pyarrow",
    "ray",
    "pynvml",
    "vl_convert",
}


def modules() -> list[str]:
    """Every module of the package but the ones that run on import."""
    found = pkgutil.walk_packages(kvplan.__path__, "kvplan.")
    return [m.name for m in found if not m.name.endswith("__main__")]


def test_all_names_are_listed() -> None:
    """`__all__` is the whole surface, and each name loads."""
    assert set(kvplan.__all__) == {"__version__", *NAMES} == set(dir(kvplan))
    for name in NAMES:
        assert getattr(kvplan, name).__name__ == name


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: kvplan.plan("Qwen/Qwen3-8B"), "say users= (people at once) or rate="),
        (lambda: kvplan.plan("Qwen/Qwen3-8B", users=5, thinking="200K"), "thinking=33098 would fit"),
        (lambda: kvplan.estimate("Qwen/Qwen3-8B", "gib=3"), "gpu='gib=3': gbps, tflops missing"),
        (lambda: kvplan.sweep("chat", []), "e.g. over=['gpu=h100,h200']"),
        (lambda: kvplan.sweep("chat", ["engine.max_num_seqs=1,2"], workers=0), "workers=0: at least 1"),
        (
            lambda: kvplan.estimate("Qwen/Qwen3-8B", "h100", kvplan.EngineArgs(max_model_len=10**6)),
            "max_model_len=1,000,000: Qwen/Qwen3-8B is made for",
        ),
    ],
)
def test_functions_complain_of_parameters_not_of_flags(ask: Callable[[], object], said: str) -> None:
    """The commands call the same functions and complain of flags."""
    with pytest.raises(kvplan.KvplanError) as raised:
        ask()
    assert said in str(raised.value)
    assert "--" not in str(raised.value)


def test_functions_travel_to_other_processes() -> None:
    """They pickle by their public name."""
    assert all(pickle.loads(pickle.dumps(getattr(kvplan, name))) is getattr(kvplan, name) for name in VERBS)


def test_verbs_stay_functions_after_every_submodule_was_imported() -> None:
    """Importing a submodule binds it in its package; none may take a verb's place."""
    code = f"""
import importlib, kvplan
for name in {modules()!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {OPTIONAL!r}:
            raise
for verb in {VERBS!r}:
    value = getattr(kvplan, verb)
    assert callable(value) and type(value).__name__ == "function", verb
plan = kvplan.estimate("Qwen/Qwen3-8B", "h100")
assert plan.num_traces > 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_module_bears_the_name_of_a_verb() -> None:
    """Neither a room nor a file of one."""
    assert not [name for name in modules() if name.rpartition(".")[2] in VERBS]


def test_no_two_public_classes_bear_one_name() -> None:
    """Whoever reads a name knows which one is meant."""
    homes: dict[str, list[str]] = {}
    for path in sorted((ROOT / "kvplan").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path.name)
    assert not {name: files for name, files in homes.items() if len(files) > 1}


def test_capacity_keeps_its_public_name() -> None:
    """`kvplan.capacity` offers every closed form."""
    import kvplan.capacity
    from kvplan.formulas import capacity

    assert kvplan.capacity.__all__ == capacity.__all__
    assert all(getattr(kvplan.capacity, name) is getattr(capacity, name) for name in capacity.__all__)


@pytest.mark.parametrize("old", sorted(kvplan._MOVED))
def test_moved_modules_say_where_they_are_now(old: str) -> None:
    """One line with the new place, which exists."""
    with pytest.raises(ModuleNotFoundError, match=f"{old} is now ") as error:
        importlib.import_module(old)
    new = str(error.value).partition(" is now ")[2].rpartition(" is ")[2].split(";")[0]
    if "python -m" not in new:
        assert importlib.util.find_spec(new.removeprefix("the function ")), new


def test_a_typo_is_not_a_moved_module() -> None:
    """Only moved modules get a hint."""
    with pytest.raises(ModuleNotFoundError, match=r"No module named .kvplan\.plam."):
        importlib.import_module("kvplan.plam")


def test_verbs_take_names_files_and_dictionaries(tmp_path: Path) -> None:
    """A scenario is what its file says, however it is handed over."""
    said = FEW
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(said))
    results = [kvplan.simulate(given) for given in (said, path, str(path), kvplan.load_scenario(path))]
    assert len({result.duration_s for result in results}) == 1
    with pytest.raises(kvplan.KvplanError, match="nothing to compare"):
        kvplan.compare(said)


def test_a_frame_without_pandas_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result's `to_frame` says what is missing and what needs nothing."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    results = [
        kvplan.estimate("Qwen/Qwen3-8B", "h100"),
        kvplan.simulate(FEW),
    ]
    for result in results:
        with pytest.raises(kvplan.KvplanError, match=r"need pandas: pip install"):
            result.to_frame()
