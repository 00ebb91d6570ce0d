"""Speed of strategies, one core: accuracies of each bundled scenario, and large ones on the simulator.

First CPU seconds until every accuracy of a scenario is known to 2 points (goal: 20), without an engine. Then of the
whole `solve()` call, records and all: 64,000 branches of 8k tokens, a large beam, a large GRPO step; `compare` makes
three such runs. Beside them their ratio to a bare Python loop of the same machine, so that slow machines can be
compared.
"""

from __future__ import annotations

import time
from pathlib import Path

from kvplan.scenario.schema import load_scenario, parse_scenario
from kvplan.search.expected_accuracy import lengths_of
from kvplan.simulation.simulator import solve
from kvplan.simulation.solve_setup import only_models_of, set_up_all
from kvplan.workload.expectation import expect

BUNDLED = sorted((Path(__file__).parents[1] / "scenarios").glob("strategy_*.yaml"))

CASES = {
    "best-of-64, 8k traces, 1,000 problems, one at a time (goal: 15 s)": (
        {"strategy": "best_of_n", "n": 64, "max_tokens": "24K"},
        {"num_problems": 1000},
    ),
    "the same, three at a time, under preemption": (
        {"strategy": "best_of_n", "n": 64, "max_tokens": "24K"},
        {"num_problems": 1000, "arrivals": {"kind": "closed_loop", "concurrency": 3}},
    ),
    "beam 8 x 8 x 40, 30 problems, remote PRM": (
        {"strategy": "beam_search", "beam_width": 8, "branch_factor": 8, "step_tokens": 256},
        {
            "num_problems": 30,
            "verifier": {
                "kind": "prm", "placement": "remote", "latency_s": 0.05, "concurrency": 64,
                "true_positive_rate": 0.85, "true_negative_rate": 0.8, "correlation": 0.3,
            },
        },
    ),
    "GRPO, 512 prompts x 16, 32K": (
        {"strategy": "grpo_group"},
        {"num_problems": 512, "arrivals": {"kind": "all_at_once"}},
    ),
}  # fmt: skip


def loop_s() -> float:
    """CPU seconds of ten million additions."""
    start, total = time.process_time(), 0
    for i in range(10_000_000):
        total += i
    return time.process_time() - start


def accuracies(path: Path, unit: float) -> str:
    """What the accuracies of a bundled scenario take."""
    told = load_scenario(path)
    assert told.problems is not None
    specs = [spec for said in told.problems.strategies for spec in said.expanded()]
    limits = [lengths_of(set_up_all(only_models_of(told, spec))) for spec in specs]
    start = time.process_time()
    found = expect(told.problems, specs, told.folder, max_model_len=limits)
    spent = time.process_time() - start
    widest = max(100 * one.interval.half_width for one in found.strategies)
    branches = sum(one.num_branches for one in found.drawn)
    return (
        f"{path.stem}: {spent:.2f} CPU s ({spent / unit:.1f} loops) to {widest:.2f} points, {branches:,} branches"
        f"{f'; {found.why}' if found.why else ''}"
    )


def main() -> None:
    unit = loop_s()
    print(f"bare loop of 10 million additions: {unit:.2f} CPU s")
    for path in BUNDLED:
        print(accuracies(path, unit), flush=True)
    for name, (strategy, problems) in CASES.items():
        told = parse_scenario(
            {"model": "Qwen/Qwen3-8B", "gpu": "h200", "problems": {"strategies": [strategy], **problems}}
        )
        start = time.process_time()
        found = solve(told)
        spent = time.process_time() - start
        branches, tokens = len(found.records), int(found.records["output_tokens"].sum())
        print(
            f"{name}: {spent:.2f} CPU s ({spent / unit:.1f} loops), {branches:,} branches, {tokens / 1e6:,.0f} M"
            f" tokens, {branches / spent:,.0f} branches/s, {int(found.records['num_preemptions'].sum()):,} preemptions,"
            f" {found.verdict}"
        )


if __name__ == "__main__":
    main()
