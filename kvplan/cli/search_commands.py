"""`kvplan recommend`: a ranked table of deployments for a workload and its targets."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from kvplan.cli.options import print_json
from kvplan.cli.progress import Progress
from kvplan.search.recommend_text import recommend_text
from kvplan.search.recommendation import recommend
from kvplan.search.sweeping import num_cores

SWITCH = Parameter(negative="")


def recommend_command(
    scenario: str,
    /,
    *,
    over: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    set: tuple[str, ...] = (),
    rate: float | None = None,
    users: int | None = None,
    deadline: float | None = None,
    spare: int | None = None,
    max_gpus: int | None = None,
    day: str | None = None,
    workers: int | None = None,
    backend: str = "local",
    address: str | None = None,
    force: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
) -> int:
    """Recommend deployments: which GPUs, flags and copies keep the targets at the lowest cost.

    Parameters
    ----------
    scenario
        A YAML file with `slo:` and `search:`, or a bundled scenario's name.
    over
        A key and its values, e.g. --over gpu=h100,h200 engine.tensor_parallel_size=1,2,4; added to search.over.
    set
        Change a key, as in kvplan simulate; may be repeated.
    rate
        Requests per second to carry. Without rate, users and deadline: as much as fits.
    users
        People to carry, each asking again once answered.
    deadline
        Seconds by which all requests must be done.
    spare
        Copies beyond those needed; 1 is the n+1 rule.
    max_gpus
        GPUs allowed in all.
    day
        Load over a day, a bundled profile: reasoning-api, office-hours.
    workers
        Processes; one per core by default.
    backend
        local, or ray.
    address
        Of a Ray cluster; without it one is started on this machine.
    force
        Allow more candidates than are sensible.
    json
        One JSON document on stdout.
    quiet
        No progress on stderr.
    """
    said = {
        "rate": rate,
        "users": users,
        "deadline_s": deadline,
        "spare": spare,
        "max_gpus": max_gpus,
        "day": day,
    }
    flags = [f"search.{key}={value}" for key, value in said.items() if value is not None]
    found = recommend(
        scenario, over, overrides=[*set, *flags], backend=backend, address=address, force=force,
        workers=num_cores() if workers is None else workers, progress=None if quiet else Progress(noun="candidates"),
    )  # fmt: skip
    if json:
        print_json(found.to_dict())
    else:
        print(recommend_text(found))
    return found.exit_code
