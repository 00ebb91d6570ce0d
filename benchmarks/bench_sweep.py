"""Sweeps and recommendations: points a second on one worker and on two, and how they compare with trying everything.

    python benchmarks/bench_sweep.py             all three
    python benchmarks/bench_sweep.py points 200  200 (by default 1,000) points of 500 reasoning requests each
    python benchmarks/bench_sweep.py brute       recommend against brute force on spaces of 576 and 128 points
    python benchmarks/bench_sweep.py rate        the highest rate against a fine scan

A machine that has other work to do stretches the wall time, so CPU seconds are printed beside it.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from math import inf, isclose
from time import perf_counter
from typing import Any

import numpy as np

from kvplan.scenario.schema import parse_scenario
from kvplan.scenario.space import Search
from kvplan.search.candidates import make_load_test, share_of, total_load
from kvplan.search.execution import Execution
from kvplan.search.grid import make_axes, make_points, read_base
from kvplan.search.highest_load import LoadTest, highest_load
from kvplan.search.point_row import run_point
from kvplan.search.recommending import recommend
from kvplan.search.sweeping import sweep_rows

REASONING: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "h100",
    "engine": {"max_model_len": 40960},
    "workload": {
        "num_requests": 500,
        "arrivals": {"kind": "poisson", "rate": 1.0},
        "prompt": {"kind": "lognormal", "median": 400, "sigma": 0.9, "low": 16, "high": 8192},
        "thinking": {"kind": "lognormal", "median": 6000, "sigma": 0.8, "low": 256, "high": 30720},
        "answer": {"kind": "lognormal", "median": 220, "sigma": 0.7, "low": 8, "high": 2048},
    },
    "slo": {"ttfvt_ms": 240000},
}
GRID = {
    "gpu": ["h100", "h200", "a100-80gb", "l40s"],
    "engine.kv_cache_dtype": ["auto", "fp8"],
    "engine.max_num_seqs": [32, 64, 128, 256, 512],
    "workload.arrivals.rate": [round(0.05 * 1.15**i, 4) for i in range(25)],
}  # 1,000 points, from idle to twice what the best of them sustains
SOLVING: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "h100",
    "engine": {"max_model_len": 32768},
    "problems": {
        "num_problems": 8,
        "arrivals": {"kind": "poisson", "rate": 1.0},
        "quality": {
            "name": "bench", "source": "assumed", "assumed": ["difficulty"], "thinking_tokens": 1500,
            "sigma_within": 0.3, "sigma_between": 0.3, "answer_tokens": 100,
        },
        "min_accuracy": 0.3,
    },
    "slo": {"e2el_ms": 60000, "share": 0.9},
    "search": {"rate": 0.5, "span": 1, "seeds": 1, "max_copies": 4, "max_gpus": 7},
}  # fmt: skip
BUDGETS = (400, 800, 1200, 1600)
STRATEGIES = [
    ["single_pass"],
    *([{"strategy": "extended_thinking", "thinking_token_budget": b}] for b in BUDGETS),
    *([{"strategy": "best_of_n", "n": n}] for n in (2, 4)),
    *([{"strategy": "self_consistency", "n": n}] for n in (3, 5)),
]
SOLVING_OVER = {
    "problems.strategies": STRATEGIES,
    "gpu": ["h100", "l40s", "l4", "t4"],
    "engine.tensor_parallel_size": [1, 2, 4, 8],
    "engine.kv_cache_dtype": ["auto", "fp8"],
    "engine.max_num_seqs": [8, 32],
}
"""9 x 4 x 4 x 2 x 2 = 576; a T4 does not hold the model, an L4 not its KV cache, and eight GPUs are too many."""
ASKING: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "h100",
    "engine": {"max_model_len": 32768},
    "workload": {
        "num_requests": 60,
        "arrivals": {"kind": "poisson", "rate": 1.0},
        "prompt": {"kind": "lognormal", "median": 300, "sigma": 0.7, "high": 2000},
        "thinking": {"kind": "lognormal", "median": 900, "sigma": 0.7, "high": 6000},
        "answer": 120,
    },
    "slo": {"e2el_ms": 45000, "share": 0.9},
    "search": {"rate": 4.0, "span": 1, "seeds": 1, "max_copies": 4, "max_gpus": 4},
}
ASKING_OVER = {
    "workload.max_tokens": [500, 1000, 2000, 4000],
    "gpu": ["h100", "l40s", "l4", "t4"],
    "engine.tensor_parallel_size": [1, 2],
    "engine.kv_cache_dtype": ["auto", "fp8"],
    "engine.max_num_seqs": [4, 32],
}
"""4 x 4 x 2 x 2 x 2 = 128; an L4 is too slow for a long answer, and four copies of it for the load."""


def cpu_s() -> float:
    """CPU seconds of this process and of the workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def points(number: int = 1000) -> None:
    """The grid, or a sample of it, on one worker, then on two."""
    took = {}
    for workers in (1, 2):
        start, cpu = perf_counter(), cpu_s()
        rows = sweep_rows(REASONING, GRID, sample=number, execution=Execution(workers=workers)).rows
        if workers > 1:
            _stop_workers()
        took[workers] = perf_counter() - start
        failed = sum(bool(row["error"]) for row in rows)
        used = cpu_s() - cpu
        print(f"{workers} worker{'s' * (workers > 1)}: {len(rows):,} points ({failed} without figures), "
              f"{took[workers]:.1f} s, {used:.1f} CPU s, {used / len(rows):.3f} a point")  # fmt: skip
    print(f"two workers: {took[1] / took[2]:.2f}x one")


