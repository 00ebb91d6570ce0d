"""kvplan: KV-cache memory planner and serving simulator for long reasoning traces.

This module imports nothing heavy: public names load their module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ModelSpec": "kvplan.models.spec",
    "load_model": "kvplan.models.load",
    "GpuSpec": "kvplan.gpu",
    "get_gpu": "kvplan.gpu",
    "EngineArgs": "kvplan.engines.flags",
    "estimate": "kvplan.memory.plan",
    "Plan": "kvplan.memory.plan",
    "Scenario": "kvplan.scenario.schema",
    "load_scenario": "kvplan.scenario.schema",
    "Result": "kvplan.simulation.result",
    "sweep": "kvplan.search.sweeping",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Load a public name from its module the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'kvplan' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
