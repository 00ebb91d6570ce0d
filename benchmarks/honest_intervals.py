"""Whether the 95 % intervals of `compare` cover the long-run value 95 % of the time, and equal strategies tie.

Small scenarios on an engine of stated step times, each compared under many seeds: problems, lengths, luck and arrivals
all new. The long-run value of an accuracy is that of a much longer draw, of a latency's mean and a cost the mean over
all seeds, of a percentile that of all seeds' problems together. `make honest`; minutes.

A percentile that so few problems bound on one side only is counted apart.

    python benchmarks/honest_intervals.py --seeds 300
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from math import isfinite
from typing import Any

import numpy as np

from kvplan.formulas.intervals import Interval
from kvplan.scenario.schema import StepTimeSpec, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.search.comparison import compare
from kvplan.simulation.deploy import Setup, StatedStepTime
from kvplan.workload.expectation import expect

SHORT = {"thinking_tokens": 300, "answer_tokens": 20, "sigma_between": 0.4, "source": "stated"}
NOISY = {"kind": "rule", "true_positive_rate": 0.85, "true_negative_rate": 0.75}
VOTE = {"strategy": "first_finish", "m": 3, "k": 5}
SHORTEST = {"strategy": "first_finish", "m": 1, "k": 3}

SCENARIOS: dict[str, dict[str, Any]] = {
    "one at a time": {
        "num_problems": 30, "quality": SHORT | {"difficulty": {"beta": [0.6, 0.5]}}, "verifier": NOISY,
        "strategies": ["single_pass", SHORTEST, VOTE, {"strategy": "best_of_n", "n": 4, "max_tokens": 600}],
    },
    "two at a time": {
        "num_problems": 40, "quality": SHORT | {"difficulty": {"beta": [1.0, 2.0]}, "wrong_to_right_length": 1.3},
        "arrivals": {"kind": "closed_loop", "concurrency": 2}, "verifier": NOISY,
        "strategies": [VOTE, {"strategy": "sequential_revision", "max_rounds": 3},
                       {"strategy": "prune_by_steps", "n": 4, "step_tokens": 100}],
    },
    "as they come": {
        "num_problems": 40, "quality": SHORT | {"difficulty": {"levels": [[0.2, 0.5], [0.7, 0.5]]}},
        "arrivals": {"kind": "poisson", "rate": 0.15}, "verifier": NOISY,
        "strategies": [{"strategy": "budget_forcing", "num_waits": 2}, {"strategy": "beam_search", "step_tokens": 100}],
    },
}  # fmt: skip
EQUAL = [{"strategy": "first_finish", "m": 2, "k": k} for k in (3, 5)]
"""Two strategies of equal accuracy and other luck: of two traces with answers of their own the shorter one decides,
and where right and wrong traces are as long that is right as often as any, whatever k."""
FIGURES = ("latency_mean_s", "latency_p50_s", "latency_p99_s", "usd_per_correct")


def engine() -> dict[str, Setup]:
    """One card, step times stated."""
    told = StepTimeSpec(fixed_us=5000, per_sequence_us=20, per_context_token_ns=30, per_prefill_token_us=20)
    config = EngineConfig(num_gpu_blocks=4000, max_model_len=8192)
    return {"": Setup(config, StatedStepTime.of(told), 147_456.0, 1, usd_per_gpu_hour=3.6)}


class Seen:
    """One figure of one strategy over all seeds."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.intervals: list[Interval] = []

    def covered(self, truth: float) -> list[bool]:
        """Of each interval, whether it holds the truth."""
        return [low <= truth <= high for low, high in self.intervals]


def study(
    name: str, told: dict[str, Any], seeds: int, precision: float
) -> tuple[dict[tuple[str, str], Seen], Any]:
    """Every figure of every strategy under all seeds; the pooled latencies by strategy; differences of the equal."""
    seen: dict[tuple[str, str], Seen] = defaultdict(Seen)
    took: dict[str, list[float]] = defaultdict(list)
    for seed in range(seeds):
        scenario = parse_scenario({"model": "Qwen/Qwen3-8B", "problems": told | {"seed": seed}})
        found = compare(scenario, setups=engine(), ranges=False, precision=precision, sensitivity=False)
        for row, sample in zip(found.rows, found.samples, strict=True):
            note(seen[row.strategy, "accuracy"], row.accuracy, (row.accuracy_low, row.accuracy_high))
            for figure in FIGURES:
                note(seen[row.strategy, figure], getattr(row, figure), row.sampling.get(figure))
            took[row.strategy] += sample.took.tolist()
    return seen, took