def _stop_workers() -> None:
    """End the worker processes, so that their CPU time is counted."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


def brute() -> None:
    """Every candidate with 1, 2, 3 ... copies, against the recommendation."""
    for name, data, over in (("strategies", SOLVING, SOLVING_OVER), ("requests", ASKING, ASKING_OVER)):
        _compare(name, data, over)


def _compare(name: str, data: dict[str, Any], over: dict[str, Any]) -> None:
    search = Search.model_validate({**data["search"], "over": over})
    start = cpu_s()
    found = recommend(data, over)
    took = cpu_s() - start
    mine = {str(c.settings): c for c in found.candidates}
    simulations, same, worse, dropped, costs = 0, 0, 0, 0, []
    for point in make_points(read_base(data), make_axes(over)):
        answer, runs = _fewest(point.scenario, search)
        simulations += runs
        candidate = mine[str(point.settings)]
        costs += [answer[1]] if answer else []
        same += candidate.copies == (answer[0] if answer else None) if candidate.feasible or answer else 1
        worse += bool(answer and candidate.feasible and (candidate.copies or 0) > answer[0])
        dropped += bool(answer and candidate.pruned)
    assert found.best is not None
    causes = Counter(c.cause for c in found.candidates if c.pruned)
    said = f"{found.num_pruned} never simulated ({dict(causes)}), {dropped} of them feasible"
    print(f"{name}: {len(mine)} candidates, {len(costs)} feasible by brute force: {same} agree, {worse} with more "
          f"copies than needed; {said}")  # fmt: skip
    print(f"  best of all ${min(costs):.2f} an hour, recommended ${found.best.usd_per_hour:.2f}"
          f" ({'the same' if isclose(min(costs), found.best.usd_per_hour or 0) else 'WORSE'});"
          f" simulations {simulations:,} by brute force in {cpu_s() - start - took:.0f} CPU s,"
          f" {sum(c.num_simulations for c in found.candidates):,} here in {took:.0f}")  # fmt: skip


def _fewest(scenario: Any, search: Search) -> tuple[tuple[int, float] | None, int]:
    """The fewest copies that carry the load, and their price; and how many simulations that took.

    What the engine refuses is infeasible; what needs more GPUs than are allowed is simulated all the same.
    """
    test, runs = make_load_test(scenario, search), 0
    if scenario.problems is not None:
        row, runs = run_point(test.scenario), 1
        if row["error"] or row["accuracy"] < scenario.problems.min_accuracy:
            return None, runs
    for copies in range(1, search.max_copies + 1):
        load = share_of(total_load(scenario, search), copies, search.kind)
        row = run_point(test.at(load))
        if row["error"]:
            return None, runs
        runs += 1
        if row["slo_met"]:
            allowed = copies * row["num_gpus"] <= (search.max_gpus or inf)
            return ((copies, copies * row["usd_per_hour"]) if allowed else None), runs
    return None, runs


def rate() -> None:
    """The highest rate by bisection and by a scan in steps of 1 %."""
    for name, slo in (
        ("e2el 240 s, p95", {"e2el_ms": 240000, "share": 0.95}),
        ("tpot 15 ms", {"tpot_ms": 15}),
    ):
        data = {**REASONING, "slo": slo, "workload": {**REASONING["workload"], "num_requests": 200}}
        test = LoadTest(parse_scenario(data), "rate", span=1)
        found = highest_load(test)
        rates = np.geomspace(found.load / 2, found.load * 2, 140)
        met = [test.try_load(float(r)).met for r in rates]
        scanned = rates[max(np.flatnonzero(met))]
        print(f"{name}: {found.load:.4f}/s in {found.num_simulations} simulations, scan {scanned:.4f}/s in "
              f"{len(rates)}: {found.load / scanned - 1:+.1%}")  # fmt: skip


if __name__ == "__main__":
    parts = {"points": points, "brute": brute, "rate": rate}
    if sys.argv[1:2] == ["points"] and sys.argv[2:]:
        points(int(sys.argv[2]))
    else:
        for part in sys.argv[1:] or parts:
            parts[part]()
