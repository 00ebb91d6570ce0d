"""How many requests one CPU second simulates where many things run at once, leaping and step by step in the same run.

lockstep = DeepSeek-R1 on eight H200, data-parallel attention and expert parallel: all ranks wait for the fullest.

    python benchmarks/bench_fleets.py            all rows
    python benchmarks/bench_fleets.py lockstep   one row
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import process_time
from typing import Any

from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.simulation.deploy import Setup, set_ups
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate

REASONING: dict[str, Any] = {
    "prompt": {"kind": "lognormal", "median": 512, "sigma": 0.6, "low": 32, "high": 4096},
    "answer": {"kind": "lognormal", "median": 6000, "sigma": 0.8, "low": 250, "high": 32_768},
}
"""Answers of 8,000 tokens on average."""


@dataclass(frozen=True)
class Row:
    """One case."""

    scenario: Callable[[int], dict[str, Any]]
    """Of so many requests."""
    num_requests: int
    num_stepped: int
    """Requests of the run step by step, which takes too long for all of them."""


def lockstep(num_requests: int) -> dict[str, Any]:
    """DeepSeek-R1, eight ranks."""
    arrivals = {"kind": "poisson", "rate": 2.0}
    return {
        "model": "deepseek-ai/DeepSeek-R1", "gpu": "h200",
        "engine": {"data_parallel_size": 8, "enable_expert_parallel": True, "max_model_len": 40_960},
        "workload": {"num_requests": num_requests, "arrivals": arrivals, **REASONING},
    }  # fmt: skip


ROWS = {
    "lockstep": Row(lockstep, 1000, 16),
}


def parsed(row: Row, num_requests: int) -> tuple[Scenario, dict[str, Setup]]:
    """The scenario, and its engines: planning them is not timed."""
    scenario = parse_scenario(row.scenario(num_requests) | {"limits": {"thrash_ratio": 1e6}})
    return scenario, set_ups(scenario)


def timed(row: Row, num_requests: int, step_by_step: bool) -> tuple[float, Result]:
    """Requests per CPU second, the best of three runs; one where it goes step by step."""
    scenario, setups = parsed(row, num_requests)
    best = 0.0
    for _ in range(1 if step_by_step else 3):
        start = process_time()
        result = simulate(scenario, setups=setups, step_by_step=step_by_step)
        best = max(best, num_requests / (process_time() - start))
    return best, result


def report(name: str) -> None:
    """Print one line."""
    row = ROWS[name]
    leaping, result = timed(row, row.num_requests, step_by_step=False)
    stepping, _ = timed(row, row.num_stepped, step_by_step=True)
    totals: Any = result.totals
    changes = totals.leaps + totals.steps - totals.leapt_steps
    n = row.num_requests
    print(f"{name:10}{n:>10,}{leaping:>12,.0f}{stepping:>12,.0f}{leaping / stepping:>8.0f}x{changes / n:>10.1f}"
          f"{totals.preemptions / n:>9.1f}")  # fmt: skip


def main() -> None:
    """Print requests per CPU second."""
    print(f"{'':10}{'requests':>10}{'per CPU s':>12}{'step':>12}{'':9}{'changes':>10}{'preempt':>9}")
    for name in sys.argv[1:] or ROWS:
        report(name)
    print("per request: changes = leaps and single steps, of all ranks or replicas")


if __name__ == "__main__":
    main()
