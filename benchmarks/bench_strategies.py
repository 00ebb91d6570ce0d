"""Speed of strategies on the simulator: 64,000 branches of 8k tokens, a large beam, a large GRPO step; one core.

Figures are CPU seconds of the whole `solve()` call, records and all, and their ratio to a bare Python loop of the
same machine, so that slow machines can be compared.
"""

from __future__ import annotations

import time

from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.simulator import solve

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


def main() -> None:
    unit = loop_s()
    print(f"bare loop of 10 million additions: {unit:.2f} CPU s")
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
