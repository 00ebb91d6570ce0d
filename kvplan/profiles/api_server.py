"""What an engine's API server takes of one core, by version: per request, prompt token, sequence and piece sent.

Measured on real servers (`benchmarks/live_frontend.py`); each row of `catalog/api_servers.yaml` says which.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import yaml

from kvplan.engines.flags import EngineVersion
from kvplan.ground.config import Config
from kvplan.ground.files import catalog_dir
from kvplan.profiles.engine_terms import Ranged


class ApiServerCosts(Config):
    """One engine's API server from one version on."""

    engine: str
    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] | None = None
    """First version that it no longer holds for; None: the newest."""
    request_ms: Ranged
    """CPU time of a request: HTTP, checks, the way to the engine and its end."""
    per_1k_tokens_ms: Ranged
    """CPU time of a thousand prompt tokens: text to tokens."""
    latency_ms: Ranged
    """Hops between processes and threads, of a request; nobody queues for them."""
    output_us: Ranged
    """CPU time of a sequence's new tokens: taken from the engine and made text."""
    send_us: Ranged
    """CPU time of a piece of a stream: written as an event and sent."""
    evidence: Literal["measured", "assumed"]
    source: str
    """Which measurements."""


@cache
def all_costs() -> tuple[ApiServerCosts, ...]:
    """Every row of the catalog, in its order."""
    return tuple(
        ApiServerCosts(**row) for row in yaml.safe_load((catalog_dir() / "api_servers.yaml").read_text())
    )


def find_costs(engine: EngineVersion) -> ApiServerCosts | None:
    """The row of an engine's version; None where nobody measured one."""
    return next((row for row in all_costs() if engine.is_between(row.engine, row.since, row.until)), None)
