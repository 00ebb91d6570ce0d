"""How many requests one CPU second simulates where many things run at once, leaping and step by step in the same run.

lockstep   DeepSeek-R1 on eight H200, data-parallel attention and expert parallel: all ranks wait for the fullest
batch      4,096 sequences decode at once, and the timeline is sampled
least_kv   256 replicas, each request to the one with the most free blocks
priority   10,000 requests at once in three priorities, far more than fit: lower ones are preempted
lunch      scenario offload_lunch on four replicas: sessions that come back find their KV in host memory
beams      a beam search of few and of many iterations: what a branch costs must not grow with its path

    python benchmarks/bench_fleets.py                    all rows
    python benchmarks/bench_fleets.py lockstep priority  some
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import process_time
from typing import Any

from kvplan.scenario.schema import Scenario, load_scenario, parse_scenario
from kvplan.simulation.deploy import Setup, set_ups
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate, solve

REASONING: dict[str, Any] = {
    "prompt": {"kind": "lognormal", "median": 512, "sigma": 0.6, "low": 32, "high": 4096},
    "answer": {"kind": "lognormal", "median": 6000, "sigma": 0.8, "low": 250, "high": 32_768},
}
"""Answers of 8,000 tokens on average."""


STATED: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "h100",
    "step_time": {
        "fixed_us": 8350,
        "per_sequence_us": 20,
        "per_context_token_ns": 67.7,
        "per_prefill_token_us": 49.5,
    },
}


@dataclass(frozen=True)
class Row:
    """One case."""

    scenario: Callable[[int], dict[str, Any]]
    """Of so many requests."""
    num_requests: int
    num_stepped: int
    """Requests of the run step by step, which takes too long for all of them."""
    num_runs: int = 3
    """The best of so many counts."""


def lockstep(num_requests: int) -> dict[str, Any]:
    """DeepSeek-R1, eight ranks."""
    arrivals = {"kind": "poisson", "rate": 2.0}
    return {
        "model": "deepseek-ai/DeepSeek-R1", "gpu": "h200",
        "engine": {"data_parallel_size": 8, "enable_expert_parallel": True, "max_model_len": 40_960},
        "workload": {"num_requests": num_requests, "arrivals": arrivals, **REASONING},
    }  # fmt: skip


def lockstep_mtp(num_requests: int) -> dict[str, Any]:
    """The same with a draft of its MTP layer, eight of ten right."""
    scenario, drafts = lockstep(num_requests), {"num_speculative_tokens": 1, "speculative_method": "mtp"}
    return scenario | {"engine": scenario["engine"] | drafts, "acceptance_rate": 0.8}


def batch(num_requests: int) -> dict[str, Any]:
    """A pool without end, and as many sequences at once as come."""
    return {
        **STATED, "engine": {"max_num_seqs": 4096, "num_gpu_blocks_override": 4_000_000, "max_model_len": 40_960},
        "workload": {"num_requests": num_requests, "arrivals": {"kind": "poisson", "rate": 7.0}, **REASONING},
    }  # fmt: skip


def least_kv(num_requests: int) -> dict[str, Any]:
    """256 replicas that hold 128 answers each."""
    return {
        **STATED, "replicas": 256, "router": "least_kv",
        "engine": {"max_num_seqs": 128, "num_gpu_blocks_override": 26_600, "max_model_len": 40_960},
        "workload": {"num_requests": num_requests, "arrivals": {"kind": "poisson", "rate": 36.0}, **REASONING},
    }  # fmt: skip


def priority(num_requests: int) -> dict[str, Any]:
    """A third of what 128 sequences want, and three classes that want it first."""
    shares = {f"class {i}": REASONING | {"share": 1.0, "priority": i} for i in range(3)}
    return {
        **STATED,
        "engine": {
            "max_num_seqs": 128, "num_gpu_blocks_override": 7_700, "max_model_len": 40_960,
            "scheduling_policy": "priority",
        },
        "workload": {"num_requests": num_requests, "arrivals": {"kind": "all_at_once"}, "classes": shares},
    }  # fmt: skip


def lunch(num_requests: int) -> dict[str, Any]:
    """Sessions of 3.5 turns, so many requests in all, each on the replica that knows it; four tiers of 200 GiB."""
    scenario = load_scenario("offload_lunch").model_dump(mode="json", exclude_unset=True)
    workload = scenario["workload"] | {
        "num_requests": num_requests * 2 // 7,
        "arrivals": {"kind": "poisson", "rate": 2.4},
    }
    return scenario | {"replicas": 4, "router": "prefix_aware", "workload": workload}


def beams(num_problems: int, iterations: int) -> dict[str, Any]:
    """Beams of four, each grown by four steps at a time."""
    strategy = {
        "strategy": "beam_search", "beam_width": 4, "branch_factor": 4, "step_tokens": 32, "num_iterations": iterations,
    }  # fmt: skip
    quality = {"thinking_tokens": 1_000_000, "answer_tokens": 100}
    return {
        **STATED, "engine": {"max_num_seqs": 128, "num_gpu_blocks_override": 100_000, "max_model_len": 40_960},
        "problems": {
            "num_problems": num_problems, "strategies": [strategy], "quality": quality, "prompt": 500,
            "arrivals": {"kind": "closed_loop", "concurrency": 4}, "verifier": {"kind": "prm", "placement": "remote"},
        },
    }  # fmt: skip


ROWS = {
    "lockstep": Row(lockstep, 1000, 16),
    "lock., MTP": Row(lockstep_mtp, 300, 16, num_runs=1),
    "batch": Row(batch, 10_000, 20),
    "least_kv": Row(least_kv, 10_000, 0),
    "priority": Row(priority, 10_000, 30),
    "lunch": Row(lunch, 20_000, 200, num_runs=1),
}


def parsed(row: Row, num_requests: int) -> tuple[Scenario, dict[str, Setup]]:
    """The scenario, and its engines: planning them is not timed."""
    scenario = parse_scenario(row.scenario(num_requests) | {"limits": {"thrash_ratio": 1e6}})
    return scenario, set_ups(scenario)


def timed(row: Row, num_requests: int, step_by_step: bool) -> tuple[float, Result]:
    """Requests per CPU second, the best of the row's runs; one where it goes step by step."""
    scenario, setups = parsed(row, num_requests)
    best = 0.0
    for _ in range(1 if step_by_step else row.num_runs):
        start = process_time()
        result = simulate(scenario, setups=setups, step_by_step=step_by_step)
        best = max(best, num_requests / (process_time() - start))
    return best, result


