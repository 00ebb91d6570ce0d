"""What strangers hand to the app: bounded, read in a process of its own, naming none of the server's files."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from kvplan.ground.errors import KvplanError
from kvplan.ground.files import profiles_dir
from kvplan.models.load import find_bundled
from kvplan.pages.asked import OWN, TABLE, Asked, strategy_scenario
from kvplan.scenario.schema import Scenario, load_scenario
from kvplan.search.grid import make_axes, make_points, read_base
from kvplan.workload.pass_tables import as_pass_table

MAX_BYTES = 2 << 20
MAX_REQUESTS = 1_000_000
"""Of one simulation in the app; the command line takes more."""
MAX_CANDIDATES = 200
"""Of a search."""
MAX_BRANCHES = 200_000
"""Of one strategy over all its problems."""


def check_size(name: str, content: bytes) -> bytes:
    """The content. Raises KvplanError for what is too large."""
    if len(content) > MAX_BYTES:
        size = len(content) / 2**20
        raise KvplanError(f"{name}: {size:.1f} MiB; the app takes up to {MAX_BYTES >> 20} MiB")
    return content


def simulated(
    source: str, asked: Asked | None, changes: Sequence[str] = (), own: Sequence[str] = ()
) -> Scenario:
    """A scenario to simulate: a bundled one, a visitor's file, or the question's; changed as `--set` changes it.

    `own`: names of the visitor's files, which it may name. Raises KvplanError.
    """
    if asked is not None:
        return checked(asked.simulation(), own)
    return checked(load_scenario(source, changes), own)


def compared(
    source: str, asked: Asked | None, changes: Sequence[str] = (), own: Sequence[str] = ()
) -> Scenario:
    """A scenario of problems, on the question's model and cards if there is one. Raises KvplanError."""
    return checked(strategy_scenario(source, asked, changes, TABLE in own), own)


def checked(scenario: Scenario, own: Sequence[str] = ()) -> Scenario:
    """Refuse what would make the server read its own files, or work without an end; so for all that it searches."""
    _check_one(scenario, own)
    if scenario.search is not None and scenario.search.over:
        axes = make_axes(scenario.search.over)
        size = prod(len(axis.values) for axis in axes)
        if size > MAX_CANDIDATES:
            raise KvplanError(
                f"search.over: {size:,} candidates; here up to {MAX_CANDIDATES:,}, `kvplan recommend` takes more"
            )
        for point in make_points(read_base(scenario), axes):
            if point.scenario is not None:
                _check_one(point.scenario, own)
    return scenario


def _check_one(scenario: Scenario, own: Sequence[str]) -> None:
    _models(scenario, own)
    problems = scenario.problems
    for deployment in scenario.deployments.values():
        profile = deployment.step_time.profile
        if profile is not None and not _is_bundled_profile(profile):
            raise KvplanError(f"step_time.profile {profile!r}: here only bundled profiles can be used")
        _no_card_file(deployment.gpu)
    trace = scenario.workload.trace
    _no_file("workload.trace", trace.path if trace else None, own)
    if problems is not None and problems.pass_table is not None:
        for path in as_pass_table(problems.pass_table).paths:
            _no_file("problems.pass_table", path, own)
    _no_file("pricing.file", scenario.pricing.file, own)
    if scenario.workload.num_requests > MAX_REQUESTS:
        raise KvplanError(
            f"workload.num_requests {scenario.workload.num_requests:,}: here up to {MAX_REQUESTS:,}; "
            "`kvplan simulate` takes more"
        )
    if problems is not None:
        _branches(scenario)


def _models(scenario: Scenario, own: Sequence[str]) -> None:
    models = [d.model for d in scenario.deployments.values()]
    models += [model for d in scenario.deployments.values() for model in d.colocate.values()]
    problems = scenario.problems
    models += [problems.verifier.model] if problems and problems.verifier.model else []
    for name in models:
        if find_bundled(name) is None and not (name == OWN and OWN in own):
            raise KvplanError(
                f"model {name!r}: here bundled models can be simulated, and a config.json of your own"
            )


def _branches(scenario: Scenario) -> None:
    """Refuse more branches than a run may hold: problems times what a strategy makes of one."""
    assert scenario.problems is not None
    most = MAX_BRANCHES // max(1, scenario.problems.num_problems)
    for spec in (one for said in scenario.problems.strategies for one in said.expanded()):
        for key, value in spec.settings.items():
            is_number = isinstance(value, int) and not isinstance(value, bool) and "token" not in key
            if is_number and value > most:
                raise KvplanError(
                    f"{spec.strategy}: {key} {value:,} for each of {scenario.problems.num_problems:,} "
                    f"problems: here up to "
                    f"{MAX_BRANCHES:,} branches in all; `kvplan compare` takes more"
                )


def _is_bundled_profile(name: str) -> bool:
    return name in {path.stem for path in profiles_dir().glob("*.json")}


def _no_card_file(name: str) -> None:
    if name.casefold() == "local" or name.casefold().endswith((".yaml", ".yml")):
        raise KvplanError(
            f"gpu {name!r}: here a card is a name of `kvplan gpus`, or stated as gib=20,gbps=672,tflops=44"
        )


def _no_file(key: str, path: str | None, own: Sequence[str]) -> None:
    if path and path not in own:
        raise KvplanError(f"{key}: {path!r} is a file; here scenarios name none of the server's")
