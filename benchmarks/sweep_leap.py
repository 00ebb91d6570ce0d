"""Compare the leap with the step-by-step scheduler on many random workloads: decisions, blocks, hits, evictions, ends.

    python benchmarks/sweep_leap.py [NUM_SEEDS [FIRST_SEED]]        sync and async; exits 1 if any differs

The default suite tries a few hundred; rules about copies of equal blocks show on one workload in thousands.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from leap_scenarios import compare, random_scenario

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario


def main(num_seeds: int = 2000, first_seed: int = 0) -> int:
    """Print each seed that differs, and totals."""
    start, bad = process_time(), 0
    leaps = leapt = steps = preemptions = 0
    for seed in range(first_seed, first_seed + num_seeds):
        row = random_scenario(Random(seed))
        for is_async in (False, True):
            scenario = VLLMScenario(**row | {"async_scheduling": is_async})
            leap = LeapReplay(scenario, rng=Random(seed) if seed % 2 else None)
            found = compare(scenario, leap)
            if found:
                bad += 1
                print(f"seed {seed} {'async' if is_async else 'sync'}: {found[:300]}", flush=True)
            leaps, leapt, steps = leaps + leap.num_leaps, leapt + leap.num_leapt_steps, steps + leap.step
            preemptions += sum(request.num_preemptions for request in leap.requests.values())
    print(f"{2 * num_seeds:,} runs, {bad} differ: {leaps:,} leaps over {leapt:,} of {steps:,} steps, "
          f"{preemptions:,} preemptions, {process_time() - start:.0f} CPU s")  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