def report(name: str) -> None:
    """Print one line."""
    row, n = ROWS[name], ROWS[name].num_requests
    leaping, result = timed(row, n, step_by_step=False)
    stepping = timed(row, row.num_stepped, step_by_step=True)[0] if row.num_stepped else 0.0
    ratio = f"{stepping:>12,.0f}{leaping / stepping:>8,.0f}x" if stepping else f"{'':21}"
    totals: Any = result.totals
    changes = totals.leaps + totals.steps - totals.leapt_steps
    print(f"{name:10}{n:>10,}{leaping:>12,.0f}{ratio}{changes / n:>10.1f}{totals.preemptions / n:>9.1f}")


def report_beams() -> None:
    """Print what a branch costs, by the length of its path."""
    took = {}
    for iterations in (10, 160):
        scenario = parse_scenario(beams(8 if iterations < 100 else 2, iterations))
        setups, best = set_ups(scenario), inf
        for _ in range(3):
            start = process_time()
            found = solve(scenario, setups=setups)
            best = min(best, (process_time() - start) / len(found.records))
        took[iterations] = best
    print("beams: us a branch " + ", ".join(f"{s * 1e6:.0f} at {n} iterations" for n, s in took.items())
          + f": {took[160] / took[10]:.2f}x")  # fmt: skip


def main() -> None:
    """Print requests per CPU second."""
    print(f"{'':10}{'requests':>10}{'per CPU s':>12}{'step':>12}{'':9}{'changes':>10}{'preempt':>9}")
    for name in sys.argv[1:] or [*ROWS, "beams"]:
        report_beams() if name == "beams" else report(name)
    print("per request: changes = leaps and single steps, of all ranks or replicas")


if __name__ == "__main__":
    main()
