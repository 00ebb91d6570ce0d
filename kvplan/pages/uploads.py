"""What strangers hand to the app: bounded, read through a temporary folder, never reaching the server's other files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from kvplan.errors import KvplanError
from kvplan.files import profiles_dir
from kvplan.models.load import find_bundled, load_model
from kvplan.models.spec import ModelSpec
from kvplan.scenario.schema import Scenario, load_scenario
from kvplan.workload.pass_tables import as_pass_table

T = TypeVar("T")

MAX_BYTES = 2 << 20
MAX_REQUESTS = 1_000_000
"""Of one simulation in the app; the command line takes more."""


def through_files(read: Callable[..., T], *files: tuple[str, bytes]) -> T:
    """Call `read` with paths to these (name, content) pairs, written to a folder that is gone afterwards.

    Raises KvplanError for what is too large, and what `read` raises, without the folder's name.
    """
    for name, content in files:
        check_size(name, content)
    with tempfile.TemporaryDirectory(prefix="kvplan-") as folder:
        paths = [Path(folder) / Path(name).name for name, _ in files]
        for path, (_, content) in zip(paths, files, strict=True):
            path.write_bytes(content)
        try:
            return read(*paths)
        except KvplanError as error:
            raise KvplanError(str(error).replace(f"{folder}/", "")) from None


def check_size(name: str, content: bytes) -> None:
    """Raise KvplanError for what is too large."""
    if len(content) > MAX_BYTES:
        size = len(content) / 2**20
        raise KvplanError(f"{name}: {size:.1f} MiB; the app takes up to {MAX_BYTES >> 20} MiB")


def model_from_text(text: str) -> ModelSpec:
    """A model from a pasted config.json. Raises KvplanError for what is not one."""
    if not text.strip():
        raise KvplanError("paste a config.json, or choose a bundled model")
    return through_files(load_model, ("pasted.json", text.encode()))


def scenario_from_text(text: str, name: str = "uploaded") -> Scenario:
    """A scenario from YAML text that names no files. Raises KvplanError."""
    return checked(through_files(load_scenario, (f"{name}.yaml", text.encode())))


def scenario_by_name(name: str, overrides: Sequence[str] = ()) -> Scenario:
    """A bundled scenario, changed as `--set` changes it. Raises KvplanError."""
    return checked(load_scenario(name, overrides))


def checked(scenario: Scenario) -> Scenario:
    """Refuse what would make the server read its own files, or work without an end."""
    models = [d.model for d in scenario.deployments.values()]
    models += [model for d in scenario.deployments.values() for model in d.colocate.values()]
    problems = scenario.problems
    if problems is not None:
        models += [problems.verifier.model] if problems.verifier.model else []
        if problems.pass_table is not None:
            _no_file("problems.pass_table", as_pass_table(problems.pass_table).paths[0])
    for name in models:
        if find_bundled(name) is None:
            raise KvplanError(
                f"model {name!r}: here only bundled models can be simulated; see `kvplan models`"
            )
    for deployment in scenario.deployments.values():
        profile = deployment.step_time.profile
        if profile is not None and not _is_bundled_profile(profile):
            raise KvplanError(f"step_time.profile {profile!r}: here only bundled profiles can be used")
    trace = scenario.workload.trace
    _no_file("workload.trace", trace.path if trace else None)
    if scenario.workload.num_requests > MAX_REQUESTS:
        raise KvplanError(
            f"workload.num_requests {scenario.workload.num_requests:,}: here up to {MAX_REQUESTS:,}; "
            "`kvplan simulate` takes more"
        )
    return scenario


def _is_bundled_profile(name: str) -> bool:
    return name in {path.stem for path in profiles_dir().glob("*.json")}


def _no_file(key: str, path: str | None) -> None:
    if path:
        raise KvplanError(f"{key}: {path!r} is a file; here scenarios name none, `kvplan simulate` reads it")