def note(seen: Seen, value: float, interval: Any) -> None:
    """A value and its interval, where there is one."""
    seen.values.append(value)
    if interval is not None:
        seen.intervals.append(Interval(*interval))


def long_run(told: dict[str, Any]) -> dict[str, float]:
    """Accuracy of each strategy, to 0.4 points; where a formula has its chance far closer."""
    scenario = parse_scenario({"model": "Qwen/Qwen3-8B", "problems": told | {"seed": 10**6}})
    assert scenario.problems is not None
    specs = [spec for said in scenario.problems.strategies for spec in said.expanded()]
    limits = [{"": 8192} for _ in specs]
    found = expect(scenario.problems, specs, precision=0.4, max_draws=10**9, max_model_len=limits)
    return {one.strategy: one.accuracy for one in found.strategies}


def equal_pairs(seeds: int, precision: float) -> float:
    """How often two equal strategies, drawn, are called different."""
    quality = SHORT | {"difficulty": {"beta": [0.6, 0.5]}, "wrong_answers": 1_000_000}
    told = {"num_problems": 3, "quality": quality, "strategies": EQUAL}
    called = 0
    for seed in range(seeds):
        scenario = parse_scenario({"model": "Qwen/Qwen3-8B", "problems": told | {"seed": seed}})
        assert scenario.problems is not None
        specs = [spec for said in scenario.problems.strategies for spec in said.expanded()]
        called += not expect(scenario.problems, specs, precision=precision).difference(0, 1).is_tie
    return called / seeds


def main() -> int:
    """Print coverage; 1 where it is not as claimed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--precision", type=float, default=4.0, help="points; wider ones are quicker to draw")
    args = parser.parse_args()
    pooled: dict[str, list[bool]] = defaultdict(list)
    by_strategy: dict[str, list[bool]] = defaultdict(list)
    for name, told in SCENARIOS.items():
        started = time.process_time()
        seen, took = study(name, told, args.seeds, args.precision)
        truth = long_run(told)
        for (strategy, figure), one in seen.items():
            value = truth[strategy] if figure == "accuracy" else float(np.mean(one.values))
            if figure in ("latency_p50_s", "latency_p99_s"):
                value = float(np.quantile(took[strategy], float(figure[9:11]) / 100))
            covered = one.covered(value)
            closed = [hit for hit, i in zip(covered, one.intervals, strict=True) if isfinite(i.high)]
            kind = "accuracy" if figure == "accuracy" else "cost" if figure.startswith("usd") else "latency"
            pooled[kind] += closed
            pooled["lower bounds alone"] += covered if not closed else []
            by_strategy[f"{name}: {strategy}"] += closed
            open_ended = np.mean([not isfinite(i.high) for i in one.intervals])
            width = np.median([(i.high - i.low) / 2 for i in one.intervals])
            print(f"{name:14s} {strategy[:44]:44s} {figure:16s} {value:10.4g} +-{width:8.3g}"
                  f" {np.mean(covered):6.1%}{f'  {open_ended:.0%} open' if open_ended else ''}")  # fmt: skip
        print(f"{name}: {time.process_time() - started:.0f} s of CPU", file=sys.stderr)
    everything = [hit for kind, hits in pooled.items() if kind != "lower bounds alone" for hit in hits]
    called = equal_pairs(args.seeds, args.precision)
    print()
    for kind, hits in [*pooled.items(), ("all", everything)]:
        print(f"pooled {kind:18s} {np.mean(hits):.1%} of {len(hits):,} intervals")
    for strategy, hits in by_strategy.items():
        print(f"{strategy:60s} {np.mean(hits):.1%}")
    print(f"equal strategies called different: {called:.1%} of {args.seeds} seeds")
    good = (
        0.93 <= np.mean(everything) <= 0.97
        and min(map(np.mean, by_strategy.values())) >= 0.9
        and called <= 0.08
    )
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
