"""kvplan: KV-cache memory planner and serving simulator for long reasoning traces.

    plan       one question, one answer, with its doubt
    estimate   does it fit: memory, blocks, traces at once      simulate   how it behaves on a clock
    recommend  which deployments keep the targets               compare    which test-time strategy
    sweep      a grid over any keys of a scenario               reconcile  a real start-up log beside the plan

This module imports nothing heavy: public names load their module on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import FunctionType
from typing import Any

from kvplan.ground.errors import speaks_python
from kvplan.ground.pictures import DRAWN

__version__ = "0.1.0"

_HOME = {
    "Demand": "kvplan.memory.demand",
    "EngineArgs": "kvplan.engines.flags",
    "GpuSpec": "kvplan.ground.gpu",
    "KvplanError": "kvplan.ground.errors",
    "ModelSpec": "kvplan.models.spec",
    "Plan": "kvplan.memory.forward",
    "Profile": "kvplan.profiles.profile",
    "Result": "kvplan.simulation.result",
    "Scenario": "kvplan.scenario.schema",
    "compare": "kvplan.search.comparison",
    "estimate": "kvplan.memory.forward",
    "get_gpu": "kvplan.ground.gpu",
    "load_model": "kvplan.models.load",
    "load_profile": "kvplan.profiles.profile",
    "load_scenario": "kvplan.scenario.schema",
    "plan": "kvplan.search.planning",
    "recommend": "kvplan.search.recommending",
    "reconcile": "kvplan.observed.reconciliation",
    "simulate": "kvplan.simulation.in_full",
    "sweep": "kvplan.search.sweeping",
    "what_would_fit": "kvplan.memory.inverse",
}

_DRAWN = {
    "Plan": {"memory": "kvplan.charts.plans:memory_bar"},
    "Result": {
        "kv": "kvplan.charts.runs:kv_over_time",
        "queue": "kvplan.charts.runs:queue_over_time",
        "latency": "kvplan.charts.runs:latency_shares",
    },
    "Comparison": {
        "pareto": "kvplan.charts.searches:pareto",
        "per_gpu_hour": "kvplan.charts.searches:correct_per_gpu_hour",
    },
    "Recommendation": {
        "ranking": "kvplan.charts.searches:ranking",
        "speed": "kvplan.charts.searches:speed_and_throughput",
    },
}
"""What `result.plot` draws: class -> picture -> function of the charts. Add a picture here."""
DRAWN.update(_DRAWN)

__all__ = ["__version__", *sorted(_HOME)]

_MOVED = {
    "kvplan.accounting": "kvplan.formulas.accounting",
    "kvplan.capacity_mix": "kvplan.formulas.varying",
    "kvplan.charts_runs": "kvplan.charts.runs",
    "kvplan.compare": "the function kvplan.compare; its module is kvplan.search.comparison",
    "kvplan.compare_run": "kvplan.observed.recorded_run",
    "kvplan.config": "kvplan.ground.config",
    "kvplan.content": "kvplan.ground.content",
    "kvplan.engine": "kvplan.schedulers.vllm; its command is `python -m kvplan.conformance`",
    "kvplan.engine_args": "kvplan.engines.flags",
    "kvplan.engine_sglang": "kvplan.schedulers.sglang; its command is `python -m kvplan.conformance --engine sglang`",
    "kvplan.errors": "kvplan.ground.errors",
    "kvplan.files": "kvplan.ground.files",
    "kvplan.gpu": "kvplan.ground.gpu",
    "kvplan.layout": "kvplan.memory.layout",
    "kvplan.limits": "kvplan.ground.limits",
    "kvplan.metrics": "kvplan.simulation.metrics",
    "kvplan.model": "kvplan.models",
    "kvplan.plan": "the function kvplan.plan; its module is kvplan.search.planning",
    "kvplan.planning": "kvplan.memory",
    "kvplan.profile": "kvplan.profiles.profile",
    "kvplan.quality": "kvplan.formulas.quality",
    "kvplan.recommend": "the function kvplan.recommend; its module is kvplan.search.recommending",
    "kvplan.reconcile": "the function kvplan.reconcile; its module is kvplan.observed.reconciliation",
    "kvplan.records": "kvplan.simulation.records",
    "kvplan.resources": "kvplan.ground.files",
    "kvplan.result": "kvplan.simulation.result",
    "kvplan.simulate": "the function kvplan.simulate; its room is kvplan.simulation",
    "kvplan.trace": "kvplan.simulation.trace",
    "kvplan.units": "kvplan.ground.units",
    "kvplan.weights": "kvplan.models.weights",
}
"""Modules that notebooks and scripts imported in 0.1, and what to import now."""


class _Moved:
    """Asked last of all finders, for modules that nobody found: says where a moved one is now."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in _MOVED:
            raise ModuleNotFoundError(f"{name} is now {_MOVED[name]}", name=name)
        return None


if _Moved not in sys.meta_path:
    sys.meta_path.append(_Moved)


def __getattr__(name: str) -> Any:
    """Load a public name from its module the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'kvplan' has no attribute {name!r}")
    found = getattr(import_module(_HOME[name]), name)
    if isinstance(found, FunctionType):
        found = globals()[name] = speaks_python(found)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
